"""The API of the service itself: services, hosts, pools, quota, limits, messages, versions."""
