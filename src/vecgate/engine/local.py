"""LocalEngine: texts in, rows and rankings out, on this process's one device thread.

The only place that normalises rows. Knows no HTTP and no device.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic, perf_counter, time
from typing import TypeVar

import numpy as np

from vecgate.core import (
    Applied,
    Backend,
    Batch,
    BatchReport,
    Call,
    Checkpoint,
    Cut,
    Embeddings,
    Memory,
    Method,
    ModelCard,
    Pieces,
    Ranking,
    State,
    Status,
    Task,
    Tokens,
    Vectors,
)
from vecgate.engine import ranking
from vecgate.engine.batcher import Batcher, Limits, Ticket
from vecgate.engine.names import Name, Names, names_of
from vecgate.engine.tokenizer import Tokenizer
from vecgate.errors import BackendFailed, DeadlineExceeded, InvalidRequest, NotReady, SpaceMismatch

log = logging.getLogger("vecgate.engine")
T = TypeVar("T")

INLINE_CHARACTERS = 2_000
"""Texts up to this many characters are tokenised on the loop (about 0.3 ms); longer ones on a thread."""
INLINE_NUMBERS = 262_144
"""Matrices up to this many float32 numbers are normalised on the loop (under a millisecond)."""
WARMUP_TOKENS = (8, 32, 128, 512)
"""Row lengths of the warm-up forwards, up to the model's limit."""
SYNONYMS = {"document": ("document", "passage", "corpus"), "query": ("query",)}
"""Prompt names that mean one of the two roles every model has; sentence-transformers' encode_document tries the same."""


@dataclass(slots=True)
class Model:
    """One served model: what is known before it is loaded, and what loading adds."""

    checkpoint: Checkpoint
    open: Callable[[], Backend]
    backend_name: str
    why: str = ""
    state: State = "loading"
    error: str | None = None
    tokenizer: Tokenizer = field(init=False)
    backend: Backend | None = None
    load_s: float | None = None
    warmup_s: float | None = None
    created: int = field(default_factory=lambda: int(time()))

    def __post_init__(self) -> None:
        self.tokenizer = Tokenizer(self.checkpoint)


