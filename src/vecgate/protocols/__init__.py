"""The edge: a protocol is a file that exports ROUTES; mounting.py makes one Litestar handler a path out of all of them.

Where several routes share a path and method, the body's key decides, and the error follows in that route's dialect.
Before a body is read the path's first route decides. Knows traits.Engine, never the engine itself.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from vecgate.core import Applied, Call, Cut
from vecgate.errors import (
    BackendFailed,
    DeadlineExceeded,
    EmptyInput,
    InvalidRequest,
    MethodNotAllowed,
    NotReady,
    Unauthenticated,
    VecgateError,
)
from vecgate.traits import Engine

PROTOCOLS = {
    "openai": "vecgate.protocols.openai",
    "cohere": "vecgate.protocols.cohere",
    "ollama": "vecgate.protocols.ollama",
    "native": "vecgate.protocols.native",
    "tei": "vecgate.protocols.tei",
    "vllm": "vecgate.protocols.vllm",
    "ops": "vecgate.protocols.ops",
}

TokenIds = Literal["auto", "model", "cl100k", "o200k", "refuse"]
Render = Callable[[VecgateError], tuple[int, dict[str, str], bytes]]
"""One dialect: an error -> status, headers beside content-type, JSON body."""

NDJSON = "application/x-ndjson"
"""The type of a body that is streamed: one JSON object a line."""

TIMING = "queue;dur={:.2f}, tokenise;dur={:.2f}, forward;dur={:.2f}, encode;dur={:.2f}"
"""The milliseconds that Server-Timing tells."""

TRUNCATED_SHOWN = 32
"""Cut inputs listed in the x-vecgate-truncated header; the rest are counted."""

MOST = 2**31 - 1
"""The largest count a body may hold; more is a mistake or an attack, not a wish."""

MOST_MESSAGE = 2_000
"""Characters of an error message; a longer one (it quotes the request) is cut."""

MOST_PATH = 200
"""Characters of an unknown path that are looked at."""

Ignored = Annotated[msgspec.Raw, msgspec.Meta(description="Ignored.")]
"""A field of any kind that becomes no object, however large it is."""

T = TypeVar("T")


class Expecting(msgspec.Struct, kw_only=True):
    """What a request for rows or scores may say on every route."""

    space: Annotated[
        str | None,
        msgspec.Meta(description="The vector space expected, as x-vecgate-space tells it; another one is refused."),
    ] = None


@dataclass(frozen=True, slots=True)
class Site:
    """What a protocol may know of the server beside the engine: limits, defaults and the texts of the ops routes.

    now: what the page watches of requests and batches. about: what it tells of the settings. watching: one entry for each
    stream that is open.
    """

    max_inputs: int = 2048
    max_texts_per_request: int = 100
    max_passages_per_rerank: int = 1000
    batch_size: int = 32
    max_batch_size: int = 128
    max_in_flight: int = 4096
    tokenize_threads: int = 2
    cut: Cut = "end"
    token_ids: TokenIds = "auto"
    tiktoken_dir: Path | None = None
    metrics: Callable[[str], tuple[str, bytes]] = lambda _accept: ("text/plain", b"")
    document: Callable[[], bytes] = lambda: b"{}"
    now: Callable[[], Mapping[str, Any]] = dict
    about: Callable[[], Mapping[str, Any]] = dict
    watching: set[object] = field(default_factory=set)


class Ask(msgspec.Struct, frozen=True):
    """One decoded request: `body` is the route's Struct (None for GET), `parameters` the path's, `accept` the header.

    trusted: see core.Record; a public route must not tell others more than they need. known: the tags of If-None-Match.
    """

    engine: Engine
    site: Site
    call: Call
    body: Any
    parameters: Mapping[str, str]
    trusted: bool = True
    accept: str = ""
    known: str = ""


class Part(msgspec.Struct, frozen=True):
    """Whole lines of a streamed body, sent as they come; `applied`, what was done for them, goes to the log line."""

    body: bytes
    applied: Applied | None = None


class Answer(msgspec.Struct, frozen=True):
    """What a route answers; `applied` becomes the headers and the log line, `encode_s` (spent on the body) too.

    A body of Parts is NDJSON. It is closed whatever ends the answer, the client's leaving too, and should then stop its
    work. What it raises before its first Part is an error like any other; later, it becomes the last line.
    """

    body: bytes | AsyncGenerator[Part, None]
    applied: Applied | None = None
    status: int = 200
    media_type: str = "application/json"
    headers: dict[str, str] = {}
    encode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Route:
    """One operation of one protocol.

    key: the body key that marks this route where a path is shared, or "key.inner" for one of an object within; neither:
    it speaks where no route's key is there (else the path's first does). answer: the Struct of a 200, None where it is no
    JSON; media_type: that 200's type; lines: the Structs of a line where the 200 may be NDJSON too; otherwise: bodies by
    status that are not the dialect's error; example: a body that works as it stands; documented: whether the OpenAPI
    document shows it; offered: False where there is never a 200. render: the dialect of its errors.
    """

    method: Literal["GET", "POST"]
    paths: tuple[str, ...]
    handle: Callable[[Ask], Awaitable[Answer]]
    render: Render
    summary: str
    body: type[msgspec.Struct] | None = None
    key: str | None = None
    answer: Any = None
    media_type: str = "application/json"
    lines: tuple[type[msgspec.Struct], ...] = ()
    otherwise: Mapping[int, Any] = field(default_factory=dict)
    example: Mapping[str, Any] | None = None
    documented: bool = True
    offered: bool = True
    neither: bool = False


def routes(protocols: Iterable[str] = PROTOCOLS.values()) -> tuple[Route, ...]:
    """Every route of the named modules, in their order; the order decides the dialect before a body is read."""
    return tuple(route for name in protocols for route in import_module(name).ROUTES)


def render_for(table: Iterable[Route]) -> Callable[[str, VecgateError], tuple[int, dict[str, str], bytes]]:
    """The dialect by path, for errors raised before or outside a route; an unknown path speaks as its next neighbour."""
    by_path: dict[str, Render] = {}
    for route in table:
        for path in route.paths:
            by_path.setdefault(path, route.render)

    def render(path: str, error: VecgateError) -> tuple[int, dict[str, str], bytes]:
        known = path if path in by_path else max(by_path, key=partial(_shared_segments, path[:200]))
        return by_path[known](error)

    return render


def _shared_segments(path: str, other: str) -> int:
    """How many of their first segments are the same: /api/v1/x is nearer to /api/v1/embed than to /v1/models."""
    pairs = zip(path.split("/"), other.split("/"))
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def base_finder(table: Iterable[Route]) -> Callable[[str], str | None]:
    """Which path a client meant that was given a base URL with too much in it: "/v1/info" means "/info"; else None."""
    known = [re.compile(re.sub(r"\\\{\w+:(str|path)\\\}", _parameter, re.escape(path))) for path in _paths(table)]

    def find(path: str) -> str | None:
        starts = (at for at, letter in enumerate(path[:MOST_PATH]) if letter == "/" and at)
        return next((path[at:] for at in starts if any(one.fullmatch(path, at) for one in known)), None)

    return find


def _paths(table: Iterable[Route]) -> set[str]:
    return {path for route in table for path in route.paths if path != "/"}


def _parameter(found: re.Match[str]) -> str:
    return "[^/]+" if found[1] == "str" else ".+"


def expecting(call: Call, space: str | None) -> Call:
    """The call where it expects that vector space; None: as it is."""
    return call if space is None else msgspec.structs.replace(call, space=space)


@contextmanager
def told_as(**fields: str) -> Iterator[None]:
    """Errors about the engine's parameters become errors about the client's fields: told_as(input="texts")."""
    try:
        yield
    except InvalidRequest as error:
        if error.param not in fields:
            raise
        told = copy(error)  # the engine may have raised it in several calls
        told.param = fields[error.param]
        raise told from error


def headers_of(applied: Applied, encode_s: float = 0.0) -> dict[str, str]:
    """Applied as response headers; the list of cut inputs is bounded by TRUNCATED_SHOWN."""
    spent = (applied.queue_s * 1e3, applied.tokenize_s * 1e3, applied.forward_s * 1e3, encode_s * 1e3)
    headers = {
        "x-vecgate-model": _header(applied.model),
        "server-timing": TIMING.format(*spent),
    }
    if applied.role is not None:
        headers["x-vecgate-role"] = _header(applied.role)
    if applied.space is not None:
        headers["x-vecgate-space"] = applied.space
    if applied.dimensions is not None:
        headers["x-vecgate-dimensions"] = str(applied.dimensions)
    if cut := cuts(applied):
        more = f", +{len(cut) - TRUNCATED_SHOWN} more" if len(cut) > TRUNCATED_SHOWN else ""
        headers["x-vecgate-truncated"] = ", ".join(cut[:TRUNCATED_SHOWN]) + more
    return headers


def cuts(applied: Applied) -> list[str]:
    """What was cut, as `index:before>kept`; a rerank query on its own is `query`, before all documents."""
    if applied.original == applied.tokens and not applied.cut_queries:
        return []
    queries = [f"query:{before}>{kept}" for before, kept in applied.cut_queries]
    pairs = zip(applied.original, applied.tokens)
    return queries + [f"{i}:{before}>{kept}" for i, (before, kept) in enumerate(pairs) if before > kept]


def of_type(table: Mapping[type[VecgateError], T], error: VecgateError) -> T:
    """The row of a protocol's ERRORS for this error: its own type's, else its nearest parent's."""
    return next(table[kind] for kind in type(error).__mro__ if kind in table)


