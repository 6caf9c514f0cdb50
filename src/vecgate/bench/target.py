"""One server under test: where its routes are, what it serves, what it says of itself.

Asks OpenAI's embeddings and Cohere's rerank, on whichever of their usual paths the server has.
"""

from __future__ import annotations

from typing import Any

import msgspec

from vecgate.bench import plan
from vecgate.bench.plan import Ask, Encoding
from vecgate.bench.result import Server
from vecgate.bench.wire import Answer, Broken, Connection, Place
from vecgate.errors import CommandError

EMBED_PATHS = ("/v1/embeddings", "/embeddings")
RERANK_PATHS = ("/v1/rerank", "/v2/rerank", "/rerank")
TOLD = ("version", "model", "backend", "device", "dtype")
"""What vecgate's /health tells; of another server what it happens to call the same."""


class _Card(msgspec.Struct):
    """task, capabilities: vecgate's word for what it is for, and infinity's."""

    id: str
    task: str | None = None
    capabilities: list[str] | None = None

    def says(self, task: str) -> bool:
        return self.task == task or task in (self.capabilities or ())

    def may(self, task: str) -> bool:
        return self.says(task) or (self.task is None and self.capabilities is None)


class _Cards(msgspec.Struct):
    data: list[_Card]


class Target:
    """`server` is what the report says of it. names: the models to ask for, where not the first that it lists."""

    def __init__(self, place: Place, *, timeout_s: float, encoding: Encoding, names: dict[str, str | None]) -> None:
        self.place = place
        self.timeout_s = timeout_s
        self._encoding: Encoding = encoding
        self._names = dict(names)
        self._paths: dict[str, str] = {}
        self.server = Server(place.url)

    def connection(self) -> Connection:
        return Connection(self.place, self.timeout_s)

    def request(self, ask: Ask) -> bytes:
        """The bytes of one request; `find` has been there before."""
        task = "embed" if ask.query is None else "rerank"
        body = plan.body(ask, self._names.get(task), self._encoding)
        return self.place.request("POST", self._paths[task], body)

    async def look(self) -> None:
        """What it says of itself; raises CommandError where nothing answers."""
        connection = self.connection()
        try:
            health = await self._get(connection, "/health")
            told = _mapping(health.body)
            self.server = Server(
                self.place.url,
                software=health.headers.get("server"),
                **{key: str(told[key]) for key in TOLD if told.get(key) is not None},
            )
            await self._look_for_names(connection)
        finally:
            connection.close()

    async def _get(self, connection: Connection, path: str) -> Answer:
        try:
            return await connection.ask(self.place.request("GET", path))
        except Broken as error:
            raise CommandError(
                f"Nothing answers at {self.place.url} ({error}): start a server with `vecgate serve`, or check the address."
            ) from error

    async def _look_for_names(self, connection: Connection) -> None:
        for path in ("/v1/models", "/models"):
            answer = await self._get(connection, path)
            try:
                cards = msgspec.json.decode(answer.body, type=_Cards).data if answer.status == 200 else []
            except msgspec.DecodeError:
                cards = []
            for task in ("embed", "rerank"):
                able = [card for card in cards if card.says(task)] or [card for card in cards if card.may(task)]
                self._names[task] = self._names.get(task) or (able[0].id if able else None)
            if cards:
                break
        # a server without a reranker may rank by its embedding model
        self._names["rerank"] = self._names.get("rerank") or self._names.get("embed")

    async def find(self, ask: Ask) -> None:
        """The path that answers such a request; raises CommandError with the server's words where none does."""
        task = "embed" if ask.query is None else "rerank"
        if task in self._paths:
            return
        connection, said = self.connection(), ""
        try:
            for path in EMBED_PATHS if task == "embed" else RERANK_PATHS:
                self._paths[task] = path
                answer = await connection.ask(self.request(ask))
                if answer.status == 200:
                    return
                if answer.status not in (404, 405) or not said:
                    said = f"{path} answered {answer.status}: {answer.body[:300].decode(errors='replace')}"
        except Broken as error:
            said = f"{self._paths[task]} gave no answer ({error})"
        finally:
            connection.close()
        del self._paths[task]
        raise CommandError(f"{self.place.url} does not {task}: {' '.join(said.split())}")


def _mapping(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}