class LocalEngine:
    """core.Engine on this process's device; `start` loads, `close` ends it.

    max_rows: most rows of one forward. batch_tokens: computed tokens of one forward (None: what the device likes).
    """

    def __init__(
        self,
        models: Sequence[Model],
        *,
        max_rows: int = 128,
        batch_tokens: int | None = None,
        on_batch: Callable[[BatchReport], None] | None = None,
    ) -> None:
        self._models = {model.checkpoint.name: model for model in models}
        self._names = Names(model.checkpoint for model in models)
        self._max_rows = max_rows
        self._batch_tokens = batch_tokens
        self._batcher = Batcher(on_batch)
        self._batcher.on_death = self._died
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="vecgate-tokenize")
        self._started_s = monotonic()
        self._death: str | None = None
        self._draining = False
        self._memory: Memory | None = None
        self._loading: list[Future[None]] = []
        self.on_death: Callable[[], None] = lambda: None

    # life

    def start(self) -> None:
        """Begin to load every model on the device thread; returns at once."""
        self._started_s = monotonic()
        self._batcher.start()
        for model in self._models.values():
            loading = self._batcher.run(partial(self._load, model))
            loading.add_done_callback(partial(self._loaded, model))
            self._loading.append(loading)

    async def settled(self) -> None:
        """Until every model that `start` began to load is ready or has failed."""
        await asyncio.gather(*map(asyncio.wrap_future, self._loading), return_exceptions=True)

    def drain(self) -> None:
        """Say that the end is near; work that is in goes on."""
        self._draining = True

    def close(self) -> None:
        """End the device thread and free the models; waiting calls fail."""
        for model in self._models.values():
            if model.backend is not None:
                self._batcher.run(model.backend.close)
        self._batcher.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _load(self, model: Model) -> None:
        """On the device thread: open, warm up, open the queue."""
        start_s = perf_counter()
        model.backend = model.open()
        model.load_s = perf_counter() - start_s
        model.state = "warming"
        self._warm(model, model.backend)
        card = model.backend.card
        limits = Limits(self._batch_tokens or card.batch_tokens, self._max_rows, card.pad_lengths)
        self._batcher.open(model.checkpoint.name, model.backend, limits)
        model.state = "ready"
        log.info("Model %s is ready on %s (%s).", model.checkpoint.name, card.device, card.dtype)

    def _loaded(self, model: Model, loading: Future[None]) -> None:
        """A model that could not be loaded stays failed and says why: in /health, the log and to every call."""
        error = loading.exception()
        if error is not None:
            model.error = str(error) or type(error).__name__
            model.state = "failed"
            log.critical("Model %s failed to load: %s", model.checkpoint.name, model.error, exc_info=error)

    def _warm(self, model: Model, backend: Backend) -> None:
        """One forward per usual length, so that no request pays for first-use work, and rows are known to be finite."""
        start_s = perf_counter()
        text = "warm " * max(WARMUP_TOKENS)
        limit = model.checkpoint.max_tokens
        for length in sorted({min(length, limit) for length in WARMUP_TOKENS}):
            rows = self._encode(model, [text], "", length, "end")
            if not np.isfinite(backend.forward(Batch(tuple(rows)))).all():
                raise BackendFailed(f"the warm-up row of {length} tokens is not finite")
        model.warmup_s = perf_counter() - start_s
        self._memory = backend.memory()

    def _encode(self, model: Model, texts: list[str], prompt: str, limit: int, cut: Cut) -> list[Tokens]:
        if model.checkpoint.task == "rerank":
            return model.tokenizer.encode_pairs("warm", texts, limit, cut)
        return model.tokenizer.encode(texts, prompt, limit, cut)

    def _died(self, error: BaseException) -> None:
        self._death = f"the device thread died: {error!r}"
        self.on_death()

    # what is so

    def status(self) -> Status:
        models = tuple(self._card(model) for model in self._models.values())
        errors = [model.error for model in self._models.values() if model.error]
        return Status(
            state=self._state([model.state for model in models]),
            models=models,
            queue=self._batcher.queue(),
            alive=self._batcher.alive and self._death is None,
            busy_s=self._batcher.busy_s,
            uptime_s=monotonic() - self._started_s,
            memory=self._memory,
            error=self._death or "; ".join(errors) or None,
        )

    def _state(self, states: list[State]) -> State:
        if self._death is not None:
            return "failed"
        if self._draining:
            return "draining"
        for state in ("failed", "loading", "warming"):
            if state in states:
                return state
        return "ready"

    def _card(self, model: Model) -> ModelCard:
        checkpoint = model.checkpoint
        card = ModelCard(
            name=checkpoint.name,
            aliases=names_of(checkpoint)[1:],
            task=checkpoint.task,
            family=checkpoint.family,
            state=model.state,
            max_tokens=checkpoint.max_tokens,
            pooling=checkpoint.pooling,
            normalize=checkpoint.normalize,
            prompts=checkpoint.prompts,
            default_prompt=checkpoint.default_prompt,
            created=model.created,
            weight_bytes=checkpoint.weight_bytes,
            revision=checkpoint.revision,
            space=checkpoint.fingerprint,
            backend=model.backend_name,
            why=model.why or None,
            load_s=model.load_s,
            warmup_s=model.warmup_s,
        )
        if model.backend is None:
            return card
        loaded = model.backend.card
        return replace(
            card,
            device=loaded.device,
            dtype=loaded.dtype,
            dimensions=loaded.dimensions,
            batch_tokens=self._batch_tokens or loaded.batch_tokens,
            weight_bytes=loaded.weight_bytes,
        )

    def resolve(self, model: str | None, task: Task | None = None) -> str:
        return self._names.any(model).name if task is None else self._names.find(model, task).model

    def _ready(self, name: Name) -> Model:
        """The loaded model; raises NotReady while it loads, and without a retry once it failed."""
        model = self._models[name.model]
        if self._death is not None:
            raise NotReady("The device thread died; the server is going down.", None)
        if model.state == "failed":
            raise NotReady(f"Model {name.model!r} failed to load; the server's log says why.", None)
        if model.state != "ready":
            raise NotReady(f"Model {name.model!r} is {model.state}; try again in a few seconds.")
        return model

    # embed

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
        expect: str | None = None,
        batch_size: int | None = None,
        max_tokens: int | None = None,
    ) -> Embeddings:
        name = self._names.find(model, "embed")
        found = self._ready(name)
        _check_space(found.checkpoint, expect)
        _check_dimensions(found, dimensions)
        role, prompt = prompt_of(found.checkpoint, role or name.role)
        async with _deadline(call):
            start_s = perf_counter()
            limit = min(found.checkpoint.max_tokens, max_tokens or found.checkpoint.max_tokens)
            rows = await self._tokenized(
                inputs, lambda: found.tokenizer.encode(inputs, prompt, limit, cut), extra=len(prompt)
            )
            tokenize_s = perf_counter() - start_s
            ticket = await self._batcher.submit(name.model, rows, batch_size)
            vectors = await self._finish(ticket, dimensions, normalize)
        return Embeddings(vectors, _applied(found.checkpoint, role, rows, tokenize_s, [ticket]))

    async def _finish(self, ticket: Ticket, dimensions: int | None, normalize: bool) -> Vectors:
        """Cut to `dimensions`, then L2: the only place that normalises."""
        assert ticket.vectors is not None
        vectors = ticket.vectors if dimensions is None else np.ascontiguousarray(ticket.vectors[:, :dimensions])
        if not normalize:
            return vectors
        if vectors.size <= INLINE_NUMBERS:
            return unit(vectors)
        return await asyncio.get_running_loop().run_in_executor(self._threads, unit, vectors)

    async def _tokenized(self, inputs: Sequence[str | Sequence[int]], encode: Callable[[], T], extra: int = 0) -> T:
        """`encode()` on the loop when it is short, on a thread otherwise."""
        size = 0
        for one in inputs:
            size += len(one) + extra
            if size > INLINE_CHARACTERS:
                return await asyncio.get_running_loop().run_in_executor(self._threads, encode)
        return encode()

    # rerank

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
        expect: str | None = None,
    ) -> Ranking:
        embeds, reranks = (self._names.first(task) is not None for task in ("embed", "rerank"))
        named = None if model is None or not model.strip() else self._names.any(model).task
        few = top_n is not None and top_n < len(documents)
        chosen = ranking.choose(method, named, embeds=embeds, reranks=reranks, few=few)
        if not documents:
            raise InvalidRequest("There must be at least one document.", "documents")
        async with _deadline(call):
            if chosen == "similarity":
                asked = model if named == "embed" else None
                return await self._by_similarity(asked, query, documents, top_n, max_tokens_per_document, cut, expect)
            asked = model if named == "rerank" else None
            if chosen == "cross-encoder" or top_n is None:
                everything = tuple(range(len(documents)))
                return await self._by_reranker(asked, query, documents, everything, top_n, max_tokens_per_document, cut)
            kept = await self._by_similarity(
                None, query, documents, ranking.shortlist_size(top_n), max_tokens_per_document, cut, expect
            )
            best = await self._by_reranker(asked, query, documents, kept.order, top_n, max_tokens_per_document, cut)
            return replace(best, method="bi+cross-encoder", applied=_both(kept.applied, best.applied))

    async def _by_similarity(
        self,
        model: str | None,
        query: str,
        documents: Sequence[str],
        top_n: int | None,
        limit: int | None,
        cut: Cut,
        expect: str | None,
    ) -> Ranking:
        name = self._names.find(model, "embed")
        found = self._ready(name)
        _check_space(found.checkpoint, expect)
        start_s = perf_counter()
        most = found.checkpoint.max_tokens
        _, prompt = prompt_of(found.checkpoint, "query")
        _, other = prompt_of(found.checkpoint, "document")

        def encode() -> list[Tokens]:
            asked = found.tokenizer.encode([query], prompt, most, cut)
            return asked + found.tokenizer.encode(documents, other, most, cut, limit)

        rows = await self._tokenized([query, *documents], encode)
        tokenize_s = perf_counter() - start_s
        ticket = await self._batcher.submit(name.model, rows)
        vectors = await self._finish(ticket, None, normalize=True)
        raw = ranking.cosines(vectors[0], vectors[1:])
        applied = _applied(found.checkpoint, None, rows[1:], tokenize_s, [ticket])
        return _ranked(raw, tuple(range(len(documents))), "similarity", top_n, applied, len(rows[0]))

    async def _by_reranker(
        self,
        model: str | None,
        query: str,
        documents: Sequence[str],
        kept: Sequence[int],
        top_n: int | None,
        limit: int | None,
        cut: Cut,
    ) -> Ranking:
        name = self._names.find(model, "rerank")
        found = self._ready(name)
        start_s = perf_counter()
        texts = [documents[i] for i in kept]
        most = found.checkpoint.max_tokens
        rows = await self._tokenized(
            texts,
            lambda: found.tokenizer.encode_pairs(query, texts, most, cut, limit),
            extra=len(query),
        )
        tokenize_s = perf_counter() - start_s
        ticket = await self._batcher.submit(name.model, rows)
        assert ticket.vectors is not None
        raw = ticket.vectors[:, 0].astype(np.float64)
        applied = _applied(found.checkpoint, None, rows, tokenize_s, [ticket])
        return _ranked(raw, kept, "cross-encoder", top_n, applied, 0)

    # tokens

    async def tokenize(self, model: str | None, texts: Sequence[str], *, specials: bool = True) -> tuple[Pieces, ...]:
        tokenizer = self._tokenizer(model)
        return await self._tokenized(texts, lambda: tokenizer.pieces(texts, specials))

    async def decode(
        self, model: str | None, ids: Sequence[Sequence[int]], *, skip_specials: bool = True
    ) -> tuple[str, ...]:
        tokenizer = self._tokenizer(model)
        return await self._tokenized(ids, lambda: tokenizer.decode(ids, skip_specials))

    def _tokenizer(self, model: str | None) -> Tokenizer:
        return self._models[self._names.any(model).name].tokenizer


