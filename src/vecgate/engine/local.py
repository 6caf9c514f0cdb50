"""LocalEngine: texts in, rows and rankings out, on this process's one device thread.

The only place that normalises rows. Knows no HTTP and no device.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from math import ceil
from pathlib import Path
from time import monotonic, perf_counter
from typing import TypeVar

import numpy as np

from vecgate.core import (
    BatchReport,
    Call,
    Cut,
    Embeddings,
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
from vecgate.engine import probe, ranking
from vecgate.engine.batcher import Batcher
from vecgate.engine.model import Model, prompt_of
from vecgate.engine.names import Alias, Names
from vecgate.engine.residents import Residents
from vecgate.engine.space import Search
from vecgate.engine.verify import Form, before_ready
from vecgate.engine.waiting import Limits
from vecgate.engine.work import Question, Work, both, distinct
from vecgate.errors import BackendFailed, DeadlineExceeded, InvalidRequest, NotReady, Overloaded
from vecgate.traits import Backend

log = logging.getLogger("vecgate.engine")
T = TypeVar("T")

INLINE_CHARACTERS = 2_000
"""Texts up to this many characters are tokenised on the loop (about 0.3 ms); longer ones on a thread."""
TOKENIZE_THREADS = 2
"""Over all calls; the tokenizers library itself uses more for a batch."""
CLOSE_S = 5.0
"""How long the end waits for the forward that runs."""
CHARACTERS_PER_TOKEN = 4
"""Of English; what a call that is still being tokenised is estimated by."""
INLINE_NUMBERS = 262_144
"""Matrices up to this many float32 numbers are normalised on the loop (under a millisecond)."""


class LocalEngine:
    """traits.Engine on this process's device; `start` loads, `close` ends it.

    max_rows: most rows of one forward. batch_tokens: computed tokens of one forward (None: what the device likes). cache:
    the folder where hashes of the models' files are remembered (None: nowhere). verify: what a model must show on its
    device before it is ready. idle_unload_min: minutes after which a model that nobody asked for is unloaded (0: none is).
    on_shed: told of each call that is refused because too much waits.
    """

    def __init__(
        self,
        models: Sequence[Model],
        *,
        aliases: Iterable[Alias] = (),
        max_rows: int = 128,
        batch_tokens: int | None = None,
        on_batch: Callable[[BatchReport], None] | None = None,
        cache: Path | None = None,
        verify: Form = "off",
        idle_unload_min: float = 0.0,
        on_shed: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_shed = on_shed
        self._verify, self._cache = verify, cache
        self._models = {model.name: model for model in models}
        self._names = Names((model.checkpoint for model in models), aliases)
        self._max_rows = max_rows
        self._batch_tokens = batch_tokens
        self._batcher = Batcher(on_batch)
        self._batcher.on_death = self._died
        self._residents = Residents(models, self._batcher, self._open, 60.0 * idle_unload_min)
        self._residents.on_ready = lambda: self.on_ready()
        self._threads = ThreadPoolExecutor(TOKENIZE_THREADS, thread_name_prefix="vecgate-tokenize")
        self._search = Search([model.space for model in models], cache)
        self._started_s = monotonic()
        self._death: str | None = None
        self._draining = False
        self.on_death: Callable[[], None] = lambda: None
        self.on_ready: Callable[[], None] = lambda: None

    # life

    def start(self) -> None:
        """Begin to load every model on the device thread; returns at once."""
        self._started_s = monotonic()
        self._batcher.start()
        self._search.start()
        self._residents.start()

    def folders(self) -> dict[str, Path]:
        """Where each model's files lie."""
        return {name: model.checkpoint.folder for name, model in self._models.items()}

    async def settled(self) -> None:
        """Until every model that `start` began to load is ready or has failed."""
        await self._residents.settled()

    async def on_device(self, name: str, job: Callable[[Model], T]) -> T:
        """`job(model)` on the device thread, between two batches."""
        async with self._ready(name) as model:
            return await asyncio.wrap_future(self._batcher.run(partial(job, model)))

    def drain(self) -> None:
        """Say that the end is near; work that is in goes on."""
        self._draining = True

    def close(self) -> None:
        """End the device thread and free the models; waiting calls fail."""
        self._search.close()
        settled = self._residents.close()
        self._batcher.close(CLOSE_S if settled else 0.0)  # a load can't be interrupted, and nothing waits for its end
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _open(self, model: Model, backend: Backend) -> None:
        """On the device thread: look at a loaded model's rows, and open its queue."""
        if self._verify != "off":
            before_ready(model, self._verify, self._cache)
        self._batcher.memory = backend.memory()
        card = backend.card
        self._names.check_width(model.name, card.dimensions)
        tokens, trial = probe.begin(self._batch_tokens, model.checkpoint.config, card, self._cache)
        limits = Limits(tokens, self._max_rows, card.pad_lengths)
        self._batcher.open(model.name, backend, limits, model.tokens_per_s, trial)
        log.info("Model %s is ready on %s (%s).", model.name, card.device, card.dtype)

    def _died(self, error: BaseException) -> None:
        self._end(f"The device thread died ({type(error).__name__}); the server's log has more.")

    def _end(self, why: str) -> None:
        self._death = why
        self.on_death()

    # what is so

    def status(self) -> Status:
        models = tuple(self._card(model) for model in self._models.values())
        errors = [model.error for model in self._models.values() if model.error]
        return Status(
            state=self._state(),
            models=models,
            queue=self._batcher.queue(),
            alive=self._batcher.alive and self._death is None,
            busy_s=self._batcher.busy_s,
            uptime_s=monotonic() - self._started_s,
            memory=self._batcher.memory,
            error=self._death or "; ".join(errors) or None,
        )

    def wait_s(self, tokens: int) -> float:
        return self._batcher.wait_s(tokens)

    def _state(self) -> State:
        """The whole engine's state: its end first, then the models'."""
        if self._death is not None:
            return "failed"
        if self._draining:
            return "draining"
        return self._residents.state

    def _card(self, model: Model) -> ModelCard:
        """With what only the engine knows: the settings' limit and aliases."""
        card, budget = model.card(), self._batcher.budget(model.name)
        return replace(
            card,
            aliases=self._names.aliases_of(model.name),
            virtual=self._names.virtual_of(model.name),
            batch_tokens=budget[0] if budget else self._batch_tokens or card.batch_tokens,
            batch_tokens_now=budget[1] if budget else None,
        )

    def resolve(self, model: str | None, task: Task | None = None) -> str:
        return self._names.any(model).name if task is None else self._names.find(model, task).model

    def prompt(self, model: str | None, role: str | None) -> str:
        return prompt_of(self._names.any(model), role)[1]

    def _ready(self, name: str) -> AbstractAsyncContextManager[Model]:
        """The loaded model, which stays so until the end; raises NotReady."""
        if self._death is not None:
            raise NotReady("The device thread died; the server is going down.", None)
        return self._residents.held(self._models[name])

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
        batch_size: int | None = None,
        max_tokens: int | None = None,
    ) -> Embeddings:
        name = self._names.find(model, "embed")
        async with self._deadline(call), self._ready(name.model) as found:
            found.check_dimensions(dimensions)
            dimensions = name.dimensions if dimensions is None else dimensions
            role, prompt = prompt_of(found.checkpoint, role or name.role)
            most = min(found.checkpoint.max_tokens, max_tokens or found.checkpoint.max_tokens)
            size = _size(inputs) + len(prompt) * len(inputs)
            await found.check_space(call.space)
            steps = found.tokenizer.encode_steps(inputs, prompt, most, cut)
            work = await self._rows(call, found, steps, size, most * len(inputs), batch_size)
            vectors = await self._finish(work.vectors, dimensions, normalize)
        return Embeddings(vectors, work.applied(role, dimensions=vectors.shape[1]))

    async def _rows(
        self,
        call: Call,
        model: Model,
        steps: Iterator[list[Tokens]],
        size: int,
        most: int,
        batch_size: int | None = None,
        *,
        alike_once: bool = False,
    ) -> Work:
        """Tokenise and compute: one row per item that `steps` gives, of `size` characters and `most` tokens in all.

        alike_once: equal items are computed once, so that they tie to the last bit, whatever batch they came into.
        """
        start_s = perf_counter()
        coming = min(size // CHARACTERS_PER_TOKEN, most)
        self._check_wait(call, model.name, coming)
        with self._batcher.coming(model.name, coming):
            rows = await self._stepwise(steps, size)
        tokenize_s = perf_counter() - start_s
        computed, places = distinct(rows) if alike_once else (rows, None)
        return Work(model, rows, await self._batcher.submit(model.name, computed, batch_size), tokenize_s, places)

    def _check_wait(self, call: Call, model: str, tokens: int) -> None:
        """Raises Overloaded where the call would wait past its deadline: guard has asked only whether any model has time,
        as it did not know which one is meant."""
        wait_s = self._batcher.wait_s(tokens, model)
        if wait_s > call.timeout_s:
            self._on_shed()
            retry_after_s = max(1, min(60, ceil(wait_s)))
            told = f"{wait_s:.0f} s of work wait for {model!r}; a request may take {call.timeout_s:.0f} s (REQUEST_TIMEOUT)"
            raise Overloaded(f"{told}; try again in {retry_after_s} s.", retry_after_s)

    async def _stepwise(self, steps: Iterator[Sequence[T]], size: int) -> list[T]:
        """All that `steps` gives: on the loop when its texts are short, otherwise each step in its turn on a thread, so
        that calls share the threads and one that leaves stops at the next step. size: in characters."""
        done: list[T] = []
        if size <= INLINE_CHARACTERS:
            for step in steps:
                done += step
            return done
        loop = asyncio.get_running_loop()
        ended: list[T] = []
        while (step := await loop.run_in_executor(self._threads, next, steps, ended)) is not ended:
            done += step
        return done

    async def _finish(self, vectors: Vectors, dimensions: int | None, normalize: bool) -> Vectors:
        """Cut to `dimensions`, then L2: the only place that normalises."""
        if dimensions is not None:
            vectors = np.ascontiguousarray(vectors[:, :dimensions])
        if not normalize:
            return vectors
        if vectors.size <= INLINE_NUMBERS:
            return unit(vectors)
        return await asyncio.get_running_loop().run_in_executor(self._threads, unit, vectors)

    @asynccontextmanager
    async def _deadline(self, call: Call) -> AsyncIterator[None]:
        """Ends the work with DeadlineExceeded once the call's seconds are over; where the device has long been stuck, the
        server ends too, for whoever restarts it."""
        try:
            async with asyncio.timeout(call.timeout_s) as scope:
                yield
        except TimeoutError as error:
            if not scope.expired():
                raise
            if self._batcher.stuck and self._death is None:
                log.critical("A forward has run for %.0f s and does not end.", self._batcher.busy_s)
                self._end("The device no longer answers; the server is going down.")
            raise DeadlineExceeded(f"The request took longer than {call.timeout_s:g} s.") from error

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
        max_tokens: int | None = None,
    ) -> Ranking:
        if not documents:
            raise InvalidRequest("There must be at least one document.", "documents")
        named = None if model is None or not model.strip() else self._names.any(model).task
        embeds, reranks = (self._names.first(task) is not None for task in ("embed", "rerank"))
        few = top_n is not None and top_n < len(documents)
        chosen = ranking.choose(method, named, embeds=embeds, reranks=reranks, few=few)
        bi, cross = (model if named == task else None for task in ("embed", "rerank"))
        asked = Question(query, documents, top_n, max_tokens_per_document, cut, max_tokens)
        name = self._names.find(bi, "embed") if chosen == "similarity" else self._names.find(cross, "rerank")
        async with self._deadline(call):
            async with self._ready(name.model) as model_in_charge:
                await model_in_charge.check_space(call.space)
            if chosen == "similarity":
                return await self._by_similarity(call, bi, asked)
            if chosen == "cross-encoder" or top_n is None:
                return await self._by_reranker(call, cross, asked, range(len(documents)))
            kept = await self._by_similarity(call, bi, replace(asked, top_n=ranking.shortlist_size(top_n)))
            best = await self._by_reranker(call, cross, asked, kept.order)
            applied = both(kept.applied, best.applied, kept.order)
            return replace(best, method="bi+cross-encoder", applied=applied)

    async def _by_similarity(self, call: Call, name: str | None, asked: Question) -> Ranking:
        async with self._ready(self._names.find(name, "embed").model) as model:
            most = asked.most(model)
            (_, first), (_, second) = (prompt_of(model.checkpoint, role) for role in ("query", "document"))
            steps = chain(
                model.tokenizer.encode_steps([asked.query], first, most, asked.cut, param="query"),
                model.tokenizer.encode_steps(asked.documents, second, most, asked.cut, asked.limit, param="documents"),
            )
            size = len(first) + len(asked.query) + len(second) * len(asked.documents) + _size(asked.documents)
            work = await self._rows(call, model, steps, size, most * (1 + len(asked.documents)), alike_once=True)
        vectors = await self._finish(work.vectors, None, normalize=True)
        raw = ranking.cosines(vectors[0], vectors[1:])
        return ranking.ranked(raw, range(len(raw)), "similarity", asked.top_n, work.applied(queries=1))

    async def _by_reranker(self, call: Call, name: str | None, asked: Question, kept: Sequence[int]) -> Ranking:
        """The documents of the indices `kept`, each read together with the query."""
        texts = [asked.documents[i] for i in kept]
        async with self._ready(self._names.find(name, "rerank").model) as model:
            most = asked.most(model)
            steps = model.tokenizer.encode_pairs_steps(asked.query, texts, most, asked.cut, asked.limit)
            size = _size(texts) + len(asked.query) * len(texts)
            work = await self._rows(call, model, steps, size, most * len(texts), alike_once=True)
        raw = work.vectors[:, 0].astype(np.float64)
        return ranking.ranked(raw, kept, "cross-encoder", asked.top_n, work.applied())

    # tokens

    async def tokenize(self, model: str | None, texts: Sequence[str], *, specials: bool = True) -> tuple[Pieces, ...]:
        tokenizer = self._models[self._names.any(model).name].tokenizer
        return tuple(await self._stepwise(tokenizer.pieces_steps(texts, specials), _size(texts)))

    async def decode(
        self, model: str | None, ids: Sequence[Sequence[int]], *, skip_specials: bool = True
    ) -> tuple[str, ...]:
        tokenizer = self._models[self._names.any(model).name].tokenizer
        return tuple(await self._stepwise(tokenizer.decode_steps(ids, skip_specials), _size(ids)))


def unit(vectors: Vectors) -> Vectors:
    """Rows of length 1, float32; a row without direction (all zero) is a failure, never an answer."""
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    if not (norms > 0.0).all():
        raise BackendFailed("The model gave a row without length for this input.", lasting=True)
    scaled: Vectors = (vectors / norms[:, None]).astype(np.float32)
    return scaled


def _size(texts: Sequence[str | Sequence[int]]) -> int:
    return sum(map(len, texts))
