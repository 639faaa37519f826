"""What exports a local device: the contract of target plugins, their loader, and their conformance suite."""
