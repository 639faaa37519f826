"""What this process has open is counted, for each name."""

from __future__ import annotations

import pytest

from blockstore.backends.openers import Openers


def test_a_volume_is_open_until_its_last_opener_ends() -> None:
    openers = Openers()
    assert not openers.is_open("v")
    with openers.counted("v"):
        with openers.counted("v"):
            assert openers.is_open("v")
            assert not openers.is_open("w")
        assert openers.is_open("v")
    assert not openers.is_open("v")


def test_a_block_that_fails_leaves_nothing_open() -> None:
    openers = Openers()
    with pytest.raises(ValueError, match="boom"), openers.counted("v"):
        raise ValueError("boom")
    assert not openers.is_open("v")