def unit(vectors: Vectors) -> Vectors:
    """Rows of length 1, float32; a row without direction (all zero) is a failure, never an answer."""
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    if not (norms > 0.0).all():
        raise BackendFailed("The model gave a row without length for this input.")
    scaled: Vectors = (vectors / norms[:, None]).astype(np.float32)
    return scaled


def prompt_of(checkpoint: Checkpoint, role: str | None) -> tuple[str | None, str]:
    """The role applied and its prompt: none asked for means the checkpoint's default; query and document always exist.

    Raises InvalidRequest with the roles there are.
    """
    role = role or checkpoint.default_prompt
    if role is None:
        return None, ""
    for name in SYNONYMS.get(role, (role,)):
        if name in checkpoint.prompts:
            return role, checkpoint.prompts[name]
    if role in SYNONYMS:
        return role, ""
    known = ", ".join(sorted({*SYNONYMS, *checkpoint.prompts}))
    raise InvalidRequest(f"Role {role[:100]!r} does not exist for {checkpoint.name!r}; these do: {known}.", "role")


def _check_space(checkpoint: Checkpoint, expect: str | None) -> None:
    if expect is not None and expect != checkpoint.fingerprint:
        have = checkpoint.fingerprint or "not known yet"
        raise SpaceMismatch(f"The request expects vector space {expect[:100]!r}; this model's is {have}.", "expect")


