"""The embed and rerank commands: texts in, vectors or a ranking out, by an engine in this process or a server elsewhere.

Knows settings and files, no flags: cli.py reads those.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from shutil import copyfileobj
from typing import BinaryIO, Literal, Protocol, cast

import msgspec
from tqdm import tqdm

from vecgate import bulk, texts
from vecgate.app import build_engine
from vecgate.client import Ranked, connected
from vecgate.core import Call, Method, Task, Vectors
from vecgate.engine.local import LocalEngine
from vecgate.errors import CommandError
from vecgate.settings import NO_MODEL, Settings

RankForm = Literal["text", "json", "jsonl"]

AGES_S = 7 * 86_400.0
"""The deadline of a call in this process: nobody waits for it but the user, who has Ctrl-C."""
REQUESTS_IN_FLIGHT = 8
"""Enough for a server to have the next batch ready, few enough to leave room for its other clients."""


@dataclass(frozen=True, slots=True)
class Source:
    """Texts that are given, or a file of them; file None with no texts is standard input."""

    given: Sequence[str] = ()
    file: Path | None = None
    form: texts.Form = "txt"
    fields: texts.Fields = field(default_factory=texts.Fields)

    @property
    def name(self) -> str:
        return "standard input" if self.file is None else str(self.file)


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of the texts. url: a server that does it. model: as named by a flag, for the server to find. space: the
    vector space that the answer must be of."""

    url: str | None = None
    model: str | None = None
    space: str | None = None
    role: str | None = None
    dimensions: int | None = None
    normalize: bool = True


@dataclass(frozen=True, slots=True)
class Done:
    """rows: of the whole output. cut: texts over the model's limit."""

    rows: int
    cut: int


class Answers(Protocol):
    """What both an engine here and a server elsewhere do; `model` is NAME or NAME:role."""

    async def name(self, asked: str | None, task: Task) -> str: ...

    async def embed(
        self, texts: Sequence[str], model: str, *, dimensions: int | None = None, normalize: bool = True
    ) -> tuple[Vectors, int]: ...

    async def rerank(
        self, query: str, documents: Sequence[str], *, model: str | None, method: Method, top_n: int | None
    ) -> Ranked: ...


class Inside:
    """An engine in this process, which loads while its first caller waits."""

    def __init__(self, engine: LocalEngine, settings: Settings, space: str | None) -> None:
        self._engine = engine
        self._cut = settings.truncate
        self._call = Call("command", AGES_S, space)
        self._ready = False

    async def name(self, asked: str | None, task: Task) -> str:
        return self._engine.resolve(asked, task)

    async def embed(
        self, texts: Sequence[str], model: str, *, dimensions: int | None = None, normalize: bool = True
    ) -> tuple[Vectors, int]:
        await self._loaded()
        found = await self._engine.embed(
            self._call, model, texts, dimensions=dimensions, normalize=normalize, cut=self._cut
        )
        return found.vectors, sum(was > now for was, now in zip(found.applied.original, found.applied.tokens))

    async def rerank(
        self, query: str, documents: Sequence[str], *, model: str | None, method: Method, top_n: int | None
    ) -> Ranked:
        await self._loaded()
        found = await self._engine.rerank(
            self._call, model, query, documents, method=method, top_n=top_n, cut=self._cut
        )
        return Ranked(found.applied.model, found.method, tuple(zip(found.order, found.scores)))

    async def _loaded(self) -> None:
        if self._ready:
            return
        await self._engine.settled()
        status = self._engine.status()
        if status.state == "failed":
            raise CommandError(f"The model failed to load: {str(status.error).rstrip('.')}; --debug shows where.")
        self._ready = True


# embed


class Embedding:
    """One run of the embed command: every text of the source as a vector in the target, a path or a stream."""

    def __init__(
        self, settings: Settings, source: Source, wish: Wish, target: Path | BinaryIO, form: bulk.Form
    ) -> None:
        self._settings = settings
        self._source = source
        self._wish = wish
        self._target = target
        self._form = form
        self._output: bulk.Output | None = None

    def run(self, *, progress: bool) -> Done:
        """Raises CommandError, ConfigError and VecgateError; KeyboardInterrupt says what is kept."""
        with _opened(self._source, measured=self._form == "npy") as (stream, read):
            if read.rows == 0:
                raise CommandError(f"There is nothing to embed in {self._source.name}.")
            alone = replace(self._settings, models=self._settings.models[:1])
            engine = None if self._wish.url else build_engine(alone)  # here, where Ctrl-C ends a download
            try:
                return asyncio.run(self._run(stream, read, engine, progress))
            except KeyboardInterrupt:
                raise KeyboardInterrupt(self._output.kept() if self._output else "") from None

    async def _run(
        self, stream: BinaryIO | None, read: texts.Input, engine: LocalEngine | None, progress: bool
    ) -> Done:
        wish, settings = self._wish, self._settings
        async with _answers(engine, settings, wish) as answers:
            model = await answers.name(wish.model, "embed")
            self._output = output = self._begun(model, read)
            named = f"{model}:{wish.role}" if wish.role else model

            async def embed(block: Sequence[str]) -> tuple[Vectors, int]:
                return await answers.embed(block, named, dimensions=wish.dimensions, normalize=wish.normalize)

            with tqdm(
                total=read.rows,
                initial=output.state.place.rows,
                unit=" rows",
                disable=not progress,
                dynamic_ncols=True,
            ) as bar:
                await bulk.run(
                    embed,
                    self._rows(stream, output.state.place),
                    output,
                    block_rows=settings.batch_size,
                    in_flight=REQUESTS_IN_FLIGHT
                    if wish.url
                    else 4 * ceil(settings.max_batch_size / settings.batch_size),
                    on_rows=bar.update,
                )
        return Done(output.state.place.rows, output.state.cut)

    def _begun(self, model: str, read: texts.Input) -> bulk.Output:
        """The output, at its beginning or where a run with the same wishes was broken off."""
        wish, source = self._wish, self._source
        asked = {
            "model": model,
            "role": wish.role,
            "dimensions": wish.dimensions,
            "normalize": wish.normalize,
            "format": self._form,
            "input format": source.form,
            "text field": source.fields.text,
            "id field": source.fields.id,
        }
        resumable = isinstance(self._target, Path) and source.file is not None and read.sha256 is not None
        state = bulk.State(input=read, asked=asked)
        if resumable and isinstance(self._target, Path):
            state = bulk.begin(self._target, read, asked)
        return bulk.Output(self._target, self._form, state, with_ids=source.form == "jsonl", resumable=resumable)

    def _rows(self, stream: BinaryIO | None, start: texts.Place) -> Iterator[texts.Row]:
        source = self._source
        if stream is None:
            return texts.of(source.given)
        if start.offset:
            stream.seek(start.offset)
        return texts.read(stream, source.name, source.form, source.fields, start)


