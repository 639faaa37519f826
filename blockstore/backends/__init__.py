"""The border to storage: the contract plugins fulfil, the suite that proves it, and the loader.

Used by the manager (through the loader) and by plugins. Nothing here knows rows, requests or operations.
"""