def _check_dimensions(model: Model, dimensions: int | None) -> None:
    assert model.backend is not None
    width = model.backend.card.dimensions
    if dimensions is not None and not 1 <= dimensions <= width:
        raise InvalidRequest(
            f"dimensions is {dimensions}; {model.checkpoint.name!r} allows 1 to {width}.", "dimensions"
        )


@asynccontextmanager
async def _deadline(call: Call) -> AsyncIterator[None]:
    """Ends the work with DeadlineExceeded once the call's seconds are over."""
    try:
        async with asyncio.timeout(call.timeout_s) as scope:
            yield
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise DeadlineExceeded(f"The request took longer than {call.timeout_s:g} s.") from error


def _applied(
    checkpoint: Checkpoint, role: str | None, rows: Sequence[Tokens], tokenize_s: float, tickets: Sequence[Ticket]
) -> Applied:
    return Applied(
        model=checkpoint.name,
        role=role,
        tokens=tuple(len(row) for row in rows),
        original=tuple(row.original for row in rows),
        queue_s=sum(ticket.queue_s for ticket in tickets),
        tokenize_s=tokenize_s,
        forward_s=sum(ticket.forward_s for ticket in tickets),
        space=checkpoint.fingerprint,
    )


def _both(first: Applied, second: Applied) -> Applied:
    """The shortlist's and the cross-encoder's work as one: what the cross-encoder read, the seconds of both."""
    return replace(
        second,
        query_tokens=first.query_tokens + sum(first.tokens),
        queue_s=first.queue_s + second.queue_s,
        tokenize_s=first.tokenize_s + second.tokenize_s,
        forward_s=first.forward_s + second.forward_s,
    )


def _ranked(
    raw: np.ndarray[tuple[int], np.dtype[np.float64]],
    kept: Sequence[int],
    method: ranking.Chosen,
    top_n: int | None,
    applied: Applied,
    query_tokens: int,
) -> Ranking:
    order = ranking.best(raw, top_n)
    score = ranking.scores(raw, method)
    return Ranking(
        order=tuple(kept[i] for i in order),
        raw=tuple(raw[order].tolist()),
        scores=tuple(score[order].tolist()),
        method=method,
        applied=replace(applied, query_tokens=query_tokens),
    )
