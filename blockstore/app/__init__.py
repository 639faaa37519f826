"""Composition: the only package that imports all components."""
