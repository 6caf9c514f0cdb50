"""A live server with keys: what it gives to whom shows none, that no key can be seen anywhere, and whom it calls: nobody."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import small
from tests.alone import BEGUN, OUTGOING
from tests.live import Live

KEYS = ("sesame-one", "sesame-two")
BODY = b'{"input":"a","inputs":"a","texts":["a"]}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    cwd = tmp_path_factory.mktemp("closed")
    (cwd / "keys").write_text(f"alice {KEYS[1]}\n")
    (cwd / "keys").chmod(0o600)
    names = {"VECGATE_API_KEY": KEYS[0], "VECGATE_API_KEY_FILE": "keys", "LOG_LEVEL": "DEBUG"}
    names |= {"BACKEND": "fake", "MODEL_NAME": str(small.folder(cwd / "small"))}
    with Live(cwd, module="tests.alone", **names) as started:
        yield started.ready()


def asked(server: Live, method: str, target: str, *headers: str) -> tuple[int, bytes]:
    """Status and all that came, of a request line as it stands."""
    body = BODY if method == "POST" else b""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Length: {len(body)}"]
    with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        connection.sendall("\r\n".join([*lines, *headers, "", ""]).encode("latin-1") + body)
        raw = b"".join(iter(lambda: connection.recv(65_536), b""))
    return int(raw.split(b" ", 2)[1]), raw


@pytest.mark.parametrize(
    "target",
    "/ /health /health/live /health/ready /ping /docs /docs/ /openapi.json /docs/openapi.json /docs/swagger-ui.css "
    "/docs/swagger-ui-bundle.js //health /health/?key=x /health#x".split(),
)
def test_what_is_public(server: Live, target: str) -> None:
    for method in ("GET", "HEAD"):
        assert asked(server, method, target)[0] == 200
    assert asked(server, "POST", target)[0] == 401


TRICKS = [
    "/metrics", "/metrics/", "//metrics", "/./metrics", "/health/../metrics", "/docs/../metrics", "/docs/%2e%2e/metrics",
    "/docs/..%2fmetrics", "/docs%2f..%2fmetrics", "/docs/..;/metrics", "/;/metrics", "/metrics;x=/docs", "/docs;/../metrics",
    "/METRICS", "/%6detrics", "/metrics%20", "/metrics%00", "/metrics?/docs", "/metrics#/docs", "/health/live/../../metrics",
    "/web/../metrics", "/web/%2e%2e/v1/models", "/web/..%5cmetrics", "http://localhost/metrics", "http://localhost//metrics",
    "/v1/models", "/v1/models/", "//v1//models", "/models", "/v1/models/small", "/openai/v1/models", "/v1/v1/models", "/info",
    "/api/tags", "/api/ps", "/api/version", "/health/metrics", "/HEALTH", "/Docs", "/docs2", "/docsx/", "/webx", "/.env",
    "/v1/embeddings", "/nothing", "/health/live/x", "/ping/x", "/%2fhealth%2fx", "/docs/../../../../etc/passwd", "/openapi.yaml",
]  # fmt: skip


@pytest.mark.parametrize("target", TRICKS)
def test_what_is_not(server: Live, target: str) -> None:
    """Without a key all of these are 401, as what does not exist is, or what the path may never do; no answer has content."""
    for method in ("GET", "HEAD", "POST"):
        status, raw = asked(server, method, target)
        assert status in (401, 404)
        assert status == 401 or target.startswith(("/docs/", "/web/"))
        assert not re.search(rb"vecgate_|\"object\":|root:|\"model_id\"|\"models\"", raw)


@pytest.mark.parametrize(
    "header",
    [
        "X-HTTP-Method-Override: OPTIONS",
        "X-HTTP-Method: GET",
        "X-Method-Override: HEAD",
        "X-Original-URL: /health",
        "X-Rewrite-URL: /docs",
        "X-Forwarded-Prefix: /docs",
        "X-Forwarded-For: 127.0.0.1",
        "X-Real-IP: 127.0.0.1",
        "Forwarded: for=127.0.0.1;host=localhost",
        "Referer: http://localhost/docs",
        "Cookie: key=sesame-one",
        "Authorization: Basic c2VzYW1lLW9uZTo=",
        "Authorization: sesame-one",
        "Authorization: Bearer",
        "Authorization: Bearer sesame-on",
        "Authorization: Bearer sesame-onee",
        "Authorization: Bearer SESAME-ONE",
        "Authorization: Bearer alice sesame-two",
        "Authorization: Bearer sesame-one, sesame-two",
        "Authorization: Bearer sesame-one\r\nAuthorization: Bearer sesame-one",
        "api-key: \xff\xfe",
        "api-key: null",
    ],
)
def test_no_header_but_a_key_opens(server: Live, header: str) -> None:
    for method, target in (("POST", "/v1/embeddings"), ("GET", "/metrics"), ("GET", "/v1/models?api_key=sesame-one")):
        status, raw = asked(server, method, target, header)
        assert status == 401
        assert b"sesame" not in raw
    assert asked(server, "OPTIONS", "/v1/embeddings", header)[0] == 401


def test_each_key_opens_in_each_of_its_headers(server: Live) -> None:
    for key in KEYS:
        for header in (
            f"Authorization: Bearer {key}",
            f"authorization: bearer {key}",
            f"api-key: {key}",
            f"x-api-key: {key}",
        ):
            assert asked(server, "POST", "/v1/embeddings", header)[0] == 200
            assert asked(server, "GET", "/metrics", header)[0] == 200
    assert re.search(r'"key":"#1"', server.log())
    assert re.search(r'"key":"alice"', server.log())


def test_an_origin_that_is_allowed_asks_what_it_may_and_gets_no_more(server: Live) -> None:
    origin, wish = "Origin: http://localhost:3000", "Access-Control-Request-Method: POST"
    assert asked(server, "OPTIONS", "/v1/embeddings", origin, wish)[0] == 204
    assert asked(server, "OPTIONS", "/v1/embeddings", "Origin: https://evil.example", wish)[0] == 403
    assert asked(server, "POST", "/v1/embeddings", origin)[0] == 401
    assert asked(server, "GET", "/metrics", origin, wish)[0] == 401


def test_health_is_one_word_to_strangers(server: Live) -> None:
    for path in ("/health", "/health/ready", "/ping"):
        said = json.loads(asked(server, "GET", path)[1].partition(b"\r\n\r\n")[2] or b"{}")
        assert set(said) <= {"status"}
    known = json.loads(server.get("/health", **{"x-api-key": KEYS[0]})[2])
    assert known["model"]


def test_no_key_is_seen_anywhere(server: Live) -> None:
    key = {"Authorization": f"Bearer {KEYS[0]}"}
    paths = ("/health", "/docs", "/openapi.json", "/metrics", "/v1/models", "/info", "/nothing")
    seen = [server.get(path, **key)[2] for path in paths]
    seen.append(server.post("/v1/embeddings", b'{"input": 1, "model": "' + KEYS[0].encode(), **key)[2])
    seen.append(asked(server, "GET", f"/{KEYS[0]}", f"x-api-key: {KEYS[0]}x")[1])
    seen.append(" ".join(psutil.Process(server.process.pid).cmdline()).encode())
    seen.append(server.log().encode())
    assert [one for one in seen if b"sesame" in one] == []


URLS = [
    "http://127.0.0.1:{port}/x",
    "https://127.0.0.1:{port}/x",
    "//127.0.0.1:{port}/x",
    "file:///etc/passwd",
    "hf://org/model",
    "org/model",
    "org/model@main",
    "../../../etc/passwd",
    "/etc",
    "\\\\127.0.0.1\\share",
    "s3://bucket/model",
    "data:image/png;base64,iVBORw0KGgo=",
]


def bodies(url: str) -> list[tuple[str, Any]]:
    image = {"type": "image_url", "image_url": {"url": url}}
    return [
        ("/v1/embeddings", {"input": url, "model": url}),
        ("/v1/embeddings", {"input": [image]}),
        ("/v1/embeddings", {"messages": [{"role": "user", "content": [image]}]}),
        (
            "/v2/embed",
            {"model": url, "inputs": [{"content": [image]}], "input_type": "image", "embedding_types": ["float"]},
        ),
        ("/v1/embed", {"model": "small", "images": [url], "input_type": "image"}),
        ("/v2/rerank", {"model": url, "query": url, "documents": [url, {"text": url, "image": url}]}),
        ("/embed", {"inputs": [url], "model": url}),
        ("/embed", {"texts": [url], "model": url}),
        ("/similarity", {"inputs": {"source_sentence": url, "sentences": [url]}}),
        ("/api/embed", {"model": url, "input": url}),
        ("/api/show", {"model": url}),
        ("/api/pull", {"model": url}),
        ("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": url}),
    ]


def test_no_request_makes_it_call_anybody(server: Live) -> None:
    key = {"x-api-key": KEYS[0]}
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.settimeout(0)
        for template in URLS:
            url = template.format(port=canary.getsockname()[1])
            for path, body in bodies(url):
                status, _, said = server.post(path, body, **key, **{"X-Callback-URL": url, "Referer": url})
                assert status < 500
                assert b"root:" not in said
            server.get(f"/v1/models/{url.replace(chr(92), '/')}", **key)
        with pytest.raises(BlockingIOError):
            canary.accept()
    assert Path(server.cwd / OUTGOING).read_text() == f"{BEGUN}\n"
