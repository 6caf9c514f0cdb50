"""A vecgate server as a client sees it: rows and rankings over HTTP, waiting when it asks to (only door to httpx).

Any server with OpenAI's embeddings or Cohere's rerank will do. Knows no file and no engine.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import msgspec
import numpy as np

from vecgate.core import Method, Task, Vectors
from vecgate.errors import CommandError

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]

PATIENCE_S = 300.0
"""Of waiting for one answer, over all its tries; a server that is busy for longer needs a person's decision."""
LONGEST_PAUSE_S = 60.0
BROKEN_TRIES = 4
"""Of a request whose connection breaks, once the server has answered another one; 0.5 to 4 s apart."""
TOP_LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
UNBOUNDED = httpx.Limits(max_connections=None)
"""The caller bounds what is in flight."""
MOST_TEXTS = 100
"""In one request to the native route: MAX_TEXTS_PER_REQUEST of a server that was left as it is."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """results: (index, score in [0, 1]), best first. method: None where the server does not say."""

    model: str | None
    method: str | None
    results: tuple[tuple[int, float], ...]


class _Card(msgspec.Struct):
    id: str
    task: Task | None = None
    aliases: tuple[str, ...] = ()


class _Cards(msgspec.Struct):
    data: list[_Card]


class _Row(msgspec.Struct):
    index: int
    embedding: bytes | list[float]


class _Rows(msgspec.Struct):
    data: list[_Row]


class _Native(msgspec.Struct):
    vectors: list[list[float]]


class _Result(msgspec.Struct):
    index: int
    score: float


class _NativeRanking(msgspec.Struct):
    results: list[_Result]
    method: str


class _Relevance(msgspec.Struct):
    index: int
    relevance_score: float


class _Ranking(msgspec.Struct):
    results: list[_Relevance]
    model: str | None = None


class _Detail(msgspec.Struct):
    message: str


class _Error(msgspec.Struct):
    """OpenAI's shape, Cohere's, or both at once."""

    error: _Detail | str | None = None
    message: str | None = None


@asynccontextmanager
async def connected(
    url: str, key: str | None = None, *, timeout_s: float = 300.0, space: str | None = None
) -> AsyncIterator[Remote]:
    """A server at a base URL, with or without /v1; raises CommandError where the URL is none.

    space: the vector space that its rows and scores must be of.
    """
    place, socket_path = _place(url)
    async with httpx.AsyncClient(
        base_url=place,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(timeout_s + 5.0, connect=10.0),  # the server's own deadline comes first, with its reason
        transport=httpx.AsyncHTTPTransport(uds=socket_path, limits=UNBOUNDED) if socket_path else None,
        limits=UNBOUNDED,
        trust_env=place.host not in TOP_LOOPBACK,  # a proxy does not know this machine
        verify=ssl.create_default_context() if place.scheme == "https" and place.host in TOP_LOOPBACK else True,
    ) as http:  # which reads SSL_CERT_FILE in any case
        yield Remote(http, address=url if socket_path else str(place).rstrip("/"), space=space)


def _place(url: str) -> tuple[httpx.URL, str | None]:
    """The base address without /v1, and the Unix socket's path of unix:PATH; raises CommandError."""
    if url.startswith("unix:") and url.isprintable():
        return httpx.URL("http://localhost"), url.removeprefix("unix:").replace("///", "/", 1)
    try:
        place = httpx.URL(url if "://" in url else f"http://{url}")
    except httpx.InvalidURL:
        place = httpx.URL("")
    known = place.scheme in ("http", "https") and 0 < (place.port or 1) < 65_536
    if not (known and place.host) or not url.isprintable() or " " in url:
        raise CommandError(
            f"--url {url!a} is no address: give one like http://127.0.0.1:9000 or unix:/run/vecgate.sock."
        )
    return place.copy_with(path=place.path.rstrip("/").removesuffix("/v1") or "/", query=None, fragment=None), None


