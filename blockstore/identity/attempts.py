"""Wrong secrets, counted by the account that was meant: after some, the next logins have to wait, longer each time.

An attempt is counted before its secret is compared, so that parallel ones cannot pass uncounted. It is slowed down by
two counts: the wrong secrets for this account from its own address, and those from all addresses that are strange to
the account. An address from which the right secret came lately is not strange: what others guess does not slow it.
Beyond the limit one attempt at a time goes on, and only when its delay is over. Some wait for that in the request; the
rest are told when to come back. In memory: a restart forgets, and strangers have no way to restart the service.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from blockstore.address import network_of
from blockstore.errors import Busy, TooManyRequests
from blockstore.identity.hashing import too_many_logins

EVERYWHERE = 10
"""So many times as many failures are free for all strange addresses together as for one."""
LONGEST_FAMILIAR_S = 4.0
"""Longest delay of an address from which the right secret came lately."""
LATELY_S = 86400.0
FORGOTTEN_S = 900.0
"""Quiet time after which failures no longer count."""
MOST = 10_000
"""Accounts and addresses that are remembered; the oldest are forgotten first."""
MOST_HELD = 32
MOST_HELD_PER_ADDRESS = 16

Key = tuple[str, ...]


@dataclass(slots=True)
class _Count:
    failures: int = 0
    running: int = 0
    """Attempts that are being compared."""
    failed_at: float = 0.0


@dataclass(slots=True)
class Attempt:
    """One attempt; whoever makes it says whether the secret was right."""

    familiar: bool
    """The right secret came from this address lately."""
    right: bool | None = None
    """None: it was not compared."""


class Attempts:
    """The attempts at all secrets."""

    def __init__(self, free: int, longest_s: float) -> None:
        """``free`` failures in a row cost nothing; ``longest_s`` is the longest delay."""
        self._free, self._longest_s = free, longest_s
        self._changed = threading.Condition()
        self._counts: OrderedDict[Key, _Count] = OrderedDict()
        self._familiar: OrderedDict[Key, float] = OrderedDict()
        """When the right secret last came, by account and address."""
        self._held: Counter[str] = Counter()
        self._closed = False

    @contextmanager
    def made(self, account: str, address: str) -> Iterator[Attempt]:
        """Wait until the account may be tried from the address, and count the attempt while it is being made.

        Raises TooManyRequests when it would have to wait for too long, or among too many.
        """
        network = network_of(address)
        with self._changed:
            self._wait(account, network)
            keys = self._keys(account, network)
            for key in keys:
                self._count(key).running += 1
            attempt = Attempt(familiar=self._is_familiar(account, network))
        try:
            yield attempt
        finally:
            with self._changed:
                self._end(keys, account, network, attempt.right)
                self._changed.notify_all()

    def close(self) -> None:
        """Turn away those who wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wait(self, account: str, network: str) -> None:
        until = monotonic() + self._longest_s
        held = False
        try:
            while (wait_s := self._delay_s(account, network)) > 0:
                if self._closed:
                    raise Busy("The service stops. Try again when it has started again.", 5)
                left_s = until - monotonic()
                # What an attempt that runs comes to (inf) is known in a moment. A delay must end in time.
                if left_s <= 0 or left_s + 1 < wait_s < math.inf:
                    raise self._refusal(wait_s)
                if not held:
                    if self._held.total() >= MOST_HELD or self._held[network] >= MOST_HELD_PER_ADDRESS:
                        raise self._refusal(wait_s)
                    self._held[network] += 1
                    held = True
                self._changed.wait(min(wait_s, left_s))
        finally:
            if held:
                self._held[network] -= 1
                if not self._held[network]:
                    del self._held[network]

    def _delay_s(self, account: str, network: str) -> float:
        """Return how long an attempt has to wait now; inf: until one that runs has ended."""
        longest_s = min(self._longest_s, LONGEST_FAMILIAR_S) if self._is_familiar(account, network) else self._longest_s
        delay_s = 0.0
        for key in self._keys(account, network):
            count = self._counts.get(key)
            if count is None:
                continue
            free = self._free if len(key) > 1 else self._free * EVERYWHERE
            failures = count.failures if monotonic() - count.failed_at < FORGOTTEN_S else 0
            if failures + count.running < free:
                continue
            if count.running:
                return math.inf
            growing_s = float(2 ** min(failures - free, 30))
            delay_s = max(delay_s, count.failed_at + min(longest_s, growing_s) - monotonic())
        return delay_s

    def _refusal(self, wait_s: float) -> Busy | TooManyRequests:
        if wait_s == math.inf:
            return too_many_logins()
        whole_s = max(1, math.ceil(min(wait_s, self._longest_s)))
        return TooManyRequests(f"Too many logins with a wrong password or secret. Try again in {whole_s} s.", whole_s)

    def _keys(self, account: str, network: str) -> tuple[Key, ...]:
        own = (account, network)
        return (own,) if self._is_familiar(account, network) else (own, (account,))

    def _is_familiar(self, account: str, network: str) -> bool:
        return monotonic() - self._familiar.get((account, network), -math.inf) < LATELY_S

    def _count(self, key: Key) -> _Count:
        count = self._counts.setdefault(key, _Count())
        self._counts.move_to_end(key)
        if len(self._counts) > MOST:
            idle = next((one for one, count in self._counts.items() if not count.running and one != key), None)
            if idle is not None:
                del self._counts[idle]
        return count

    def _end(self, keys: tuple[Key, ...], account: str, network: str, right: bool | None) -> None:
        now = monotonic()
        for key in keys:
            count = self._count(key)
            count.running -= 1
            if right is False:
                count.failures = 1 if now - count.failed_at >= FORGOTTEN_S else count.failures + 1
                count.failed_at = now
            elif right and len(key) > 1:
                count.failures = 0
            if not count.failures and not count.running:
                del self._counts[key]
        if right:
            self._familiar.pop((account, network), None)
            self._familiar[(account, network)] = now
            if len(self._familiar) > MOST:
                self._familiar.popitem(last=False)