def message_of(error: VecgateError) -> str:
    """What every dialect tells of it: no lone surrogates, which JSON can't hold, and of bounded length."""
    message = str(error).encode("utf-8", "backslashreplace").decode()
    return message if len(message) <= MOST_MESSAGE else f"{message[:MOST_MESSAGE]}..."


def shown(asked: str) -> str:
    """A client's word as a message may quote it."""
    return repr(asked if len(asked) <= 40 else f"{asked[:40]}...")


def check_some(name: str, items: Sequence[object], limit: int, setting: str, noun: str = "item") -> None:
    """Raises EmptyInput where there are none, InvalidRequest where there are more than the setting's limit."""
    if not items:
        raise EmptyInput(f"{name} is empty; give at least one {noun}.", name)
    if len(items) > limit:
        raise InvalidRequest(f"{name} holds {len(items)} {noun}s; the limit is {limit} a request ({setting}).", name)


def check_count(name: str, value: int | None) -> None:
    """Raises InvalidRequest for a number that counts nothing."""
    if value is not None and not 1 <= value <= MOST:
        # An int of more than 4,300 digits can't be printed.
        told = str(value) if abs(value) < 10**20 else "far out of range"
        raise InvalidRequest(f"{name} is {told}; it must be from 1 to {MOST}.", name)


def headers_of_error(error: VecgateError) -> dict[str, str]:
    """What every dialect says beside the body: when to come back, whether to, which methods and which scheme."""
    headers = {}
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        headers["retry-after"] = str(retry_after_s)
    failed = isinstance(error, NotReady) and retry_after_s is None
    if failed or isinstance(error, DeadlineExceeded) or (isinstance(error, BackendFailed) and error.lasting):
        headers["x-should-retry"] = "false"
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = ", ".join(error.allowed)
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    return headers


def _header(value: str) -> str:
    return value.encode("ascii", "backslashreplace").decode()


def timer() -> Callable[[], float]:
    """Seconds since the call."""
    start = perf_counter()
    return lambda: perf_counter() - start