class Remote:
    """What the embed and rerank commands need of a server; every failure is a CommandError with the server's words."""

    def __init__(
        self, http: httpx.AsyncClient, sleep: Sleep = asyncio.sleep, address: str = "", space: str | None = None
    ) -> None:
        self._http = http
        self._space = space
        self._address = address or str(http.base_url).rstrip("/")
        self._sleep = sleep
        self._answered = False

    async def name(self, asked: str | None, task: Task) -> str:
        """The id behind a name or alias, the first model of the task for None; what nobody lists stays as asked."""
        cards = _decoded(await self._ask("GET", "/v1/models"), _Cards).data
        if asked in {card.id for card in cards}:  # an alias may say more than the model
            return asked
        for card in cards:
            if asked is not None and asked in card.aliases:
                return card.id
        if asked is not None:
            return asked
        found = next((card.id for card in cards if card.task in (task, None)), None)
        if found is None:
            verb = "embeds" if task == "embed" else "reranks"
            raise CommandError(f"{self._http.base_url} serves no model that {verb}: name another server with --url.")
        return found

    async def embed(
        self, texts: Sequence[str], model: str, *, dimensions: int | None = None, normalize: bool = True
    ) -> tuple[Vectors, int]:
        """(N, D) float32 in order, and how many texts the server cut. model: NAME or NAME:role."""
        if not normalize:
            return await self._unnormalised(texts, model, dimensions)
        body = {"model": model, "input": texts, "encoding_format": "base64"}
        answer = await self._ask("POST", "/v1/embeddings", body | ({"dimensions": dimensions} if dimensions else {}))
        rows = sorted(_decoded(answer, _Rows).data, key=lambda row: row.index)
        if [row.index for row in rows] != list(range(len(texts))):
            raise CommandError(f"{answer.url} answered {len(rows)} rows to {len(texts)} texts: it can't be trusted.")
        return _matrix(answer, [_numbers(row.embedding) for row in rows]), _cut(answer)

    async def _unnormalised(self, texts: Sequence[str], model: str, dimensions: int | None) -> tuple[Vectors, int]:
        """Over the native route, which alone can leave rows as long as the model makes them."""
        parts, cut = [], 0
        for at in range(0, len(texts), MOST_TEXTS):
            part = texts[at : at + MOST_TEXTS]
            answer = await self._ask("POST", "/api/v1/embed", {"model": model, "texts": part, "normalize": False})
            found = _matrix(answer, [np.asarray(row, np.float32) for row in _decoded(answer, _Native).vectors])
            if len(found) != len(part):
                raise CommandError(
                    f"{answer.url} answered {len(found)} rows to {len(part)} texts: it can't be trusted."
                )
            parts.append(found)
            cut += _cut(answer)
        vectors = np.concatenate(parts)
        if dimensions is not None and dimensions > vectors.shape[1]:
            raise CommandError(f"--dimensions is {dimensions}; {model!r} allows 1 to {vectors.shape[1]}.")
        return np.ascontiguousarray(vectors[:, :dimensions]), cut

    async def rerank(
        self, query: str, documents: Sequence[str], *, model: str | None, method: Method, top_n: int | None
    ) -> Ranked:
        """Over Cohere's route, or the native one for a method by name."""
        named = {"model": model} if model else {}
        if method == "auto":
            body = {"query": query, "documents": documents, **named, **({"top_n": top_n} if top_n else {})}
            answer = await self._ask("POST", "/v2/rerank", body)
            ranking = _decoded(answer, _Ranking)
            results = tuple((one.index, one.relevance_score) for one in ranking.results)
            return Ranked(answer.headers.get("x-vecgate-model") or ranking.model, None, results)
        body = {"query": query, "passages": documents, "method": method, "return_text": False, **named}
        answer = await self._ask("POST", "/api/v1/rerank", body | ({"top_k": top_n} if top_n else {}))
        native = _decoded(answer, _NativeRanking)
        cosine = native.method == "similarity"  # which that route sends as it is
        results = tuple((one.index, (1.0 + one.score) / 2.0 if cosine else one.score) for one in native.results)
        return Ranked(answer.headers.get("x-vecgate-model"), native.method, results)

    async def _ask(self, verb: str, path: str, body: Any = None) -> httpx.Response:
        """The answer to one request, asked again while the server says to wait and patience lasts."""
        waited_s, tries = 0.0, 0
        content = None if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"} if content else {}
        if content and self._space:
            headers["x-vecgate-space"] = self._space
        while True:
            tries += 1
            try:
                answer = await self._http.request(verb, path, content=content, headers=headers)
            except httpx.TransportError as error:
                pause_s = 0.5 * 2.0 ** (tries - 1) if self._answered and tries < BROKEN_TRIES else None
                told = self._unreachable(error)
            else:
                self._answered = True
                if answer.is_success:
                    if content and self._space:
                        _check_space(answer, self._space)
                    return answer
                pause_s, told = _pause_s(answer, tries), _refusal(answer)
            if pause_s is None or waited_s + pause_s > PATIENCE_S:
                raise CommandError(told)
            await self._sleep(pause_s)
            waited_s += pause_s

    def _unreachable(self, error: httpx.TransportError) -> str:
        base = self._address
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return f"{base} shows a certificate that is not trusted here ({error}): name its root in SSL_CERT_FILE."
        if isinstance(error, httpx.ConnectError):
            return f"Nothing answers at {base} ({error}): start a server with `vecgate serve`, or check --url."
        what = str(error) or type(error).__name__
        return f"{base} did not answer ({what}): see the server's log, or try a longer --request-timeout."


