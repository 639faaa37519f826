"""To be written."""

from blockstore.targets.contract import Target


class NbdTarget(Target):
    """To be written."""
