"""What waits for the device: one queue per model, and `take`, the pure policy that makes a batch of it.

Knows nothing of threads: whoever adds and takes holds the lock.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby, islice
from time import monotonic

from vecgate.core import Tokens, Vectors
from vecgate.engine.probe import Probe
from vecgate.traits import Backend

WINDOW_ROWS = 1024
WINDOW_BUDGETS = 8
"""Waiting rows that `take` looks at, and their tokens in budgets: enough to sort by length, few enough to take no time."""
WINDOW_BATCHES = 4
"""A call with a batch size shows at most this many of its batches in the window, so that others are seen too."""
SMALL = 4
"""A call of less than a batch's budget over this is small: it goes before all that is larger."""
FAR, FAR_SHARE = 2, 0.25
"""Calls this many ranks behind a batch's first join it only until this share of its budget is reached: who has waited for a
large call's full batch shall not be computed in another. Measured with one client of queries: the large call keeps 0.91."""
OLDEST_SHARE = 0.25
"""What the call that waits longest gets of the device, whatever overtakes it, so that every call ends."""
GUESS = 4.0
"""How much faster a well-filled batch may be than the guess, so that nobody is refused by a warm-up on a busy machine."""
RECOVER_BATCHES = 32
"""Well-filled batches without a failure until a budget that was cut for lack of memory grows again."""
RECOVER_BY = 1.1


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one batch: computed tokens (pads included), rows, and the lengths rows are padded to."""

    tokens: int
    rows: int
    pad_lengths: tuple[int, ...] | None = None

    def computed(self, longest: int, total: int, rows: int) -> int:
        """Tokens that the device will really compute for `rows` rows."""
        return total if self.pad_lengths is None else rows * padded(longest, self.pad_lengths)


def padded(length: int, pad_lengths: Sequence[int]) -> int:
    """The shortest of the ascending `pad_lengths` that holds `length`; the length itself beyond the last."""
    at = bisect_left(pad_lengths, length)
    return pad_lengths[at] if at < len(pad_lengths) else length


class Ticket:
    """One call's rows on their way: made on the loop, filled in by the device thread, awaited by the call.

    waiting: rows not yet taken; tokens: of all rows. rank: see Lane.rank. gone: nobody
    waits for it any more.
    """

    def __init__(self, rows: Sequence[Tokens], batch_size: int | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self.loop.create_future()
        self.batch_size = batch_size
        self.rank = 0
        self.vectors: Vectors | None = None
        self.count = self.left = len(rows)
        self.tokens = sum(map(len, rows))
        self.waiting = deque(Item(tokens, self, index) for index, tokens in enumerate(rows))
        self.gone = False
        self.queued_s = monotonic()
        self.started_s: float | None = None
        self.forward_s = 0.0

    @property
    def queue_s(self) -> float:
        """Seconds from submit until the first row's forward."""
        return (self.started_s or monotonic()) - self.queued_s


@dataclass(slots=True, eq=False)
class Item:
    """One waiting row."""

    tokens: Tokens
    ticket: Ticket
    index: int

    def __len__(self) -> int:
        return len(self.tokens)


def take(window: Sequence[Item], limits: Limits, far_share: float = FAR_SHARE, owed: Ticket | None = None) -> list[int]:
    """Indices of the next batch out of `window`, shortest row first.

    The first row is always in; a row over the budget runs alone. It is joined by the rows of its rank, then by those of
    the ranks behind it in the window: of each rank those nearest to it in length, shorter ones first, since they cost no
    more padding, then longer ones, while the budget of computed tokens and the row limits (of the batch, of each call) hold;
    what is FAR behind, while less than its share of the budget is taken. The rows of the call that is owed the batch, the
    first ones, come before all others.
    """
    sizes = [len(item) for item in window]
    chosen = [0]
    total = longest = sizes[0]
    least = min(sizes)
    per_call = {window[0].ticket: 1}
    for i in _by_nearness(window, sizes, owed):
        if len(chosen) == limits.rows:
            break
        item = window[i]
        mine = per_call.get(item.ticket, 0)
        if item.ticket.batch_size is not None and mine >= item.ticket.batch_size:
            continue
        far = item.ticket.rank >= window[0].ticket.rank + FAR
        if far and limits.computed(longest, total, len(chosen)) >= far_share * limits.tokens:
            break
        grown = max(longest, sizes[i])
        if limits.computed(grown, total + sizes[i], len(chosen) + 1) > limits.tokens:
            if limits.computed(longest, total + least, len(chosen) + 1) > limits.tokens:
                break
            continue
        chosen.append(i)
        per_call[item.ticket] = mine + 1
        total, longest = total + sizes[i], grown
    return sorted(chosen, key=lambda i: (sizes[i], i))


