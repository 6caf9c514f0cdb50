"""RemoteEngine: traits.Engine over engines in other processes, which it reaches through one function of bytes.

Names are known here; tokenizers, batches and devices are there. Knows no transport.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec

from vecgate.core import (
    BatchReport,
    Call,
    Cut,
    Embeddings,
    Method,
    ModelCard,
    Pieces,
    Queue,
    Ranking,
    State,
    Status,
    Task,
    pack,
    unpack,
)
from vecgate.engine import parcel
from vecgate.engine.merging import Lost, Post
from vecgate.engine.model import prompt_of
from vecgate.engine.names import Alias, Names
from vecgate.engine.parcel import Asked, Failure, Parcel, Reply
from vecgate.errors import DeadlineExceeded, NotReady, Overloaded, VecgateError

log = logging.getLogger("vecgate.engine")

Trip = Callable[[bytes], Awaitable[bytes]]
"""A packed Parcel to whichever replica is least busy, and its packed Reply; see parcel.Desk. Raises Lost where the replica
ended before it answered, Overloaded where none takes more."""

LOOK_S = 1.0
"""Between two looks at how the replicas are."""
LOOK_LIMIT_S = 10.0
FRESH_S = 15.0
"""How long a replica counts after it was last heard of."""
LEAST_S = 0.001
"""What a call is given that is sent at the last moment; none at all would mean no deadline to some."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What a replica last said of its queue."""

    at_s: float
    queue: Queue


