"""blockstore: the OpenStack Block Storage API v3 on LVM, NFS or Ceph, in one process, with no message broker.

The map of the components::

request -> api/ -> [operation] -> scheduler/ -> [operation] -> manager/ -> backends/contract.py -> plugins/NAME/ -> tool

* ``api/`` accepts or refuses; ``scheduler/`` decides where; ``manager/`` lets a backend do it.
* ``operations/catalogue.py`` is everything one component can ask of another; ``operations/bus.py`` carries it; the
table ``operations`` remembers it.
* ``operations/states.py`` is the only writer of a status; ``operations/runner.py`` ends each transitional one.
* ``app/service.py`` puts all of it together; ``cli/`` is the command.

docs/architecture.md tells the way of a request, and why the house is built so.
"""

__version__ = "0.1.0"
