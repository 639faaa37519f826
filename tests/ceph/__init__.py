"""Tests against a real Ceph: `make test-ceph`."""
