"""``auth = keystone`` against a real Keystone of PyPI, in an environment of its own (``.keystone``), on SQLite."""
