"""Delays logins after wrong secrets, which are counted by account; the delay grows with each failure.

An attempt is counted before its secret is compared, so that parallel attempts cannot pass uncounted. Two counts of
wrong secrets for the account slow it down: those from its own address, and those from all unfamiliar addresses. An
address is familiar if the account's right secret came from it lately: the failures of others do not slow it down.

- Above the limit of its own address, one attempt at a time proceeds, after a delay that doubles with each failure.
- Above the limit of all unfamiliar addresses, each address is in a lane, by the number of its failures for the
  account: none, one, two ... In each lane one attempt at a time proceeds, some time after the last failure in the
  lane. Each lane waits twice as long as the lane before it. So addresses without failures never wait for addresses
  with failures. All lanes together bound the guesses at an account, from any number of addresses.

Some attempts wait within the request; the others are refused with a time to retry. The next attempt of a lane, and the
attempts that keep a place to wait, are chosen by recent failures of the address and the networks around it, for any
account: an attacker may have a new address for each guess, but seldom a new network. Counts are kept in memory: a
restart forgets them, and strangers cannot restart the service.
"""

from __future__ import annotations

import math
import random
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic

from blockstore.address import networks_of
from blockstore.errors import Busy, TooManyRequests
from blockstore.identity.hashing import too_many_logins

EVERYWHERE = 10
"""Free failures of all unfamiliar addresses together, in multiples of those of one address."""
FIRST_LANE_S = 2.0
"""Seconds between two attempts in the lane of addresses without failures for the account."""
LONGEST_FAMILIAR_S = 4.0
"""Longest delay of a familiar address."""
LATELY_S = 86400.0
FORGOTTEN_S = 900.0
"""Time without failures after which earlier failures no longer count."""
MOST = 20_000
"""Maximum number of counts, and of familiar addresses; the oldest are forgotten first."""
MOST_HELD = 32
MOST_HELD_PER_ADDRESS = 16

Key = tuple[str, ...]
Standing = tuple[int, ...]
"""Failures of the networks around an address, for all accounts, the widest network first, each at most ``free``."""


@dataclass(slots=True)
class _Count:
    failures: int = 0
    running: int = 0
    """Attempts that are being compared."""
    failed_at: float = -math.inf


@dataclass(slots=True, eq=False)
class Attempt:
    """One attempt; its maker sets ``right`` after the comparison of the secret."""

    account: str
    networks: tuple[str, ...]
    """Its address (of IPv6 the /64), and wider networks."""
    familiar: bool = False
    """The account's right secret came from this address lately."""
    standing: Standing = ()
    right: bool | None = None
    """None: the secret was not compared."""
    given_up: bool = False
    """Its place to wait was given to another attempt."""
    luck: float = field(default_factory=random.random)
    """Random number that decides between equals."""

    @property
    def own(self) -> Key:
        """The key of the count for its account from its address."""
        return self.account, self.networks[0]


