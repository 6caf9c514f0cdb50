"""`vecgate connect open-webui` against a server that answers as Open WebUI's interface for administrators does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from vecgate import cli

TOKEN, KEY = "token-of-an-administrator", "key-of-the-gateway"
MODELS = [
    {"id": "minilm", "task": "embed", "aliases": ["small"]},
    {"id": "other", "task": "embed", "aliases": []},
    {"id": "judge", "task": "rerank", "aliases": []},
]
Said = pytest.CaptureFixture[str]


class Peer:
    """Open WebUI's settings and the gateway's models behind one port; what was posted is in `posted`."""

    def __init__(self) -> None:
        self.models: list[dict[str, Any]] = MODELS
        self.keeps = True
        self.odd: dict[str, tuple[int, bytes]] = {}
        self.posted: list[tuple[str, dict[str, Any]]] = []
        self.config: dict[str, Any] = {"TOP_K": 3, "ENABLE_RAG_HYBRID_SEARCH": False, "RAG_RERANKING_ENGINE": ""}
        self.embedding: dict[str, Any] = {
            "RAG_EMBEDDING_ENGINE": "",
            "RAG_EMBEDDING_MODEL": "sentence-transformers/all-MiniLM-L6-v2",
            "RAG_EMBEDDING_BATCH_SIZE": 7,
            "ENABLE_ASYNC_EMBEDDING": False,
            "RAG_EMBEDDING_CONCURRENT_REQUESTS": 5,
            "openai_config": {"url": "https://elsewhere.example/v1", "key": "secret-of-another"},
        }

    def answer(self, method: str, path: str, token: str | None, body: dict[str, Any]) -> tuple[int, bytes]:
        if path in self.odd:
            return self.odd[path]
        if path == "/v1/models":
            return 200, json.dumps({"data": self.models}).encode()
        if token != f"Bearer {TOKEN}":
            return 401, b'{"detail": "Not authenticated"}'
        kept = self.embedding if "embedding" in path else self.config
        if method == "POST":
            self.posted.append((path, body))
            if self.keeps:
                kept |= body
        return 200, json.dumps(kept).encode()


@pytest.fixture
def peer() -> Iterator[tuple[Peer, str]]:
    found = Peer()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _answer(self, body: dict[str, Any]) -> None:
            status, content = found.answer(self.command, self.path, self.headers["authorization"], body)
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield found, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def run(url: str, *flags: str, token: str = TOKEN) -> int:
    return cli.main(["connect", "open-webui", "--url", url, "--token", token, "--gateway", url, *flags])


def test_embedding_and_reranking_are_set_shown_and_read_back(peer: tuple[Peer, str], capsys: Said) -> None:
    open_webui, url = peer
    assert run(f"{url}/", "--api-key", KEY) == 0
    (first, embedding), (second, config) = open_webui.posted
    assert (first, second) == ("/api/v1/retrieval/embedding/update", "/api/v1/retrieval/config/update")
    assert embedding == {
        "RAG_EMBEDDING_ENGINE": "openai",
        "RAG_EMBEDDING_MODEL": "minilm",
        "RAG_EMBEDDING_BATCH_SIZE": 7,
        "ENABLE_ASYNC_EMBEDDING": False,
        "RAG_EMBEDDING_CONCURRENT_REQUESTS": 5,
        "openai_config": {"url": f"{url}/v1", "key": KEY},
    }
    assert config == {
        "ENABLE_RAG_HYBRID_SEARCH": True,
        "RAG_RERANKING_ENGINE": "external",
        "RAG_RERANKING_MODEL": "judge",
        "RAG_EXTERNAL_RERANKER_URL": f"{url}/v1/rerank",
        "RAG_EXTERNAL_RERANKER_API_KEY": KEY,
    }
    said = capsys.readouterr()
    assert "RAG_EMBEDDING_ENGINE: '' -> 'openai'" in said.out
    assert "RAG_EMBEDDING_BATCH_SIZE: as it was, 7" in said.out
    assert "embedded by sentence-transformers/all-MiniLM-L6-v2" in said.out
    assert not {KEY, TOKEN, "secret-of-another"} & set(said.out.replace("'", " ").split())
    assert KEY not in said.out + said.err


def test_names_addresses_and_batch_size_are_as_asked(peer: tuple[Peer, str], capsys: Said) -> None:
    open_webui, url = peer
    flags = ["--model", "small", "--reranker", "none", "--batch-size", "32"]
    assert run(url, *flags, "--seen-as", "http://host.docker.internal:9000/v1/") == 0
    ((_, embedding),) = open_webui.posted
    assert embedding["RAG_EMBEDDING_MODEL"] == "small"
    assert embedding["RAG_EMBEDDING_BATCH_SIZE"] == 32
    assert embedding["openai_config"] == {"url": "http://host.docker.internal:9000/v1", "key": "unused"}
    assert "rerank" not in capsys.readouterr().out.lower()


def test_a_second_time_nothing_differs_and_nothing_must_be_indexed_again(peer: tuple[Peer, str], capsys: Said) -> None:
    run(peer[1])
    capsys.readouterr()
    assert run(peer[1]) == 0
    said = capsys.readouterr().out
    assert "->" not in said
    assert "Reindex" not in said


def test_a_gateway_without_a_reranker_leaves_reranking_alone(peer: tuple[Peer, str], capsys: Said) -> None:
    open_webui, url = peer
    open_webui.models = MODELS[:1]
    assert run(url) == 0
    assert len(open_webui.posted) == 1
    assert "no reranker" in capsys.readouterr().out


def test_an_embedding_model_may_rank_by_similarity(peer: tuple[Peer, str]) -> None:
    open_webui, url = peer
    open_webui.models = MODELS[:1]
    assert run(url, "--reranker", "small") == 0
    assert open_webui.posted[1][1]["RAG_RERANKING_MODEL"] == "small"


def test_a_dry_run_changes_nothing(peer: tuple[Peer, str], capsys: Said) -> None:
    assert run(peer[1], "--dry-run") == 0
    assert peer[0].posted == []
    assert "Nothing was changed" in capsys.readouterr().out


def test_the_token_may_come_by_standard_input(peer: tuple[Peer, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", iter_line(f"{TOKEN}\n"))
    assert run(peer[1], token="-") == 0
    monkeypatch.setattr("sys.stdin", iter_line("\n"))
    assert run(peer[1], token="-") == 1


class iter_line:  # noqa: N801 - stands for a stream
    def __init__(self, line: str) -> None:
        self._line = line

    def readline(self) -> str:
        return self._line


WRONG: dict[str, tuple[Callable[[Peer], Any], list[str], str]] = {
    "a token": (lambda _: None, ["--token", "no"], "refuses the token or key (401)"),
    "no such model": (lambda _: None, ["--model", "big"], "no model 'big' for that; it has minilm, small, other."),
    "no such reranker": (lambda _: None, ["--reranker", "x"], "no model 'x' for that; it has none, judge, minilm,"),
    "no embedder": (lambda one: setattr(one, "models", MODELS[2:]), [], "nothing to connect"),
    "not kept": (lambda one: setattr(one, "keeps", False), [], "did not keep"),
    "not Open WebUI": (
        lambda one: one.odd.update({"/api/v1/retrieval/embedding": (200, b"{}")}),
        [],
        "not as Open WebUI",
    ),
    "a page": (lambda one: one.odd.update({"/api/v1/retrieval/embedding": (200, b"<html>")}), [], "no JSON"),
    "a list": (lambda one: one.odd.update({"/api/v1/retrieval/embedding": (200, b"[1]")}), [], "no object"),
    "a fault": (lambda one: one.odd.update({"/v1/models": (500, b"out of order")}), [], "answered 500: out of order"),
    "an address": (lambda _: None, ["--url", "localhost:3000"], "is not an address"),
    "nobody": (lambda _: None, ["--gateway", "http://127.0.0.1:9"], "Nothing answers at http://127.0.0.1:9"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_line_with_the_way_out(case: str, peer: tuple[Peer, str], capsys: Said) -> None:
    change, flags, expected = WRONG[case]
    change(peer[0])
    assert run(peer[1], *flags) == 1
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1
