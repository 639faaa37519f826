"""blockstore: the OpenStack Block Storage API v3 on LVM, NFS or Ceph, in one process, with no message broker.

The map of the components::

request -> api/ -> [operation] -> scheduler/ -> [operation] -> manager/ -> backends/contract.py -> plugins/NAME/ -> tool

* ``api/`` accepts or refuses a request; ``scheduler/`` chooses the pool; ``manager/`` calls the backend.
* ``operations/catalogue.py`` declares every operation; ``operations/bus.py`` delivers them; the table ``operations``
  stores them.
* ``operations/transitions.py`` is the only writer of a status; ``operations/runner.py`` ends each transitional status.
* ``app/service.py`` assembles the components; ``cli/`` is the command ``blockstore``.

docs/architecture.md follows a request through the components and explains the design.
"""

__version__ = "0.1.0"