# rerank


def rerank(
    settings: Settings, query: str, source: Source, wish: Wish, *, method: Method, top_n: int | None
) -> tuple[Ranked, Sequence[texts.Row]]:
    """The ranking, and the documents its indices mean."""
    with _opened(source, measured=False) as (stream, _):
        rows = texts.of(source.given) if stream is None else texts.read(stream, source.name, source.form, source.fields)
        documents = list(rows)
    if not documents:
        raise CommandError(f"There is no document to rank in {source.name}.")
    next(texts.of([query]))  # refuses what is no text
    settings = replace(settings, models=settings.models[:1], rerankers=settings.rerankers[:1])
    if settings.rerankers and method in ("auto", "cross-encoder"):
        # the embedding model has no part in it, nor has what is said of it
        settings = replace(settings, models=(NO_MODEL,), served_name=None, task=None, pooling=None, prompts=())
    engine = None if wish.url else build_engine(settings)

    async def ask() -> Ranked:
        async with _answers(engine, settings, wish) as answers:
            found = [row.text for row in documents]
            return await answers.rerank(query, found, model=wish.model, method=method, top_n=top_n)

    return asyncio.run(ask()), documents


def written(query: str, ranked: Ranked, documents: Sequence[texts.Row], form: RankForm, *, with_ids: bool) -> bytes:
    """The ranking for a reader (score, index or id, text), as one JSON object, or as one a line."""
    if form == "text":
        return b"".join(
            f"{score:.4f}  {documents[index].id.decode()}  {_one_line(documents[index].text)}\n".encode()
            for index, score in ranked.results
        )
    results = [
        {
            "index": index,
            **({"id": msgspec.Raw(documents[index].id)} if with_ids else {}),
            "score": score,
            "text": documents[index].text,
        }
        for index, score in ranked.results
    ]
    if form == "jsonl":
        return b"".join(msgspec.json.encode(one) + b"\n" for one in results)
    whole = {"query": query, "model": ranked.model, "method": ranked.method, "results": results}
    return msgspec.json.format(msgspec.json.encode(whole)) + b"\n"


def _one_line(text: str) -> str:
    """A text that can do nothing to a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


# both


@asynccontextmanager
async def _answers(engine: LocalEngine | None, settings: Settings, wish: Wish) -> AsyncIterator[Answers]:
    """The engine, loading, or the server of the wish."""
    if engine is None:
        assert wish.url is not None
        key, timeout_s = settings.key, settings.request_timeout_s
        async with connected(wish.url, key, timeout_s=timeout_s, space=wish.space) as remote:
            yield remote
        return
    engine.start()
    task = asyncio.current_task()
    try:
        yield Inside(engine, settings, wish.space)
    finally:
        if task is None or not task.cancelling():  # on Ctrl-C the process ends, and a model may still be loading
            engine.close()


@contextmanager
def _opened(source: Source, *, measured: bool) -> Iterator[tuple[BinaryIO | None, texts.Input]]:
    """The stream to read (None: the texts are given) and what is known of it.

    A file is measured; of what can be read only once (a pipe) nothing is known, unless it must be: then it is copied.
    """
    if source.given:
        yield None, texts.Input(rows=len(source.given))
        return
    with sys.stdin.buffer if source.file is None else source.file.open("rb") as stream:
        if source.file is not None and source.file.is_file():
            yield stream, texts.measure(stream, source.name, source.form)
        elif measured:
            with tempfile.TemporaryFile() as copy:
                copyfileobj(stream, copy)
                copy.seek(0)
                yield copy, texts.measure(copy, source.name, source.form)
        else:
            yield cast("BinaryIO", Interruptible(stream)), texts.Input()


class Interruptible:
    """A stream whose reading Ctrl-C ends: asyncio's own way waits for the loop, which waits for the next line."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readline(self, limit: int = -1) -> bytes:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            if _interrupted():
                raise KeyboardInterrupt
            return self._stream.readline(limit)
        finally:
            signal.signal(signal.SIGINT, before)


def _interrupted() -> bool:
    """Whether Ctrl-C came while asyncio's own way was in force."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop, which has no way of its own
        return False
    return task is not None and task.cancelling() > 0
