"""The vocabulary: the nouns that pass between protocols, engine and backends.

Knows numpy and msgspec, no more. Every noun is frozen and survives `pack`/`unpack` (msgpack), so that another process can
hold the engine: a dataclass, or where it is made for every request a msgspec.Struct, which takes a seventh of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
"""(B, D) float32, C-contiguous; D == 1 for a reranker (its logit)."""
Ids = NDArray[np.int32]

Task = Literal["embed", "rerank"]
Cut = Literal["end", "start", "refuse"]
"""What to do with an input over the model's limit: drop its end, drop its start, or raise InputTooLong."""
Method = Literal["auto", "similarity", "cross-encoder", "bi+cross-encoder"]
State = Literal["loading", "warming", "ready", "draining", "failed"]
ModelState = Literal["loading", "warming", "ready", "unloaded", "failed"]
"""unloaded: nobody asked for it for a while; the next request loads it."""
Pooling = Literal["cls", "mean", "max", "mean_sqrt_len", "weightedmean", "last"]
Verdict = Literal["passed", "deviates", "failed", "skipped"]
"""Of a check: as exact as the number type allows; further off, and not so far that it is refused; wrong; not made."""


class Call(msgspec.Struct, frozen=True):
    """One request, made once by guard and passed down unchanged; `timeout_s` is the seconds LEFT when it was made.

    space: the vector space that the caller expects its rows or scores to be of, if it says so: Engine.embed and rerank
    wait until the model's is known and raise SpaceMismatch where it is another.
    """

    id: str
    timeout_s: float = 300.0
    space: str | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """One row of a batch.

    ids: (L,) int32, specials included. second: the index where segment B starts (None: one segment). prompt: how many
    leading ids belong to the role's prompt, leading specials included (0: no prompt). original: ids before the cut,
    specials included (a lower bound for a text so long that its far end was never tokenised).
    """

    ids: Ids
    second: int | None = None
    prompt: int = 0
    original: int = 0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Batch:
    """Ragged rows; how they are laid out (packed, padded) is the backend's business."""

    rows: tuple[Tokens, ...]


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer after pooling: `weights` holds linear.weight (out, in) and maybe linear.bias (out,)."""

    weights: Path
    activation: str
    bias: bool


@dataclass(frozen=True, slots=True)
class PairTemplate:
    """How a reranker that was trained on prompts reads a pair: prefix, then lead + query + middle + document cut to the
    room that is left, then suffix; the three parts are tokenised apart, so that prefix and suffix survive every cut.

    whole: they are tokenised as one text, as chat templates are; the suffix survives all the same. strip: query and
    document lose the blanks around them.
    """

    prefix: str
    lead: str
    middle: str
    suffix: str
    whole: bool = False
    strip: bool = False


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk, built only by engine/checkpoint.py; everything that decides its rows is here as data.

    tail: ids put after each row's own, where the tokenizer's file forgets them (e5-mistral's EOS). template: for a
    reranker that reads a pair as a prompt. yes_id, no_id: a reranker that is a causal language model scores a pair by
    the logit of yes_id less that of no_id (None: of yes_id alone) after the last token; without a yes_id it has a head.
    """

    name: str
    folder: Path
    family: str
    task: Task
    config: dict[str, Any]
    weights: tuple[Path, ...]
    max_tokens: int
    pad_id: int
    stored_dtype: str
    weight_bytes: int
    aliases: tuple[str, ...] = ()
    revision: str | None = None
    pooling: tuple[Pooling, ...] = ("mean",)
    include_prompt: bool = True
    normalize: bool = False
    dense: tuple[Dense, ...] = ()
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    lower_case: bool = False
    similarity: str = "cosine"
    activation: str | None = None
    tail: tuple[int, ...] = ()
    template: PairTemplate | None = None
    yes_id: int | None = None
    no_id: int | None = None
    token_types: bool = False
    quantization: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class BackendCard:
    """What a loaded model says of itself.

    pad_lengths: the lengths rows are padded to, ascending (None: packed, nothing is padded). batch_tokens: the tokens
    of one batch that the device likes best, or the most that are tried where `tries_budgets`: its speed says whether fewer
    are as fast.
    """

    backend: str
    device: str
    dtype: str
    dimensions: int
    pad_lengths: tuple[int, ...] | None
    batch_tokens: int
    weight_bytes: int
    tries_budgets: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """Device memory in bytes: held by arrays, kept for reuse, and the bound (None: unknown or none).

    enough_bytes: how much is worth keeping for reuse while there is work (None: whatever the bound allows).
    """

    active_bytes: int
    cache_bytes: int = 0
    limit_bytes: int | None = None
    enough_bytes: int | None = None


class Applied(msgspec.Struct, frozen=True):
    """What was done for one call.

    model: the true name. space: the vector space's fingerprint, once known. dimensions: of the rows (None: scores).
    tokens, original: (N,) ids computed and ids before the cut, per input, specials and prompt included.
    query_tokens: ids of a rerank query that was embedded once for all documents. cut_queries: ids before and after
    the cut of each such query that lost some. Seconds: waiting, tokenising, in `forward`.
    """

    model: str
    role: str | None
    tokens: tuple[int, ...]
    original: tuple[int, ...]
    queue_s: float
    tokenize_s: float
    forward_s: float
    query_tokens: int = 0
    space: str | None = None
    cut_queries: tuple[tuple[int, int], ...] = ()
    dimensions: int | None = None


