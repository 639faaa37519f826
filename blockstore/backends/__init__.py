"""Storage backends: the contract of storage plugins, their loader, helpers for plugins, and the memory backend.

Used by the manager (through the loader) and by plugins. Nothing here knows rows, requests or operations.
"""