def _check_space(answer: httpx.Response, space: str) -> None:
    """A server that does not know the header refuses nothing, so its answer must say it, too."""
    told = answer.headers.get("x-vecgate-space")
    if told != space:
        what = "does not say of which vector space its answer is" if told is None else f"answered in {told[:100]!a}"
        raise CommandError(f"{answer.url} {what}, and --space expects {space!a}.")


def _pause_s(answer: httpx.Response, tries: int) -> float | None:
    """How long to wait before the next try; None where another try is of no use.

    A server that is full (429) or not ready (503) says how long; without a word a full one is given ever more time.
    """
    if answer.status_code not in (429, 503) or answer.headers.get("x-should-retry") == "false":
        return None
    told = answer.headers.get("retry-after", "")
    if told.isdigit():
        return min(float(told), LONGEST_PAUSE_S) * random.uniform(1.0, 1.1)  # not all at the same moment
    return min(0.5 * 2.0**tries, LONGEST_PAUSE_S) if answer.status_code == 429 else None


def _refusal(answer: httpx.Response) -> str:
    """One sentence out of an error in OpenAI's shape or Cohere's."""
    try:
        error = msgspec.json.decode(answer.content, type=_Error)
        message = error.error.message if isinstance(error.error, _Detail) else error.error or error.message or ""
    except msgspec.DecodeError:
        message = ""
    message = " ".join(message.split())[:500] or answer.reason_phrase or "no reason given"
    key = " Show a key with --api-key or VECGATE_API_KEY." if answer.status_code == 401 else ""
    return f"{answer.url} answered {answer.status_code}: {message}{key}"


def _decoded(answer: httpx.Response, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except msgspec.DecodeError as error:
        raise CommandError(
            f"{answer.url} does not answer as such a server does ({error}): check --url, which is the base address."
        ) from None


def _numbers(embedding: bytes | list[float]) -> Vectors:
    """A row as base64 or, of a server that does not know encoding_format, as a list."""
    if isinstance(embedding, bytes) and len(embedding) % 4 == 0:
        return np.frombuffer(embedding, "<f4").astype(np.float32)
    return np.asarray(embedding if isinstance(embedding, list) else [], np.float32)


def _matrix(answer: httpx.Response, rows: Sequence[Vectors]) -> Vectors:
    """(N, D); raises CommandError for rows that differ in width, hold no number or one that is not finite."""
    widths = {len(row) for row in rows}
    if len(widths) != 1 or 0 in widths or not all(np.isfinite(row).all() for row in rows):
        raise CommandError(f"{answer.url} answered rows that are no vectors of one width: it can't be trusted.")
    return np.stack(rows)


def _cut(answer: httpx.Response) -> int:
    """How many inputs `x-vecgate-truncated` tells of: "0:300>256, 4:512>256, +3 more"."""
    parts = [part for part in answer.headers.get("x-vecgate-truncated", "").split(", ") if part]
    more = sum(int(part[1:].partition(" ")[0]) for part in parts if part.startswith("+"))
    return more + sum(":" in part for part in parts)
