"""The plugins that ship with blockstore, one folder each."""
