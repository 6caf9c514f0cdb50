"""What passes between a RemoteEngine and the engine that answers for it: calls one way, results or errors the other.

Bytes in, bytes out, by core's msgpack; knows no transport.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from vecgate import errors
from vecgate.core import (
    BatchReport,
    Call,
    Cut,
    Embeddings,
    Method,
    Pieces,
    Queue,
    Ranking,
    Status,
    pack,
    unpack,
)
from vecgate.errors import VecgateError
from vecgate.traits import Engine

log = logging.getLogger("vecgate.engine")

REPORTS = 1_000
"""Batches that a replica remembers until somebody asks; each takes some hundred bytes."""
MOST = 2**63 - 1
"""What msgpack's integers hold on either side of 0."""


class Embed(msgspec.Struct, frozen=True, tag=True):
    """Engine.embed's arguments."""

    call: Call
    model: str | None
    inputs: Sequence[str | Sequence[int]]
    role: str | None
    dimensions: int | None
    normalize: bool
    cut: Cut
    batch_size: int | None
    max_tokens: int | None

    async def by(self, engine: Engine) -> Embeddings:
        return await engine.embed(
            self.call,
            self.model,
            self.inputs,
            role=self.role,
            dimensions=self.dimensions,
            normalize=self.normalize,
            cut=self.cut,
            batch_size=self.batch_size,
            max_tokens=self.max_tokens,
        )


class Rerank(msgspec.Struct, frozen=True, tag=True):
    """Engine.rerank's arguments."""

    call: Call
    model: str | None
    query: str
    documents: Sequence[str]
    method: Method
    top_n: int | None
    max_tokens_per_document: int | None
    cut: Cut
    max_tokens: int | None

    async def by(self, engine: Engine) -> Ranking:
        return await engine.rerank(
            self.call,
            self.model,
            self.query,
            self.documents,
            method=self.method,
            top_n=self.top_n,
            max_tokens_per_document=self.max_tokens_per_document,
            cut=self.cut,
            max_tokens=self.max_tokens,
        )


class Tokenize(msgspec.Struct, frozen=True, tag=True):
    model: str | None
    texts: Sequence[str]
    specials: bool

    async def by(self, engine: Engine) -> tuple[Pieces, ...]:
        return await engine.tokenize(self.model, self.texts, specials=self.specials)


class Decode(msgspec.Struct, frozen=True, tag=True):
    model: str | None
    ids: Sequence[Sequence[int]]
    skip_specials: bool

    async def by(self, engine: Engine) -> tuple[str, ...]:
        return await engine.decode(self.model, self.ids, skip_specials=self.skip_specials)


Asked = Embed | Rerank | Tokenize | Decode
A = TypeVar("A", bound=Asked)


def fitting(asked: A) -> A:
    """The call with no number that can't be packed, which would fail all that travel with it; what is beyond every limit
    stays beyond."""
    numbers = ((name, getattr(asked, name)) for name in asked.__struct_fields__)
    beyond = {
        name: max(-MOST, min(MOST, number))
        for name, number in numbers
        if isinstance(number, int) and abs(number) > MOST
    }
    return msgspec.structs.replace(asked, **beyond) if beyond else asked


class Parcel(msgspec.Struct, frozen=True):
    """Calls that travel together; `status`: tell the engine's, too."""

    calls: tuple[Asked, ...] = ()
    status: bool = False


class Failure(msgspec.Struct, frozen=True):
    """An error on its way: its type, its words, and what else it holds. kind: "" for one that nobody foresaw."""

    kind: str
    message: str
    details: dict[str, Any] = {}


class Reply(msgspec.Struct, frozen=True):
    """An outcome per call, packed, in the parcel's order. replica: who answered; reports: its batches since its last reply."""

    replica: str
    queue: Queue
    outcomes: tuple[bytes | Failure, ...]
    reports: tuple[BatchReport, ...] = ()
    status: Status | None = None


class Desk:
    """The far side: answers parcels by its engine. reports: what the engine's `on_batch` adds, and a reply takes."""

    def __init__(self, replica: str, engine: Engine, reports: deque[BatchReport] | None = None) -> None:
        self._replica, self._engine = replica, engine
        self._reports = deque[BatchReport](maxlen=REPORTS) if reports is None else reports

    async def answer(self, data: bytes) -> bytes:
        """Makes the parcel's calls at once, so that their rows share batches; ends them where it is cancelled."""
        parcel = unpack(Parcel, data)
        found = await asyncio.gather(*(one.by(self._engine) for one in parcel.calls), return_exceptions=True)
        status = self._engine.status()
        return pack(
            Reply(
                replica=self._replica,
                queue=status.queue,
                outcomes=tuple(self._outcome(one) for one in found),
                reports=tuple(self._reported()),
                status=status if parcel.status else None,
            )
        )

    def _outcome(self, found: object) -> bytes | Failure:
        if isinstance(found, BaseException):
            if not isinstance(found, VecgateError):
                log.error("A call failed in a way that nobody foresaw.", exc_info=found)
            return failure(found)
        return pack(found)

    def _reported(self) -> Iterator[BatchReport]:
        while self._reports:
            yield self._reports.popleft()


def failure(error: BaseException) -> Failure:
    """The error as it travels, as what errors.py knows it; of one that nobody foresaw only the type, as its words may hold
    anything."""
    if not isinstance(error, VecgateError):
        return Failure("", type(error).__name__)
    kind = next(kind for kind in type(error).__mro__ if getattr(errors, kind.__name__, None) is kind)
    details = {name: value for name, value in vars(error).items() if not name.startswith("_")}
    return Failure(kind.__name__, str(error), details)


def error_of(found: Failure, replica: str) -> Exception:
    """The error that left, of the same type and with the same words."""
    kind = getattr(errors, found.kind, None) if found.kind else None
    if isinstance(kind, type) and issubclass(kind, VecgateError):
        return kind(found.message, **found.details)
    return RuntimeError(f"{found.message} in {replica}; its log has the stack")


def result(asked: Asked, data: bytes) -> Any:
    """The call's own result out of its packed form."""
    kinds: dict[type, Any] = {
        Embed: Embeddings,
        Rerank: Ranking,
        Tokenize: tuple[Pieces, ...],
        Decode: tuple[str, ...],
    }
    return unpack(kinds[type(asked)], data)
