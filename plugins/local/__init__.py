"""To be written."""

from blockstore.targets.contract import Target


class LocalTarget(Target):
    """To be written."""
