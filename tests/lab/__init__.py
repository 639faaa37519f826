"""Tests that need real LVM; see README.md."""
