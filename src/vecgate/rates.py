"""How much one key may ask for: so many requests a minute, so many at once.

A token bucket is one subtraction; the libraries for it bring storages for many processes, and this server is one. Knows
no header of a request and no clock: the caller says who asks and when.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import ceil
from typing import Literal

from vecgate.errors import RateLimited

Pairs = list[tuple[bytes, bytes]]
Spent = Literal["rate_limit", "key_concurrency"]
EVERYBODY = "*"
"""Who asks where no keys are set: all share one allowance, since behind a proxy all have one address."""
MINUTE_S = 60.0


class Exhausted(RateLimited):
    """`reason`: which of the two limits."""

    def __init__(self, message: str, retry_after_s: int, reason: Spent) -> None:
        super().__init__(message, retry_after_s)
        self.reason = reason


class Rates:
    """A bucket that holds a minute's requests and fills evenly, and a count of what is running, for each name.

    A name's bucket starts full. None: no such limit. There are as many names as keys, so this stays small.
    """

    def __init__(self, per_minute: int | None, at_once: int | None) -> None:
        self.per_minute = per_minute
        self.at_once = at_once
        self._running: Counter[str] = Counter()
        self._buckets: dict[str, tuple[float, float]] = {}  # what was left, and when

    @property
    def limited(self) -> bool:
        return self.per_minute is not None or self.at_once is not None

    def take(self, who: str, now_s: float, patience_s: Callable[[], int]) -> None:
        """Let one more request in; raises Exhausted. patience_s: how long what is running may still take."""
        whose = "all clients together" if who == EVERYBODY else "this key"
        if self.at_once is not None and self._running[who] >= self.at_once:
            wait_s = patience_s()
            raise Exhausted(
                f"{self._running[who]} requests of {whose} are running, the most at once (VECGATE_KEY_CONCURRENCY); "
                f"try again in {wait_s} s.",
                wait_s,
                "key_concurrency",
            )
        if self.per_minute is None:
            return
        left = self._left(who, now_s)
        self._buckets[who] = (left, now_s)
        if left < 1.0:
            wait_s = ceil((1.0 - left) * MINUTE_S / self.per_minute)
            raise Exhausted(
                f"The {self.per_minute} requests a minute of {whose} are used up (VECGATE_RATE_LIMIT); try again in "
                f"{wait_s} s.",
                wait_s,
                "rate_limit",
            )
        self._buckets[who] = (left - 1.0, now_s)

    def told(self, who: str, now_s: float) -> Pairs:
        """The headers that OpenAI's clients read: the limit, what is left of it, and when it will be whole again."""
        if self.per_minute is None:
            return []
        left = self._left(who, now_s)
        whole_s = ceil((self.per_minute - left) * MINUTE_S / self.per_minute)
        return [
            (b"x-ratelimit-limit-requests", b"%d" % self.per_minute),
            (b"x-ratelimit-remaining-requests", b"%d" % left),
            (b"x-ratelimit-reset-requests", b"%ds" % whole_s),
        ]

    def began(self, who: str) -> None:
        self._running[who] += 1

    def ended(self, who: str) -> None:
        self._running[who] -= 1

    def _left(self, who: str, now_s: float) -> float:
        most = float(self.per_minute or 0)
        left, at_s = self._buckets.get(who, (most, now_s))
        return min(most, left + max(0.0, now_s - at_s) * most / MINUTE_S)
