"""To be written."""

from blockstore.targets.contract import Target


class TgtTarget(Target):
    """To be written."""
