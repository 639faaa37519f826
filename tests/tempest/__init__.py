"""The reference test suite: Tempest with Cinder's plugin, against blockstore with its built-in identity.

``reference-passed.txt`` is what the reference implementation passes, and the bar; ``left-out.txt`` names what is not
asked of blockstore yet, with a reason. What is neither left out nor passed fails the run.
"""
