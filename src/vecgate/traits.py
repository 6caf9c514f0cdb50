"""The traits: Backend, all that the engine knows of a device; Engine, all that a protocol knows of the engine; and Owned, what
the app knows beside it of one that it begins and ends.

Knows the nouns of core.py, and neither of the things themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from vecgate.core import (
    BackendCard,
    Batch,
    Call,
    Cut,
    Embeddings,
    Memory,
    Method,
    Pieces,
    Ranking,
    Status,
    Task,
    Vectors,
)


class Backend(Protocol):
    """One loaded model on one device. Every method is called on the device thread only."""

    @property
    def card(self) -> BackendCard: ...

    def forward(self, batch: Batch) -> Vectors:
        """(B, D) float32 rows in the batch's order, pooled but not normalised; D == 1 (the logit) for a reranker."""
        ...

    def memory(self) -> Memory: ...

    def trim(self) -> None:
        """Give cached device memory back."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Engine(Protocol):
    """All that a protocol may know. A `model` of None is the default one of the task."""

    def status(self) -> Status: ...

    def wait_s(self, tokens: int) -> float:
        """Seconds of work that go before a new call of about so many tokens, at the least, whatever model it is for; cheap,
        as every request asks. embed and rerank raise Overloaded where those of their model are more than the call has."""
        ...

    def resolve(self, model: str | None, task: Task | None = None) -> str:
        """The true name behind a name or alias, without role; raises ModelNotFound with the names that exist."""
        ...

    def prompt(self, model: str | None, role: str | None) -> str:
        """The text that stands before each input in that role; None: in the checkpoint's default one. Raises
        InvalidRequest with the roles there are."""
        ...

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
        """Rows of texts or of the model's own token ids. `batch_size`: most rows of this call in one forward.
        `max_tokens`: where `cut` applies, specials and prompt included, if that is below the model's limit."""
        ...

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
        """`max_tokens`: as in `embed`, of what the model reads at once: a pair, or each text on its own."""
        ...

    async def tokenize(
        self, model: str | None, texts: Sequence[str], *, specials: bool = True
    ) -> tuple[Pieces, ...]: ...

    async def decode(
        self, model: str | None, ids: Sequence[Sequence[int]], *, skip_specials: bool = True
    ) -> tuple[str, ...]: ...


@runtime_checkable
class Owned(Engine, Protocol):
    """An engine that lives as long as the app: started and closed on the app's loop.

    on_ready: called once when every model is loaded. on_death: where no call can be answered any more. Either on any thread.
    """

    on_ready: Callable[[], None]
    on_death: Callable[[], None]

    def start(self) -> None:
        """Begin to load every model; returns at once."""
        ...

    def drain(self) -> None:
        """Say that the end is near; work that is in goes on."""
        ...

    def close(self) -> None: ...

    def folders(self) -> Mapping[str, Path]:
        """Where each model's files lie, of those that are on this machine."""
        ...