class RemoteEngine:
    """traits.Owned over `trip`. status: a replica's, where one was asked already. lanes: see merging.Post; at the least, and
    one more than there are replicas.

    aliases: the settings', as the replicas have them. on_batch: told of the replicas' batches, each once over all gateways.
    on_shed: told of each call that is refused because too much waits.
    """

    def __init__(
        self,
        trip: Trip,
        *,
        aliases: Iterable[Alias] = (),
        status: Status | None = None,
        lanes: int = 2,
        on_batch: Callable[[BatchReport], None] = lambda _: None,
        on_shed: Callable[[], None] = lambda: None,
    ) -> None:
        self._trip = trip
        self._aliases = tuple(aliases)
        self._on_batch, self._on_shed = on_batch, on_shed
        self._lanes = lanes
        self._post = Post(self._send, lanes)
        self._heard: dict[str, Heard] = {}
        self._last: Status | None = None
        self._names: Names | None = None
        self._draining = False
        self._watch: asyncio.Task[None] | None = None
        self._started_s = monotonic()
        self.on_death: Callable[[], None] = lambda: None  # a replica's end is not ours
        self.on_ready: Callable[[], None] = lambda: None
        if status is not None:
            self._note(status)

    # life

    def start(self) -> None:
        """Begin to look how the replicas are; on the loop that will serve."""
        self._watch = asyncio.ensure_future(self._look())

    def drain(self) -> None:
        """Say that the end is near; work that is in goes on."""
        self._draining = True

    def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._post.close()

    def folders(self) -> dict[str, Path]:
        """None here: the models' files lie where the replicas are."""
        return {}

    async def _look(self) -> None:
        told = False
        while True:
            try:
                async with asyncio.timeout(LOOK_LIMIT_S):
                    await self._exchange(Parcel(status=True))
            except (TimeoutError, Lost, VecgateError):  # as calls are told, too
                pass
            except Exception as error:  # noqa: BLE001  the next look may find them well; without one, nobody ever would
                log.warning("The replicas could not be asked how they are: %s.", type(error).__name__)
            if not told and self._last is not None and self._last.state == "ready":
                told = True
                self.on_ready()
            await asyncio.sleep(LOOK_S)

    # what is so

    def status(self) -> Status:
        fresh = self._fresh()
        if self._last is None:
            return Status(self._state(fresh), (), Queue(0, 0, None), True, None, monotonic() - self._started_s)
        rates = [one.tokens_per_s for one in fresh if one.tokens_per_s is not None]
        queue = Queue(
            items=self._post.waiting + sum(one.items for one in fresh),
            tokens=sum(one.tokens for one in fresh),
            tokens_per_s=sum(rates) if rates else None,
            wait_s=min((one.wait_s for one in fresh), default=0.0),
        )
        uptime_s = monotonic() - self._started_s
        return replace(self._last, state=self._state(fresh), queue=queue, alive=True, uptime_s=uptime_s)

    def _fresh(self) -> list[Queue]:
        since_s = monotonic() - FRESH_S
        return [one.queue for one in self._heard.values() if one.at_s > since_s]

    def _state(self, fresh: Sequence[Queue]) -> State:
        """Without any replica it is loading: another one is on its way, or nobody can say more."""
        if self._draining:
            return "draining"
        return self._last.state if self._last is not None and fresh else "loading"

    def wait_s(self, tokens: int) -> float:
        """The least of the replicas': which one will take the call is not known here, and it asks again."""
        return min((one.wait_s for one in self._fresh()), default=0.0)

    def resolve(self, model: str | None, task: Task | None = None) -> str:
        names = self._known()
        return names.any(model).name if task is None else names.find(model, task).model

    def prompt(self, model: str | None, role: str | None) -> str:
        return prompt_of(self._known().any(model), role)[1]

    def _known(self) -> Names:
        if self._names is None:
            raise NotReady("No engine has answered yet; try again in a few seconds.")
        return self._names

    def _note(self, status: Status) -> None:
        if self._last is None or [card.name for card in self._last.models] != [card.name for card in status.models]:
            self._names = Names((self._bare(card) for card in status.models), self._aliases)
        self._last = status

    def _bare(self, card: ModelCard) -> ModelCard:
        """Without the settings' aliases, which Names is given beside it, as it is where the model is."""
        added = {name.casefold() for name, _, _ in self._aliases}
        return replace(card, aliases=tuple(name for name in card.aliases if name.casefold() not in added))

    # calls

    async def embed(
        self,
        call: Call,
        model: str | None,
        inputs: Sequence[str | Sequence[int]],
        *,
        role: str | None = None,
        dimensions: int | None = None,
        normalize: bool = True,
        cut: Cut = "end",
        batch_size: int | None = None,
        max_tokens: int | None = None,
    ) -> Embeddings:
        self._known().find(model, "embed")
        asked = parcel.Embed(call, model, inputs, role, dimensions, normalize, cut, batch_size, max_tokens)
        found: Embeddings = await self._ask(asked, sum(map(len, inputs)), call)
        return found

    async def rerank(
        self,
        call: Call,
        model: str | None,
        query: str,
        documents: Sequence[str],
        *,
        method: Method = "auto",
        top_n: int | None = None,
        max_tokens_per_document: int | None = None,
        cut: Cut = "end",
        max_tokens: int | None = None,
    ) -> Ranking:
        self._known()
        limits = top_n, max_tokens_per_document, cut, max_tokens
        asked = parcel.Rerank(call, model, query, documents, method, *limits)
        found: Ranking = await self._ask(asked, (1 + len(documents)) * len(query) + sum(map(len, documents)), call)
        return found

    async def tokenize(self, model: str | None, texts: Sequence[str], *, specials: bool = True) -> tuple[Pieces, ...]:
        asked = parcel.Tokenize(self.resolve(model), texts, specials)
        found: tuple[Pieces, ...] = await self._ask(asked, sum(map(len, texts)))
        return found

    async def decode(
        self, model: str | None, ids: Sequence[Sequence[int]], *, skip_specials: bool = True
    ) -> tuple[str, ...]:
        asked = parcel.Decode(self.resolve(model), ids, skip_specials)
        found: tuple[str, ...] = await self._ask(asked, sum(map(len, ids)))
        return found

    async def _ask(self, asked: Asked, size: int, call: Call | None = None) -> Any:
        """What the engine answers; raises as it did, and DeadlineExceeded where no answer comes in time. Calls share a
        trip with others of the same work for the same model, so that none waits for a slower one."""
        asked = parcel.fitting(asked)
        kind: Hashable = type(asked), asked.model
        timeout_s = None if call is None else call.timeout_s
        due_s = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout(timeout_s) as scope:
                return await self._post.ask(kind, (asked, due_s), size)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise DeadlineExceeded(f"The request took longer than {timeout_s:g} s.") from error
        except Overloaded:
            self._on_shed()
            raise

    async def _send(self, contents: Sequence[tuple[Asked, float | None]]) -> Sequence[Any]:
        """merging.Send: one trip."""
        now_s = asyncio.get_running_loop().time()
        calls = tuple(asked if due_s is None else _with(asked, due_s - now_s) for asked, due_s in contents)
        reply = await self._exchange(Parcel(calls))
        return [
            parcel.error_of(found, reply.replica) if isinstance(found, Failure) else parcel.result(asked, found)
            for asked, found in zip(calls, reply.outcomes, strict=True)
        ]

    async def _exchange(self, sent: Parcel) -> Reply:
        reply = unpack(Reply, await self._trip(pack(sent)))
        now_s = monotonic()
        kept: Mapping[str, Heard] = {name: one for name, one in self._heard.items() if one.at_s > now_s - FRESH_S}
        self._heard = {**kept, reply.replica: Heard(now_s, reply.queue)}
        self._post.lanes = max(self._lanes, len(self._heard) + 1)  # each has a trip, and one is on its way
        if reply.status is not None:
            self._note(reply.status)
        for report in reply.reports:
            self._on_batch(report)
        return reply


def _with(asked: Asked, left_s: float) -> Asked:
    """The call with the seconds that are left of its deadline."""
    if isinstance(asked, parcel.Embed | parcel.Rerank):
        call = msgspec.structs.replace(asked.call, timeout_s=max(left_s, LEAST_S))
        return msgspec.structs.replace(asked, call=call)
    return asked
