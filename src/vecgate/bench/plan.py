"""What is asked: mixes of texts, drawn from a pool that a seed makes, and the requests made of them beforehand.

Texts come back when the pool is through, so that the same text's rows can be compared; no two requests in a row share one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from random import Random
from typing import Literal

import msgspec

from vecgate.bench import texts

POOL_TEXTS = 512
POOL_RERANKS = 16
Encoding = Literal["base64", "float"]


@dataclass(frozen=True, slots=True)
class Mix:
    """A kind of request. texts: in one call; of a rerank its documents. make: one text."""

    name: str
    texts: int
    make: Callable[[Random], str]
    rerank: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """One request's content. query: of a rerank; its `texts` are the documents then."""

    texts: tuple[str, ...]
    query: str | None = None


MIXES = {
    mix.name: mix
    for mix in (
        Mix("queries", 1, texts.query),
        Mix("chunks", 1, texts.chunk),
        Mix("mixed", 1, texts.mixed),
        Mix("batch", 32, texts.mixed),
        Mix("rerank", 50, texts.chunk, rerank=True),
    )
}
"""queries: 8 to 30 tokens. chunks: 100 to 256. mixed: 60 % queries. batch: 32 mixed texts a call. rerank: 50 chunks."""


def calls_of(size: int, name: str = "") -> Mix:
    """Mixed texts, `size` a call."""
    return Mix(name or f"mixed x {size}", size, texts.mixed)


def texts_of(tokens: int) -> Mix:
    """Texts of about so many tokens, one a call."""
    return Mix(f"{tokens} tokens", 1, partial(texts.of_tokens, tokens=tokens))


def chunks_of(size: int) -> Mix:
    return Mix(f"chunks x {size}", size, texts.chunk)


def ranking_of(documents: int) -> Mix:
    return Mix(f"rerank 1 x {documents}", documents, texts.chunk, rerank=True)


def asks(mix: Mix, seed: int, pool_texts: int | None = None) -> tuple[Ask, ...]:
    """Every request of the pool, each text in one of them; the same for the same seed."""
    rng = Random(f"{seed} {mix.name}")
    pool_texts = pool_texts or POOL_TEXTS
    if mix.rerank:
        made = range(max(1, min(POOL_RERANKS, pool_texts // 8)))
        return tuple(Ask(_distinct(mix, rng, mix.texts), texts.query(rng)) for _ in made)
    pool = _distinct(mix, rng, max(mix.texts, pool_texts // mix.texts * mix.texts))
    return tuple(Ask(pool[at : at + mix.texts]) for at in range(0, len(pool), mix.texts))


def _distinct(mix: Mix, rng: Random, count: int) -> tuple[str, ...]:
    found: dict[str, None] = {}
    while len(found) < count:
        text = mix.make(rng)
        if text in found:  # of very short texts there are few
            text = f"{text} {len(found)}"
        found[text] = None
    return tuple(found)


def in_turn(pool: Sequence[Ask], seed: int) -> Iterator[int]:
    """Indices of the pool for ever, each once before any comes again."""
    order = list(range(len(pool)))
    Random(seed).shuffle(order)
    return cycle(order)


def body(ask: Ask, model: str | None, encoding: Encoding) -> bytes:
    """As OpenAI's embeddings or Cohere's rerank want it."""
    named = {"model": model} if model else {}
    if ask.query is not None:
        return msgspec.json.encode({**named, "query": ask.query, "documents": ask.texts})
    given = ask.texts[0] if len(ask.texts) == 1 else ask.texts
    return msgspec.json.encode({**named, "input": given, "encoding_format": encoding})