def _by_nearness(window: Sequence[Item], sizes: Sequence[int], owed: Ticket | None) -> Iterator[int]:
    """All indices but the first: the owed call, then rank by rank as they stand; of each those up to the first row's length,
    longest first, then the longer ones, shortest first; equals as they came."""
    for _, run in groupby(range(1, len(window)), key=lambda i: (window[i].ticket is owed, window[i].ticket.rank)):
        order = sorted(run, key=sizes.__getitem__)
        at = bisect_right(order, sizes[0], key=sizes.__getitem__)
        yield from sorted(order[:at], key=lambda i: -sizes[i])
        yield from order[at:]


@dataclass(slots=True)
class Lane:
    """One model's queue: the calls that have rows waiting, oldest first, and how much that is in all.

    limits: of a batch now; they shrink where the device lacks memory, and recover up to `most_tokens`. probe: what finds
    a better budget, until it has. coming_tokens: estimated, of calls that are still being tokenised. tokens_per_s: a guess, if
    any, until `sure`: a well-filled batch has been measured; others say only how fast the device is at least. spent_s: the
    device's time that this lane has had, less what it could have had while it was empty. owed: batches that the oldest call
    lacks of its share; overtaken: whether the last one began with a smaller call.
    enough_bytes: of memory kept for reuse, as the backend last told.
    """

    model: str
    backend: Backend
    limits: Limits
    probe: Probe | None = None
    most_tokens: int = field(init=False)
    trying: bool = False
    calls: dict[Ticket, None] = field(default_factory=dict)
    ranks: dict[int, dict[Ticket, None]] = field(default_factory=dict)
    rows: int = 0
    tokens: int = 0
    small_tokens: int = 0
    coming_tokens: int = 0
    tokens_per_s: float | None = None
    sure: bool = False
    spent_s: float = 0.0
    owed: float = 0.0
    overtaken: bool = False
    good: int = 0
    enough_bytes: int | None = None

    def __post_init__(self) -> None:
        self.most_tokens = self.limits.tokens

    def add(self, ticket: Ticket) -> None:
        ticket.rank = self.rank(ticket.tokens)
        self.calls[ticket] = None
        self.ranks.setdefault(ticket.rank, {})[ticket] = None
        self.rows += ticket.count
        self.tokens += ticket.tokens
        self.small_tokens += ticket.tokens if ticket.rank == 0 else 0

    def drop(self, ticket: Ticket) -> int:
        """Forget a call's waiting rows; how many they were."""
        if ticket not in self.calls:
            return 0
        dropped = len(ticket.waiting)
        self._subtract(ticket.waiting)
        ticket.waiting.clear()
        self._forget(ticket)
        return dropped

    def next(self) -> list[Item]:
        """The next batch, taken out of the queue: small calls first, each rank in the order of arrival; once the call
        that waits longest is owed a batch, it is the first, after at most one more of smaller calls."""
        self.trying = self.probe is not None and self.tokens >= self.probe.most  # the largest batch is full, too
        if self.probe is not None:
            self._set_tokens(self.probe.budget if self.trying else self.most_tokens)
        oldest = next(iter(self.calls))
        smaller = min(self.ranks) < oldest.rank
        owed = oldest if self.owed >= 1.0 and (self.overtaken or not smaller) else None
        self.overtaken = smaller and owed is None
        window = self._window([owed] if owed else [])
        far_share = 1.0 if self.trying else FAR_SHARE  # a budget is tried full
        items = [window[i] for i in take(window, self.limits, far_share, owed)]
        self._owe(oldest, items)
        self._subtract(items)
        taken = set(items)
        for ticket in {item.ticket for item in items}:
            shown = [ticket.waiting.popleft() for _ in range(min(len(window), len(ticket.waiting)))]
            ticket.waiting.extendleft(item for item in reversed(shown) if item not in taken)
            if not ticket.waiting:
                self._forget(ticket)
        return items

    def _window(self, first: Sequence[Ticket]) -> list[Item]:
        """The rows that the next batch may be made of: those of `first`, then rank by rank."""
        window: list[Item] = []
        tokens = 0
        ranked = chain.from_iterable(self.ranks[rank] for rank in sorted(self.ranks))
        for ticket in chain(first, (one for one in ranked if one not in first)):
            most = WINDOW_ROWS - len(window)
            if ticket.batch_size is not None:
                most = min(most, WINDOW_BATCHES * ticket.batch_size)
            for item in islice(ticket.waiting, most):
                window.append(item)
                tokens += len(item)
                if tokens >= WINDOW_BUDGETS * self.limits.tokens:
                    return window
            if len(window) == WINDOW_ROWS:
                break
        return window

    def _owe(self, oldest: Ticket, items: list[Item]) -> None:
        """Count what the oldest call got of a batch against its share, in batches."""
        got = sum(len(item) for item in items if item.ticket is oldest) / max(sum(map(len, items)), 1)
        self.owed = max(0.0, self.owed + OLDEST_SHARE - got)

    def _forget(self, ticket: Ticket) -> None:
        del self.calls[ticket]
        del self.ranks[ticket.rank][ticket]
        if not self.ranks[ticket.rank]:
            del self.ranks[ticket.rank]

    def rank(self, tokens: int) -> int:
        """0 for a call of so many tokens that is small, then one more each time it is four times as large."""
        return ((SMALL * tokens // self.most_tokens).bit_length() + 1) // 2

    @property
    def wait_s(self) -> float:
        """Seconds until what is here now will be computed, at the least; 0 without a rate."""
        return (self.tokens + self.coming_tokens) / self._rate if self._rate else 0.0

    def ahead_s(self, tokens: int) -> float:
        """The part of `wait_s` that goes before a new call of so many tokens: other small ones', if it is small."""
        if self.rank(tokens) or not self._rate:
            return self.wait_s
        return self.small_tokens / self._rate / (1.0 - OLDEST_SHARE)

    @property
    def _rate(self) -> float:
        """Tokens a second that the device surely does not exceed by much."""
        return (self.tokens_per_s or 0.0) * (1.0 if self.sure else GUESS)

    def measure(self, items: Sequence[Item], took_s: float) -> None:
        """Learn the device's rate from a batch; faster is believed sooner than slower."""
        rate = sum(map(len, items)) / max(took_s, 1e-6)
        if not self._full(items):
            self.tokens_per_s = self.tokens_per_s and max(self.tokens_per_s, rate)
        elif not (self.sure and self.tokens_per_s):
            self.tokens_per_s, self.sure = rate, True
        else:
            self.tokens_per_s += (0.5 if rate > self.tokens_per_s else 0.2) * (rate - self.tokens_per_s)

    def tried(self, items: Sequence[Item], took_s: float) -> int | None:
        """A batch took so long, all told; the budget that the probe found, once it has, which is then the budget."""
        if self.probe is None or not self.trying or not self._full(items):
            return None
        found = self.probe.learn(sum(map(len, items)), took_s)
        if found is not None:
            self.probe, self.most_tokens = None, found
            self._set_tokens(found)
        return found

    def shrink(self, computed: int) -> None:
        """A batch of so many computed tokens had no room on the device: half of that is the budget from now on."""
        self.good, self.probe = 0, None
        self._set_tokens(min(self.limits.tokens, max(1, computed // 2)))

    def recover(self, items: Sequence[Item]) -> None:
        """A batch had room: after some that were well filled, a budget that was cut grows by a tenth."""
        if self.limits.tokens < self.most_tokens and self._full(items):
            self.good += 1
            if self.good >= RECOVER_BATCHES:
                self.good = 0
                self._set_tokens(
                    min(self.most_tokens, max(self.limits.tokens + 1, int(self.limits.tokens * RECOVER_BY)))
                )

    def _set_tokens(self, tokens: int) -> None:
        self.limits = replace(self.limits, tokens=tokens)

    def _full(self, items: Sequence[Item]) -> bool:
        """Whether a batch (shortest row first) used as much of the budget as one does where more waits than it holds."""
        computed = self.limits.computed(len(items[-1]), sum(map(len, items)), len(items))
        return computed >= FAR_SHARE * self.limits.tokens or 2 * len(items) >= self.limits.rows

    def _subtract(self, items: Collection[Item]) -> None:
        self.rows -= len(items)
        self.tokens -= sum(map(len, items))
        self.small_tokens -= sum(len(item) for item in items if item.ticket.rank == 0)
