"""The API of volume types: extra specs, access, encryption, QoS, defaults."""