class Embeddings(msgspec.Struct, frozen=True):
    """vectors: (N, D) float32 in input order."""

    vectors: Vectors
    applied: Applied


@dataclass(frozen=True, slots=True)
class Ranking:
    """order: (K,) document indices, best first. raw: (K,) logit or cosine. scores: (K,) in [0, 1], same order."""

    order: tuple[int, ...]
    raw: tuple[float, ...]
    scores: tuple[float, ...]
    method: Method
    applied: Applied


@dataclass(frozen=True, slots=True)
class Pieces:
    """One tokenised text: ids (L,), each token's string, its [start, stop) characters, and which are specials."""

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    starts: tuple[int, ...]
    stops: tuple[int, ...]
    special: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class VirtualName:
    """A name of a served model that says more than the model: the role, and the width its rows are cut to (None: all)."""

    name: str
    role: str | None = None
    dimensions: int | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. cosine: the least of two rows that should be one (None: nothing was compared, or
    scores were). difference: the greatest between their numbers, of rows of length 1, or of logits. note: in words."""

    name: str
    verdict: Verdict
    note: str = ""
    cosine: float | None = None
    difference: float | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """What a loaded model showed of itself before it was ready. verdict: the worst of its checks, skipped ones aside. at:
    seconds since the epoch."""

    form: Literal["quick", "full"]
    verdict: Verdict
    at: float
    took_s: float
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What may be told of one served model. Widths and names are None until it is loaded, the space until it is known;
    a reranker has no dimensions.

    virtual: what a list of models shows beside the true name. batch_tokens_now: `batch_tokens`, or less while budgets are
    tried, and for a while after the device had no room for that.
    """

    name: str
    aliases: tuple[str, ...]
    task: Task
    family: str
    state: ModelState
    max_tokens: int
    pooling: tuple[Pooling, ...]
    normalize: bool
    prompts: dict[str, str]
    default_prompt: str | None
    created: int
    weight_bytes: int
    revision: str | None = None
    space: str | None = None
    backend: str | None = None
    device: str | None = None
    dtype: str | None = None
    dimensions: int | None = None
    batch_tokens: int | None = None
    batch_tokens_now: int | None = None
    why: str | None = None
    load_s: float | None = None
    warmup_s: float | None = None
    verification: Verification | None = None
    virtual: tuple[VirtualName, ...] = ()


@dataclass(frozen=True, slots=True)
class Queue:
    """What waits for the device, and how fast it goes (None until the warm-up).

    wait_s: how long that will take, with what is still being tokenised; 0 without a rate.
    """

    items: int
    tokens: int
    tokens_per_s: float | None
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Status:
    """The engine at one moment; reading it never blocks and never runs a forward.

    alive: the device thread lives and its current batch is not far over the longest one seen. busy_s: how long the
    current batch has run (None: idle). error: why the state is "failed".
    """

    state: State
    models: tuple[ModelCard, ...]
    queue: Queue
    alive: bool
    busy_s: float | None
    uptime_s: float
    memory: Memory | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One forward, as handed to the `on_batch` hook: real and computed (padded) tokens, and what went wrong."""

    model: str
    rows: int
    tokens: int
    padded_tokens: int
    forward_s: float
    queue_s: tuple[float, ...]
    failed_rows: int = 0
    nonfinite_rows: int = 0
    dropped_rows: int = 0


@dataclass(slots=True)
class Record:
    """What one HTTP request did: made by guard in `scope["vecgate"]`, filled in by the protocol, read for log and metrics.

    route: the path's template (the only path that may become a metric label). trusted: the request showed a valid key,
    or none is set; public paths are open to others too. encode_s: from the engine's answer to the last byte of the body.
    truncated: how many inputs were cut. render: an error as the route says it that the body chose, once it has.
    """

    call: Call
    route: str | None = None
    model: str | None = None
    inputs: int = 0
    tokens: int = 0
    truncated: int = 0
    queue_s: float = 0.0
    tokenize_s: float = 0.0
    forward_s: float = 0.0
    encode_s: float = 0.0
    trusted: bool = True
    render: Callable[[Any], tuple[int, dict[str, str], bytes]] | None = None


T = TypeVar("T")


def _plain(value: Any) -> Any:
    """msgspec's hook for what it does not know: arrays as (dtype, shape, bytes), paths as strings."""
    if isinstance(value, np.ndarray):
        return [value.dtype.str, list(value.shape), value.tobytes()]
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} can't cross a process")


def _rich(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    dtype, shape, raw = value
    return np.frombuffer(raw, dtype=dtype).reshape(shape).copy()


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)


def pack(noun: object) -> bytes:
    """msgpack of any noun of this module."""
    return _encoder.encode(noun)


def unpack(kind: type[T], data: bytes) -> T:
    """The noun back; raises msgspec.DecodeError on anything else."""
    return msgspec.msgpack.decode(data, type=kind, dec_hook=_rich)
