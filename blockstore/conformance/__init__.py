"""The conformance suites: every promise of a backend and of a target, tried on a real one."""
