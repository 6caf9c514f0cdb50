"""An engine small enough to read, and a way to call the app without a socket: protocols are tested without the real one.

Words it knows are one token, every other character is one; ids decode back to what they came from. Rows are sums of a
fixed row per id, so texts that share words are near each other, on every machine alike.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec
import numpy as np
from litestar import Litestar
from litestar.types import ASGIApp, Receive, Scope, Send

from vecgate.core import (
    Applied,
    Call,
    Check,
    Cut,
    Embeddings,
    Memory,
    Method,
    ModelCard,
    Pieces,
    Queue,
    Ranking,
    Record,
    Status,
    Task,
    Vectors,
    Verification,
    VirtualName,
)
from vecgate.errors import InputTooLong, InvalidRequest, ModelNotFound, SpaceMismatch, VecgateError
from vecgate.protocols import Site, routes
from vecgate.protocols.mounting import mount

CLS, SEP = 101, 102
WORDS = re.findall(
    r"\w+",
    """
    the a an of to and in is it that for on with as was at by i you hello world test food delicious service slow where
    station paris capital france berlin germany cat cats sat mat dog query document passage search machine learning
    embedding vector banana
    """,
)
FIRST_WORD, FIRST_CHARACTER, JOINED = 1_000, 200_000, 1_200_000
"""Ids from FIRST_WORD are WORDS (ids that cl100k has too), from FIRST_CHARACTER lone characters, + JOINED those that go on
a word (ids beyond cl100k's)."""
DIMENSIONS = 8
MAX_TOKENS = 32
SPACE = "stub-space"
VERIFIED = Verification("quick", "passed", 1_700_000_001.5, 0.125, (Check("batch", "passed", "3 texts", 1.0, 1e-7),))


def pieces_of(text: str) -> list[tuple[int, str, int, int]]:
    found = []
    for match in re.finditer(r"\w+|[^\w\s]", text.lower()):
        if match[0] in WORDS:
            found.append((FIRST_WORD + WORDS.index(match[0]), match[0], match.start(), match.end()))
            continue
        for i, character in enumerate(match[0]):
            at = match.start() + i
            found.append((FIRST_CHARACTER + ord(character) + (JOINED if i else 0), character, at, at + 1))
    return found


def text_of(ids: Iterable[int], skip_specials: bool) -> str:
    text = ""
    for one in ids:
        if one in (CLS, SEP):
            text += "" if skip_specials else {CLS: " [CLS]", SEP: " [SEP]"}[one]
        elif FIRST_WORD <= one < FIRST_WORD + len(WORDS):
            text += " " + WORDS[one - FIRST_WORD]
        elif FIRST_CHARACTER <= one < FIRST_CHARACTER + 0x110000:
            text += " " + chr(one - FIRST_CHARACTER)
        elif FIRST_CHARACTER + JOINED <= one < FIRST_CHARACTER + JOINED + 0x110000:
            text += chr(one - FIRST_CHARACTER - JOINED)
        else:
            raise InvalidRequest(f"Token id {one} is not in the vocabulary.", "input")
    return text.strip()


def row_of(ids: Sequence[int]) -> Vectors:
    """(DIMENSIONS,) the sum of one hash-made row per id."""
    digests = [hashlib.sha256(str(one).encode()).digest() for one in ids]
    rows = [np.frombuffer(digest, "<i4") / 2**31 for digest in digests]
    return np.asarray(np.sum(rows, axis=0), np.float32)


@dataclass
class StubEngine:
    """traits.Engine over the word-level tokeniser. `fail`: raised by embed and rerank. `calls`: what embed was given;
    `rankings`: what rerank was."""

    name: str = "org/stub-embed"
    aliases: tuple[str, ...] = ("stub-embed", "stub", "text-embedding-3-small")
    max_tokens: int = MAX_TOKENS
    fail: VecgateError | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    virtual: tuple[VirtualName, ...] = ()
    calls: list[dict[str, Any]] = field(default_factory=list)
    rankings: list[dict[str, Any]] = field(default_factory=list)

    def status(self) -> Status:
        card = ModelCard(
            name=self.name,
            aliases=self.aliases,
            task="embed",
            family="stub",
            state="ready",
            max_tokens=self.max_tokens,
            pooling=("mean",),
            normalize=True,
            prompts=self.prompts,
            default_prompt=None,
            created=1_700_000_000,
            weight_bytes=1_000,
            space=SPACE,
            backend="stub",
            device="none",
            dtype="float32",
            dimensions=DIMENSIONS,
            batch_tokens=1_024,
            why="it is the only one",
            load_s=0.5,
            warmup_s=0.25,
            verification=VERIFIED,
            virtual=self.virtual,
        )
        return Status("ready", (card,), Queue(0, 0, None), True, None, 1.0, Memory(0))

    def wait_s(self, tokens: int) -> float:
        return 0.0

    def resolve(self, model: str | None, task: Task | None = None) -> str:
        if model is None or not model.strip() or model.partition(":")[0] in (self.name, *self.aliases):
            return self.name
        known = ", ".join((self.name, *self.aliases))
        raise ModelNotFound(f"The model {model!r} does not exist here; these do: {known}.")

    def prompt(self, model: str | None, role: str | None) -> str:
        self.resolve(model)
        if role is None or role in ("query", "document") or role in self.prompts:
            return self.prompts.get(role or "", "")
        raise InvalidRequest(f"Role {role!r} does not exist for {self.name!r}; these do: document, query.", "role")

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
        self.resolve(model, "embed")
        given = {"role": role, "cut": cut, "batch_size": batch_size, "dimensions": dimensions, "max_tokens": max_tokens}
        self.calls.append({"model": model, "inputs": inputs, **given})
        if self.fail is not None:
            raise self.fail
        if call.space not in (None, SPACE):
            raise SpaceMismatch(f"vector_space_mismatch: {call.space!r} is expected, {SPACE!r} served.", "space")
        self.prompt(model, role)
        if dimensions is not None and not 1 <= dimensions <= DIMENSIONS:
            raise InvalidRequest(f"dimensions is {dimensions}; {self.name!r} allows 1 to {DIMENSIONS}.", "dimensions")
        rows = [self._ids(one, cut, max_tokens) for one in inputs]
        vectors = np.stack([row_of(ids) for ids, _ in rows])[:, :dimensions]
        if normalize:
            vectors = vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        applied = msgspec.structs.replace(self._applied(role, rows), dimensions=vectors.shape[1])
        return Embeddings(np.ascontiguousarray(vectors, np.float32), applied)

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
        self.resolve(model)
        given = {"method": method, "top_n": top_n, "max_tokens_per_document": max_tokens_per_document, "cut": cut}
        asked = {"model": model, "query": query, "documents": documents, "max_tokens": max_tokens}
        self.rankings.append({**asked, **given})
        if self.fail is not None:
            raise self.fail
        if method in ("cross-encoder", "bi+cross-encoder"):
            raise InvalidRequest("No reranker is loaded, so method 'similarity' is the only one.", "method")
        found = await self.embed(call, model, [query, *documents], cut=cut, max_tokens=max_tokens)
        cosines = (found.vectors[1:] @ found.vectors[0]).astype(np.float64)
        order = np.argsort(-cosines, kind="stable")[:top_n]
        rows = [self._ids(one, cut, max_tokens) for one in documents]
        return Ranking(
            order=tuple(order.tolist()),
            raw=tuple(cosines[order].tolist()),
            scores=tuple(((1 + cosines[order]) / 2).tolist()),
            method="similarity",
            applied=self._applied(None, rows, query_tokens=len(self._ids(query, cut)[0])),
        )

    async def tokenize(self, model: str | None, texts: Sequence[str], *, specials: bool = True) -> tuple[Pieces, ...]:
        self.resolve(model)
        return tuple(self._pieces(text, specials) for text in texts)

    async def decode(
        self, model: str | None, ids: Sequence[Sequence[int]], *, skip_specials: bool = True
    ) -> tuple[str, ...]:
        self.resolve(model)
        return tuple(text_of(one, skip_specials) for one in ids)

    def _pieces(self, text: str, specials: bool) -> Pieces:
        found = [(*piece, False) for piece in pieces_of(text)]
        if specials:
            found = [(CLS, "[CLS]", 0, 0, True), *found, (SEP, "[SEP]", 0, 0, True)]
        ids, texts, starts, stops, special = zip(*found, strict=True) if found else ((), (), (), (), ())
        return Pieces(ids, texts, starts, stops, special)

    def _ids(self, one: str | Sequence[int], cut: Cut, max_tokens: int | None = None) -> tuple[list[int], int]:
        """Ids with specials after the cut, and how many there were before it."""
        bare = (
            [piece[0] for piece in pieces_of(one)] if isinstance(one, str) else [i for i in one if i not in (CLS, SEP)]
        )
        text_of(bare, False)  # refuses ids outside the vocabulary
        original, limit = len(bare) + 2, min(self.max_tokens, max_tokens or self.max_tokens)
        if original > limit and cut == "refuse":
            raise InputTooLong(f"An input has {original} tokens; the limit is {limit}.", "input")
        room = limit - 2
        kept = bare[:room] if cut == "end" else bare[-room:]
        return [CLS, *kept, SEP], original

    def _applied(self, role: str | None, rows: list[tuple[list[int], int]], query_tokens: int = 0) -> Applied:
        return Applied(
            model=self.name,
            role=role,
            tokens=tuple(len(ids) for ids, _ in rows),
            original=tuple(original for _, original in rows),
            queue_s=0.001,
            tokenize_s=0.002,
            forward_s=0.003,
            query_tokens=query_tokens,
            space=SPACE,
        )


SITE = Site()


def app_of(
    engine: StubEngine,
    site: Site = SITE,
    protocols: Iterable[str] | None = None,
    *,
    trusted: bool = True,
    timeout_s: float = 300.0,
) -> ASGIApp:
    """The routes of all protocols, or of those named, behind what guard puts before them: a Record in the scope."""
    table = routes() if protocols is None else routes(protocols)
    inner = Litestar(mount(table, engine, site), openapi_config=None, logging_config=None)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["vecgate"] = Record(Call("t", timeout_s), trusted=trusted)  # type: ignore[typeddict-unknown-key]
        await inner(scope, receive, send)

    return app


def client_of(app: ASGIApp) -> httpx.AsyncClient:
    """A client whose requests go straight into `app`."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")  # type: ignore[arg-type]
