"""``python -m blockstore``."""

from blockstore.cli import main

main()
