"""To be written."""

from blockstore.targets.contract import Target


class LioTarget(Target):
    """To be written."""
