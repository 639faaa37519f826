"""The conformance suites: every promise of a backend and of a target, tested on a real one."""
