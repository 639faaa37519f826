"""Tests of the plugins, and the file systems they need."""
