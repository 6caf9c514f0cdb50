"""A server in this process that embeds and ranks by a rule of its own, and does it wrongly in the way a test wants."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import numpy as np

from vecgate.core import Vectors

WIDTH = 16


def row(text: str) -> Vectors:
    """(16,) of length 1, of the text alone."""
    found = np.random.default_rng(int(sha256(text.encode()).hexdigest()[:8], 16)).standard_normal(WIDTH)
    return (found / np.linalg.norm(found)).astype(np.float32)


def embeddings(texts: list[str], rows: list[Vectors] | None = None) -> dict[str, Any]:
    rows = [row(text) for text in texts] if rows is None else rows
    data = [{"index": at, "embedding": base64.b64encode(one.tobytes()).decode()} for at, one in enumerate(rows)]
    return {"data": data, "usage": {"prompt_tokens": 3 * len(texts)}}


def ranking(query: str, documents: list[str]) -> dict[str, Any]:
    scores = [float(row(query) @ row(document) + 1) / 2 for document in documents]
    order = sorted(range(len(scores)), key=lambda at: -scores[at])
    return {"results": [{"index": at, "relevance_score": scores[at]} for at in order]}


class Stub:
    """`with Stub() as stub`: at stub.url until the end.

    spoil: what becomes of an answer: (path, request, answer) -> answer, or a status. rerank: the path of its ranking.
    cards: its models. asked: (path, body) of every POST, in order.
    """

    def __init__(
        self,
        spoil: Callable[[str, Any, Any], Any] = lambda _path, _body, answer: answer,
        rerank: str = "/v1/rerank",
        cards: Any = ({"id": "m"},),
    ) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.keys: set[str] = set()
        stub = self

        class Answering(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                told = {
                    "/health": {"version": "9.9", "model": "m", "dtype": "float32"},
                    "/v1/models": {"data": cards},
                }
                self._say(told.get(self.path, 404))

            def do_POST(self) -> None:
                body = msgspec.json.decode(self.rfile.read(int(self.headers["content-length"])))
                stub.asked.append((self.path, body))
                stub.keys.add(self.headers.get("authorization", ""))
                known = {"/v1/embeddings": stub.embed, rerank: stub.rank}
                answer = known[self.path](body) if self.path in known else 404
                self._say(answer if answer == 404 else spoil(self.path, body, answer))

            def _say(self, what: Any) -> None:
                said = msgspec.json.encode(what if not isinstance(what, int) else {"error": "no"})
                self.send_response(what if isinstance(what, int) else 200)
                self.send_header("content-length", str(len(said)))
                self.send_header("server-timing", "queue;dur=0.25, forward;dur=0.50")
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @staticmethod
    def embed(body: Any) -> Any:
        return embeddings([body["input"]] if isinstance(body["input"], str) else body["input"])

    @staticmethod
    def rank(body: Any) -> Any:
        return ranking(body["query"], body["documents"])

    def __enter__(self) -> Stub:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