class Attempts:
    """Counts and delays the attempts at all secrets."""

    def __init__(self, free: int, longest_s: float) -> None:
        """``free`` failures in a row cost nothing; ``longest_s`` is the longest delay."""
        self._free, self._longest_s = free, longest_s
        self._changed = threading.Condition()
        self._counts: OrderedDict[Key, _Count] = OrderedDict()
        self._familiar: OrderedDict[Key, float] = OrderedDict()
        """When the right secret last came, by account and address."""
        self._held: list[Attempt] = []
        self._closed = False

    @contextmanager
    def made(self, account: str, address: str) -> Iterator[Attempt]:
        """Wait until the account may be tried from the address, and count the attempt while it is being made.

        Raise TooManyRequests or Busy if the attempt would have to wait for too long, or with too many others.
        """
        attempt = Attempt(account, networks_of(address))
        with self._changed:
            self._wait(attempt)
            attempt.familiar, attempt.standing = self._is_familiar(attempt), self._standing(attempt)
            keys = self._keys(attempt)
            for key in keys:
                self._count(key).running += 1
        try:
            yield attempt
        finally:
            with self._changed:
                self._end(keys, attempt)
                self._changed.notify_all()

    def close(self) -> None:
        """Refuse all waiting attempts."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # --- waiting -------------------------------------------------------------------------------------------

    def _wait(self, attempt: Attempt) -> None:
        until = monotonic() + self._longest_s
        try:
            while (wait_s := self._delay_s(attempt)) > 0:
                if self._closed:
                    raise Busy("The service is stopping. Try again after its next start.", 5)
                left_s = until - monotonic()
                # A running attempt (inf) ends in a moment. A delay must end before ``until``.
                if attempt.given_up or left_s <= 0 or left_s + 1 < wait_s < math.inf:
                    raise self._refusal(wait_s)
                if attempt not in self._held:
                    self._hold(attempt, wait_s)
                self._changed.wait(min(wait_s, left_s))
        finally:
            if attempt in self._held:
                self._held.remove(attempt)
                self._changed.notify_all()  # it may have been the next of its lane

    def _hold(self, attempt: Attempt, wait_s: float) -> None:
        """Give an attempt a place to wait, if need be that of another attempt, which is then refused."""
        rivals = [candidate for candidate in self._held if candidate.networks[0] == attempt.networks[0]]
        if len(rivals) < MOST_HELD_PER_ADDRESS:
            rivals = self._held if len(self._held) >= MOST_HELD else []
        self._held.append(attempt)
        if rivals:
            last = self._last({*rivals, attempt})
            self._held.remove(last)
            last.given_up = True
            if last is attempt:
                raise self._refusal(wait_s)
            self._changed.notify_all()

    def _last(self, among: set[Attempt]) -> Attempt:
        """Return the attempt of ``among`` that is furthest from its turn, so that no lane takes all places."""
        before: Counter[Key] = Counter()
        last, furthest = None, None
        for candidate in sorted(self._held, key=self._rank):
            lane = self._lane(candidate)
            before[lane] += 1
            place = (before[lane], self._standing(candidate), candidate.luck)
            if candidate in among and (furthest is None or place > furthest):
                last, furthest = candidate, place
        assert last is not None  # all of ``among`` are held
        return last

    def _delay_s(self, attempt: Attempt) -> float:
        """Return the seconds that an attempt has to wait now; inf: until another attempt has ended."""
        delay_s = self._own_delay_s(attempt)
        if self._is_familiar(attempt) or self._is_free((attempt.account,), self._free * EVERYWHERE):
            return delay_s
        lane = self._counts.get(self._lane(attempt), _Count())
        delay_s = max(delay_s, math.inf if lane.running else lane.failed_at + self._lane_s(attempt) - monotonic())
        if delay_s <= 0 and any(self._goes_first(candidate, attempt) for candidate in self._held):
            return math.inf
        return delay_s

    def _own_delay_s(self, attempt: Attempt) -> float:
        if self._is_free(attempt.own, self._free):
            return 0.0
        count = self._counts[attempt.own]
        if count.running:
            return math.inf
        longest_s = min(self._longest_s, LONGEST_FAMILIAR_S) if self._is_familiar(attempt) else self._longest_s
        growing_s = float(2 ** min(self._failures(attempt.own) - self._free, 30))
        return max(0.0, count.failed_at + min(longest_s, growing_s) - monotonic())

    def _goes_first(self, candidate: Attempt, other: Attempt) -> bool:
        """Return True if one attempt waits only for its lane, and comes before another attempt in it."""
        return (
            self._lane(candidate) == self._lane(other)
            and self._rank(candidate) < self._rank(other)
            and self._own_delay_s(candidate) <= 0
        )

    def _rank(self, attempt: Attempt) -> tuple[int, Standing, float]:
        """Return the sort key of an attempt in its lane; the smallest comes first."""
        return self._failures(attempt.own), self._standing(attempt), attempt.luck

    def _lane(self, attempt: Attempt) -> Key:
        """Return the lane of an attempt; a familiar address has a lane of its own."""
        if self._is_familiar(attempt):
            return attempt.own
        return attempt.account, "lane", str(self._lane_s(attempt))

    def _lane_s(self, attempt: Attempt) -> float:
        """Return the seconds between two attempts in the lane of the addresses with as many failures."""
        return float(min(self._longest_s, FIRST_LANE_S * 2 ** min(self._failures(attempt.own), 30)))

    def _refusal(self, wait_s: float) -> Busy | TooManyRequests:
        if wait_s == math.inf:
            return too_many_logins()
        whole_s = max(1, math.ceil(min(wait_s, self._longest_s)))
        return TooManyRequests(f"Too many logins with a wrong password or secret. Try again in {whole_s} s.", whole_s)

    # --- counts --------------------------------------------------------------------------------------------

    def _keys(self, attempt: Attempt) -> tuple[Key, ...]:
        return (attempt.own,) if attempt.familiar else (attempt.own, (attempt.account,), self._lane(attempt))

    def _is_familiar(self, attempt: Attempt) -> bool:
        return monotonic() - self._familiar.get(attempt.own, -math.inf) < LATELY_S

    def _standing(self, attempt: Attempt) -> Standing:
        return tuple(min(self._free, self._failures(("from", one))) for one in reversed(attempt.networks))

    def _failures(self, key: Key) -> int:
        count = self._counts.get(key)
        return count.failures if count is not None and monotonic() - count.failed_at < FORGOTTEN_S else 0

    def _is_free(self, key: Key, free: int) -> bool:
        """Return True if the failures stay below ``free`` even if all running attempts fail."""
        count = self._counts.get(key)
        return count is None or self._failures(key) + count.running < free

    def _count(self, key: Key) -> _Count:
        count = self._counts.setdefault(key, _Count())
        self._counts.move_to_end(key)
        if len(self._counts) > MOST:
            idle = next((one for one, count in self._counts.items() if not count.running and one != key), None)
            if idle is not None:
                del self._counts[idle]
        return count

    def _end(self, keys: tuple[Key, ...], attempt: Attempt) -> None:
        for key in keys:
            self._count(key).running -= 1
        if attempt.right is False:
            for key in (*keys, *(("from", one) for one in dict.fromkeys(attempt.networks))):
                self._count(key).failures = self._failures(key) + 1
                self._count(key).failed_at = monotonic()
        elif attempt.right:
            self._count(attempt.own).failures = 0
            self._familiar.pop(attempt.own, None)
            self._familiar[attempt.own] = monotonic()
            if len(self._familiar) > MOST:
                self._familiar.popitem(last=False)
        for key in keys:
            if (count := self._counts.get(key)) is not None and not count.failures and not count.running:
                del self._counts[key]
