"""Every setting, set and not set: each test flips one and sees the server behave differently, by what it answers.

A test is named after its setting's key, which the last test holds against the table.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import shutil
import signal
import socket
import ssl
import stat
import sys
import threading
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import trustme

import vecgate
from tests import small
from tests.live import Live
from tests.test_compat_fixtures import tables
from tests.whole import Whole
from vecgate import backends, cli, config, logs
from vecgate.backends import fake
from vecgate.engine import room
from vecgate.errors import CheckpointError, ConfigError
from vecgate.settings import SETTINGS

TEXTS = ["a cat", "dogs bark", "paris is", "the capital", "berlin is", "what france", "is germany", "of the"]
EMBED = "/v1/embeddings"
OTHER_ADDRESS = "127.0.0.2" if sys.platform == "linux" else "::1"
"""One that this machine has beside 127.0.0.1 without any network."""


def health(cwd: Path, **names: str) -> Any:
    with Whole(cwd, **names) as app:
        return app.get("/health").json()


def models(cwd: Path, **names: str) -> list[str]:
    with Whole(cwd, **names) as app:
        return [card["id"] for card in app.get("/v1/models").json()["data"] if card["id"] == card["root"]]


def post(cwd: Path, path: str, body: Any, headers: dict[str, str] | None = None, /, **names: str) -> httpx.Response:
    with Whole(cwd, **names) as app:
        return app.post(path, body, **(headers or {}))


def rows(cwd: Path, **names: str) -> np.ndarray:
    data = post(cwd, EMBED, {"input": ["a cat", "live in paris"]}, **names).json()["data"]
    return np.array([one["embedding"] for one in data])


def forwards(cwd: Path, path: str, body: Any, **names: str) -> list[int]:
    """The rows of each forward that the request took."""
    script = fake.Script()
    with Whole(cwd, script, **names) as app:
        script.batches.clear()
        assert app.post(path, body).status_code == 200
        return [len(batch.rows) for batch in script.batches]


# what computes


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tests import tiny  # here: it takes torch and transformers

    return str(tiny.build("bert", tmp_path_factory.mktemp("tiny")))


def test_backend(tmp_path: Path, tiny_bert: str) -> None:
    assert health(tmp_path, MODEL_NAME=tiny_bert)["backend"] == "fake"
    assert health(tmp_path, MODEL_NAME=tiny_bert, BACKEND="torch")["backend"] == "torch"
    assert not np.allclose(rows(tmp_path, MODEL_NAME=tiny_bert), rows(tmp_path, MODEL_NAME=tiny_bert, BACKEND="torch"))


def test_device(tmp_path: Path, tiny_bert: str) -> None:
    names = {"MODEL_NAME": tiny_bert, "BACKEND": "torch"}
    assert health(tmp_path, VECGATE_DEVICE="cpu", **names)["device"] == "cpu"
    with Whole(tmp_path, VECGATE_DEVICE="cuda:999", **names) as app:
        failed = app.get("/health").json()
    assert failed["status"] == "failed"
    assert "device 'cuda:999' is not there" in failed["error"]


def test_device_memory_fraction(tmp_path: Path, tiny_bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"MODEL_NAME": tiny_bert, "BACKEND": "torch"}
    usual, half = health(tmp_path, **names), health(tmp_path, DEVICE_MEMORY_FRACTION="0.4", **names)
    limits = [found["device_memory"]["limit_bytes"] for found in (usual, half)]
    assert limits[0] == pytest.approx(2 * limits[1], rel=1e-6)
    monkeypatch.setattr(room, "CARDS", ())
    with pytest.raises(ConfigError, match="DEVICE_MEMORY_FRACTION allows"):
        health(tmp_path, DEVICE_MEMORY_FRACTION="0.000000001", **names)


def test_dtype(tmp_path: Path, tiny_bert: str) -> None:
    names = {"MODEL_NAME": tiny_bert, "BACKEND": "torch"}
    assert health(tmp_path, **names)["dtype"] == "float32"
    assert health(tmp_path, VECGATE_DTYPE="bfloat16", **names)["dtype"] == "bfloat16"
    difference = np.abs(rows(tmp_path, **names) - rows(tmp_path, VECGATE_DTYPE="bfloat16", **names)).max()
    assert 1e-4 < difference < 0.2


def test_verify(tmp_path: Path) -> None:
    def found(**names: str) -> Any:
        (card,) = health(tmp_path, **names)["models"]
        return card["verification"]

    quick, full = found(), found(VECGATE_VERIFY="full")
    assert (quick["form"], quick["verdict"]) == ("quick", "passed")
    assert len(full["checks"]) > len(quick["checks"])
    assert found(VECGATE_VERIFY="off") is None


def test_model_name(tmp_path: Path) -> None:
    other = small.folder(tmp_path / "other", dimensions=24)
    assert models(tmp_path) == ["small"]
    assert models(tmp_path, MODEL_NAME=str(other)) == ["other"]
    assert rows(tmp_path).shape == (2, 8)
    assert rows(tmp_path, MODEL_NAME=str(other)).shape == (2, 24)
    assert models(tmp_path, MODEL_NAME=f"{other}, {tmp_path / 'small'}") == ["other", "small"]
    assert rows(tmp_path, MODEL_NAME=f"{other}, {tmp_path / 'small'}").shape == (2, 24)


def test_mlx_model_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = str(small.folder(tmp_path / "other"))
    assert models(tmp_path, MLX_MODEL_PATH=other) == ["small"]  # another backend's business
    monkeypatch.setitem(backends.BACKENDS, "mlx", backends.BACKENDS["fake"])
    monkeypatch.setitem(backends.NEEDS, "mlx", ((), ""))
    monkeypatch.setattr(backends, "_mlx_families", lambda: {"bert": "vecgate.backends.mlx.bert"})
    assert models(tmp_path, BACKEND="mlx") == ["small"]
    assert models(tmp_path, BACKEND="mlx", MLX_MODEL_PATH=other) == ["other"]


def test_cross_encoder_model(tmp_path: Path) -> None:
    judge = str(small.folder(tmp_path / "judge", "rerank"))
    body = {"query": "what is the capital of france ?", "passages": ["dogs bark", "the capital of france"]}
    assert models(tmp_path) == ["small"]
    assert models(tmp_path, CROSS_ENCODER_MODEL=judge) == ["small", "judge"]
    assert post(tmp_path, "/rerank", body).json()["method"] == "similarity"
    assert post(tmp_path, "/rerank", body, CROSS_ENCODER_MODEL=judge).json()["method"] == "cross-encoder"
    court = str(small.folder(tmp_path / "court", "rerank"))
    assert models(tmp_path, CROSS_ENCODER_MODEL=f"{court}, {judge}") == ["small", "court", "judge"]


def test_idle_unload(tmp_path: Path) -> None:
    def state(**names: str) -> tuple[str, str]:
        with Whole(tmp_path, **names) as app:
            app.run(asyncio.sleep(0.01))
            told = app.get("/health").json()
            assert app.post("/v1/embeddings", {"input": "a cat"}).status_code == 200
            return told["status"], told["models"][0]["state"]

    assert state() == ("ok", "ready")
    assert state(VECGATE_IDLE_UNLOAD="0.00001") == ("ok", "unloaded")


def told(folder: Path, **changes: Any) -> str:
    """The folder, keys of its config.json set."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return str(folder)


def refusal(cwd: Path, **names: str) -> str:
    with pytest.raises(CheckpointError) as refused:
        health(cwd, **names)
    return str(refused.value)


def test_task(tmp_path: Path) -> None:
    folder = small.folder(tmp_path / "reranker")
    (folder / "modules.json").unlink()
    model = told(folder, architectures=["BertForCausalLM"])
    assert "may embed (its tokenizer ends a text with [SEP])" in refusal(tmp_path, MODEL_NAME=model)
    assert "--task rerank" in refusal(tmp_path, MODEL_NAME=model)
    assert rows(tmp_path, MODEL_NAME=model, VECGATE_TASK="embed").shape == (2, 8)
    assert "nothing says how it reads a pair" in refusal(tmp_path, MODEL_NAME=model, VECGATE_TASK="rerank")


def test_what_is_said_of_a_model_needs_one(tmp_path: Path) -> None:
    judge = str(small.folder(tmp_path / "judge", "rerank"))
    names = {"MODEL_NAME": "none", "CROSS_ENCODER_MODEL": judge}
    for told_of in ({"VECGATE_TASK": "rerank"}, {"VECGATE_POOLING": "cls"}, {"VECGATE_PROMPTS": "query=a"}):
        with pytest.raises(ConfigError, match="are about MODEL_NAME, which is none"):
            health(tmp_path, **names, **told_of)
    assert "is a reranker, which pools nothing" in refusal(tmp_path, MODEL_NAME=judge, VECGATE_POOLING="cls")


def test_pooling(tmp_path: Path, tiny_bert: str) -> None:
    names = {"MODEL_NAME": tiny_bert, "BACKEND": "torch"}
    mean, cls = rows(tmp_path, **names), rows(tmp_path, VECGATE_POOLING="cls", **names)
    assert np.abs(mean - cls).max() > 0.01
    assert np.allclose(mean, rows(tmp_path, VECGATE_POOLING="mean", **names))


def test_prompts(tmp_path: Path) -> None:
    def tokens(role: str, **names: str) -> int:
        answer = post(tmp_path, EMBED, {"input": "a cat", "model": f"small:{role}"}, **names)
        return int(answer.json().get("usage", {}).get("prompt_tokens", 0))

    said = {"VECGATE_PROMPTS": '{"query": "what is the ", "sts": "dogs "}'}
    assert (tokens("query"), tokens("sts")) == (5, 0)
    assert (tokens("query", **said), tokens("sts", **said), tokens("document", **said)) == (7, 5, 5)


def test_allow_pickle(tmp_path: Path) -> None:
    model = small.folder(tmp_path / "small")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "trust it with --allow-pickle" in refusal(tmp_path)
    assert models(tmp_path, VECGATE_ALLOW_PICKLE="true") == ["small"]


def test_ignore_code(tmp_path: Path) -> None:
    told(small.folder(tmp_path / "small"), auto_map={"AutoModel": "evil--repo.Model"})
    assert "serve it by ours with --ignore-code" in refusal(tmp_path)
    assert models(tmp_path, VECGATE_IGNORE_CODE="true") == ["small"]


def test_served_name(tmp_path: Path) -> None:
    assert models(tmp_path, VECGATE_SERVED_NAME="text-embedding-3-small") == ["text-embedding-3-small"]
    asked = {"input": "a", "model": "text-embedding-3-small"}
    assert post(tmp_path, EMBED, asked).status_code == 404
    assert post(tmp_path, EMBED, asked, VECGATE_SERVED_NAME="text-embedding-3-small").status_code == 200


def test_aliases(tmp_path: Path) -> None:
    asked = {"input": "a cat", "model": "text-embedding-3-small"}
    assert post(tmp_path, EMBED, asked).status_code == 404
    answer = post(tmp_path, EMBED, asked, VECGATE_ALIASES="text-embedding-3-small = small:query, dimensions=4")
    assert (answer.status_code, answer.json()["model"]) == (200, "text-embedding-3-small")
    assert len(answer.json()["data"][0]["embedding"]) == 4
    assert (answer.headers["x-vecgate-model"], answer.headers["x-vecgate-role"]) == ("small", "query")


def test_cache_dir(tmp_path: Path) -> None:
    for name in ("here", "there"):
        assert health(tmp_path, MODEL_NAME="minilm", VECGATE_CACHE_DIR=str(tmp_path / name))["status"] == "ok"
    known = [json.loads((tmp_path / name / "checked.json").read_text()) for name in ("here", "there")]
    # the weights, without which nothing is served; other files are hashed meanwhile
    marks = [{path: mark for path, mark in one.items() if path.endswith(".safetensors")} for one in known]
    assert marks[0] == marks[1] != {}
    assert not (tmp_path / "cache").exists()


def test_offline(tmp_path: Path) -> None:
    said = []
    for offline in ("true", "false"):
        with pytest.raises(CheckpointError) as refused:
            health(tmp_path, BACKEND="torch", MODEL_NAME="org/absent", VECGATE_OFFLINE=offline)
        said.append(str(refused.value))
    assert "without --offline" in said[0]
    assert "without --offline" not in said[1]


# how much at once


def test_batch_size(tmp_path: Path) -> None:
    assert forwards(tmp_path, "/embed", {"texts": TEXTS}) == [8]
    assert max(forwards(tmp_path, "/embed", {"texts": TEXTS}, BATCH_SIZE="2")) == 2
    assert forwards(tmp_path, "/embed", {"texts": TEXTS, "batch_size": 8}, BATCH_SIZE="2") == [8]


def test_max_batch_size(tmp_path: Path) -> None:
    assert forwards(tmp_path, EMBED, {"input": TEXTS}) == [8]
    assert forwards(tmp_path, EMBED, {"input": TEXTS}, MAX_BATCH_SIZE="4") == [4, 4]


def test_batch_tokens(tmp_path: Path) -> None:
    assert forwards(tmp_path, EMBED, {"input": TEXTS}) == [8]
    assert forwards(tmp_path, EMBED, {"input": TEXTS}, VECGATE_BATCH_TOKENS="8") == [2, 2, 2, 2]


@pytest.mark.parametrize("path", ["/embed", "/api/v1/embed"])
def test_max_texts_per_request(tmp_path: Path, path: str) -> None:
    assert post(tmp_path, path, {"texts": TEXTS}).status_code == 200
    refused = post(tmp_path, path, {"texts": TEXTS}, MAX_TEXTS_PER_REQUEST="7")
    assert refused.status_code == 400
    assert "8 texts; the limit is 7" in refused.json()["message"]


@pytest.mark.parametrize(
    ("path", "key"), [("/rerank", "passages"), ("/rerank", "documents"), ("/v1/rerank", "documents")]
)
def test_max_passages_per_rerank(tmp_path: Path, path: str, key: str) -> None:
    body = {"query": "a cat", key: TEXTS}
    assert post(tmp_path, path, body).status_code == 200
    refused = post(tmp_path, path, body, MAX_PASSAGES_PER_RERANK="7")
    assert refused.status_code == 400
    assert "limit is 7" in refused.json()["message"]


def test_max_inputs(tmp_path: Path) -> None:
    assert post(tmp_path, EMBED, {"input": TEXTS}).status_code == 200
    refused = post(tmp_path, EMBED, {"input": TEXTS}, VECGATE_MAX_INPUTS="7")
    assert refused.status_code == 400
    assert "8 items; the limit is 7" in refused.json()["error"]["message"]


def test_body_limit(tmp_path: Path) -> None:
    body = b'{"input": "%s"}' % (b"a" * 2000)
    assert post(tmp_path, EMBED, body).status_code == 200
    refused = post(tmp_path, EMBED, body, VECGATE_BODY_LIMIT="2000")
    assert refused.status_code == 413
    assert "limit is 2000" in refused.json()["error"]["message"]


def two_at_once(cwd: Path, **names: str) -> list[int]:
    """The statuses of two requests, of which the second comes while the first one is computed."""
    script = fake.Script()
    with Whole(cwd, script, **names) as app:

        async def both() -> list[int]:
            script.hold = threading.Event()
            script.entered.clear()
            first = asyncio.create_task(app.client.post(EMBED, json={"input": "a cat"}))
            await asyncio.to_thread(script.entered.wait, 30)
            second = asyncio.create_task(app.client.post(EMBED, json={"input": "dogs bark"}))
            while not (second.done() or (await app.client.get("/health")).json()["queue"]["items"]):  # noqa: ASYNC110
                await asyncio.sleep(0.001)  # as a client would, who has no event to wait for
            script.hold.set()
            return [(await first).status_code, (await second).status_code]

        return app.run(both())


def test_max_in_flight(tmp_path: Path) -> None:
    assert two_at_once(tmp_path) == [200, 200]
    assert two_at_once(tmp_path, VECGATE_MAX_IN_FLIGHT="1") == [200, 429]


def test_body_memory(tmp_path: Path) -> None:
    assert two_at_once(tmp_path, VECGATE_BODY_MEMORY="200") == [200, 200]
    assert two_at_once(tmp_path, VECGATE_BODY_MEMORY="30") == [200, 429]


# how long


def held(cwd: Path, held_s: float, **names: str) -> int:
    """The status of a request whose forward takes `held_s`."""
    script = fake.Script()
    with Whole(cwd, script, **names) as app:
        script.forward_s = held_s
        return app.post(EMBED, {"input": "a cat"}).status_code


def test_request_timeout(tmp_path: Path) -> None:
    assert held(tmp_path, 0.3) == 200
    assert held(tmp_path, 0.3, REQUEST_TIMEOUT="0.05") == 504


def ended(cwd: Path, **names: str) -> tuple[int, int]:
    """The status of a request under way when SIGTERM comes, and the process's."""
    small.folder(cwd / "small")
    names = {"BACKEND": "fake", "MODEL_NAME": str(cwd / "small"), "HOW": "slow", **names}
    with Live(cwd, module="tests.scripted", **names) as server, ThreadPoolExecutor(1) as pool:
        server.ready()
        answer = pool.submit(server.post, EMBED, {"input": "poison"})
        while json.loads(server.get("/health")[2])["queue"]["busy_s"] is None:
            assert not answer.done()
        server.process.send_signal(signal.SIGTERM)
        return answer.result()[0], server.process.wait(60)


def test_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setitem(sys.modules, "vecgate.ray_serve", None)  # as where it is not installed
    with cli.engines(config.load({}, {}, tmp_path)) as made:
        assert made is None
    with pytest.raises(ConfigError, match=r"vecgate\[ray\]"):
        cli.engines(config.load({}, {"VECGATE_ENGINE": "ray"}, tmp_path))


def test_replicas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That so many processes run is tried in tests/ray."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    stand_in: Any = SimpleNamespace(running=lambda settings: nullcontext(settings.replicas))
    monkeypatch.setitem(sys.modules, "vecgate.ray_serve", stand_in)
    for names, count in (({}, 2), ({"VECGATE_REPLICAS": "5"}, 5)):
        made: Any = cli.engines(config.load({}, {"VECGATE_ENGINE": "ray", **names}, tmp_path))
        assert made.enter_result == count


def test_drain_timeout(tmp_path: Path) -> None:
    assert ended(tmp_path) == (200, 0)
    assert ended(tmp_path, VECGATE_DRAIN_TIMEOUT="0") == (503, 0)


# what is taken for what


def test_truncate(tmp_path: Path) -> None:
    body = {"input": "dogs " * 30}
    cut = post(tmp_path, EMBED, body)
    assert (cut.status_code, cut.headers["x-vecgate-truncated"]) == (200, "0:32>12")
    other = {"input": "cat " * 20 + "dogs " * 10}
    kept = post(tmp_path, EMBED, {"input": "dogs " * 10})
    for path in (EMBED, "/api/embed"):
        last = post(tmp_path, path, other, VECGATE_TRUNCATE="start")
        assert last.headers["x-vecgate-truncated"] == "0:32>12"
    first = post(tmp_path, EMBED, other, VECGATE_TRUNCATE="start")
    assert first.json()["data"] == kept.json()["data"]
    refused = post(tmp_path, EMBED, body, VECGATE_TRUNCATE="refuse")
    assert refused.status_code == 400
    assert re.search(r"32.*12", refused.json()["error"]["message"])


def test_token_ids(tmp_path: Path) -> None:
    own = {"input": [2, 7, 9, 3]}
    assert post(tmp_path, EMBED, own).status_code == 200
    refused = post(tmp_path, EMBED, own, VECGATE_TOKEN_IDS="refuse")
    assert refused.status_code == 400
    assert "takes no token ids" in refused.json()["error"]["message"]


def test_tiktoken_cache_dir(tmp_path: Path) -> None:
    ids = {"input": [64, 8415], "encoding_format": "float"}  # "a cat" in cl100k
    refused = post(tmp_path, EMBED, ids, VECGATE_TOKEN_IDS="cl100k")
    assert refused.status_code == 400
    assert "vecgate models fetch cl100k" in refused.json()["error"]["message"]
    found = post(tmp_path, EMBED, ids, VECGATE_TOKEN_IDS="cl100k", TIKTOKEN_CACHE_DIR=str(tables()))
    assert found.json()["data"] == post(tmp_path, EMBED, {"input": "a cat"}).json()["data"]


# who may call


def test_allowed_hosts(tmp_path: Path) -> None:
    headers = {"host": "vectors.example.org"}
    assert post(tmp_path, EMBED, {"input": "a"}, headers).status_code == 403
    assert post(tmp_path, EMBED, {"input": "a"}, headers, ALLOWED_HOSTS="*.example.org").status_code == 200


def test_allowed_origins(tmp_path: Path) -> None:
    origin = "https://app.example.com"
    assert post(tmp_path, EMBED, {"input": "a"}, {"origin": origin}).status_code == 403
    allowed = post(tmp_path, EMBED, {"input": "a"}, {"origin": origin}, ALLOWED_ORIGINS=f'["{origin}"]')
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, origin)


def test_root_path(tmp_path: Path) -> None:
    assert post(tmp_path, "/vecgate/v1/embeddings", {"input": "a"}).status_code == 404
    with Whole(tmp_path, ROOT_PATH="/vecgate/") as app:
        for path in ("/vecgate/v1/embeddings", "//vecgate//v1/v1/embeddings/", EMBED):
            assert app.post(path, {"input": "a"}).status_code == 200, path
        pages = [app.get(path).status_code for path in ("/vecgate", "/vecgate/", "/vecgate/docs", "/vecgates/docs")]
        assert pages == [200, 200, 200, 404]
        assert app.get("/vecgate/docs/openapi.json").json()["servers"][0]["url"] == "/vecgate"
    for own in ("/v1", "/embed", "/api", "/models", "/models/x", "/v1/models/x/y", "/openai/deployments/x", "/docs/x"):
        with pytest.raises(ConfigError, match=f"ROOT_PATH is {own}, where this server has paths of its own"):
            health(tmp_path, ROOT_PATH=own)


def test_trusted_proxies(tmp_path: Path) -> None:
    def client(**names: str) -> str:
        heard = io.StringIO()
        with logs.logging_to(heard), Whole(tmp_path, **names) as app:
            app.get("/health/live", **{"x-forwarded-for": "203.0.113.9, 198.51.100.7"})
        return str(json.loads(heard.getvalue().splitlines()[-1])["client"])

    assert client() == "127.0.0.1"
    assert client(VECGATE_TRUSTED_PROXIES="127.0.0.1") == "198.51.100.7"
    assert client(VECGATE_TRUSTED_PROXIES="127.0.0.0/8, 198.51.100.7") == "203.0.113.9"


def test_api_key(tmp_path: Path) -> None:
    key = {"authorization": "Bearer sesame"}
    assert post(tmp_path, EMBED, {"input": "a"}).status_code == 200
    assert post(tmp_path, EMBED, {"input": "a"}, VECGATE_API_KEY="sesame").status_code == 401
    assert post(tmp_path, EMBED, {"input": "a"}, key, VECGATE_API_KEY="sesame").status_code == 200


def test_api_key_file(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# ours\nalice sesame\n")
    (tmp_path / "keys").chmod(0o600)
    key = {"x-api-key": "sesame"}
    assert post(tmp_path, EMBED, {"input": "a"}, VECGATE_API_KEY_FILE="keys").status_code == 401
    assert post(tmp_path, EMBED, {"input": "a"}, key, VECGATE_API_KEY_FILE="keys").status_code == 200


def test_rate_limit(tmp_path: Path) -> None:
    def statuses(**names: str) -> list[int]:
        with Whole(tmp_path, **names) as app:
            return [app.post(EMBED, {"input": "a"}).status_code for _ in range(3)]

    assert statuses() == [200, 200, 200]
    assert statuses(VECGATE_RATE_LIMIT="2") == [200, 200, 429]


def test_key_concurrency(tmp_path: Path) -> None:
    def statuses(**names: str) -> list[int]:
        script = fake.Script()
        with Whole(tmp_path, script, **names) as app:
            script.entered.clear()  # warming up has entered too
            script.hold = go = threading.Event()

            async def two() -> list[int]:
                first = asyncio.ensure_future(app.client.post(EMBED, json={"input": "a"}))
                await asyncio.to_thread(script.entered.wait, 60)
                second = asyncio.ensure_future(app.client.post(EMBED, json={"input": "a"}))
                await asyncio.wait([second], timeout=0.2)  # refused at once, or waiting
                go.set()
                return [(await one).status_code for one in (first, second)]

            return app.run(two())

    assert statuses() == [200, 200]
    assert statuses(VECGATE_KEY_CONCURRENCY="1") == [200, 429]


# where it listens, what it logs


@dataclass
class Life:
    """What was seen of one server: the addresses it answered at, and its log once it had ended."""

    port: int
    answered: list[str]
    lines: list[str]


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Life, Life]:
    """One server as it comes, one with every setting of this part flipped."""
    cwd = tmp_path_factory.mktemp("lives")
    names = {"BACKEND": "fake", "MODEL_NAME": str(small.folder(cwd / "small"))}
    others = {"HOST": OTHER_ADDRESS, "LOG_LEVEL": "WARNING", "LOG_FORMAT": "console", "ALLOWED_HOSTS": "*"}
    with Live(cwd, **names) as usual, Live(cwd, **names, **others) as other:
        seen = (usual, look(usual, "127.0.0.1")), (other, look(other, OTHER_ADDRESS))
    first, second = (Life(server.port, answered, server.log().splitlines()) for server, answered in seen)
    return first, second


def look(server: Live, expected: str) -> list[str]:
    """Where a server that is ready at `expected` answers."""
    answered = []
    for address in (expected, *{"127.0.0.1", OTHER_ADDRESS} - {expected}):
        server.url = f"http://[{address}]:{server.port}" if ":" in address else f"http://{address}:{server.port}"
        try:
            server.ready() if address == expected else server.get("/health/ready")
            answered.append(address)
        except urllib.error.URLError:
            continue
    return answered


def test_host(lives: tuple[Life, Life]) -> None:
    assert [life.answered for life in lives] == [["127.0.0.1"], [OTHER_ADDRESS]]


def test_port(lives: tuple[Life, Life]) -> None:
    usual, other = lives  # each was asked at the port it was given
    assert usual.port != other.port
    assert f"http://127.0.0.1:{usual.port}," in usual.lines[0]


def test_log_level(lives: tuple[Life, Life]) -> None:
    usual, other = ("\n".join(life.lines) for life in lives)
    assert "/health/ready" in usual
    assert "/health/ready" not in other
    assert "ALLOWED_HOSTS" in other  # a warning


def test_log_format(lives: tuple[Life, Life]) -> None:
    usual, other = (life.lines for life in lives)
    assert {json.loads(line)["level"] for line in usual} == {"INFO"}
    assert [line for line in other if not re.match(r"\d\d:\d\d:\d\d\.\d{3} WARNING vecgate: ", line)] == []
    assert other != []


@pytest.fixture(scope="module")
def root_of_trust() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory, root_of_trust: trustme.CA) -> Path:
    """A folder with cert.pem (and the chain's next), key.pem, and both.pem."""
    folder = tmp_path_factory.mktemp("pems")
    made = root_of_trust.issue_cert("127.0.0.1", "localhost")
    for at, pem in enumerate(made.cert_chain_pems):
        pem.write_to_path(folder / "cert.pem", append=at > 0)
    made.private_key_pem.write_to_path(folder / "key.pem")
    made.private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    for path in folder.iterdir():
        path.chmod(0o600)
    return folder


def answers_over_tls(cwd: Path, root_of_trust: trustme.CA, **names: str) -> str:
    """The TLS version of a server's first answer, made by a client that trusts the root alone."""
    trusting = ssl.create_default_context()
    root_of_trust.configure_trust(trusting)
    with Live(cwd, BACKEND="fake", MODEL_NAME=str(small.folder(cwd / "small")), **names) as server:
        server.url, server.trusting = server.url.replace("http:", "https:"), trusting
        server.ready()
        assert server.post(EMBED, {"input": "a"})[0] == 200
        assert f"https://127.0.0.1:{server.port}," in server.log()
        with (
            socket.create_connection(("127.0.0.1", server.port)) as plain,
            trusting.wrap_socket(plain, server_hostname="localhost") as tls,
        ):
            return tls.version() or ""


def test_tls_cert(tmp_path: Path, pems: Path, root_of_trust: trustme.CA) -> None:
    assert answers_over_tls(tmp_path, root_of_trust, VECGATE_TLS_CERT=str(pems / "both.pem")) == "TLSv1.3"


def test_tls_key(tmp_path: Path, pems: Path, root_of_trust: trustme.CA) -> None:
    cert = str(pems / "cert.pem")
    names = {"VECGATE_TLS_CERT": cert, "VECGATE_TLS_KEY": str(pems / "key.pem")}
    assert answers_over_tls(tmp_path, root_of_trust, **names) == "TLSv1.3"
    with Live(tmp_path, VECGATE_TLS_CERT=cert) as server:
        assert server.process.wait(60) == 2
        assert f"VECGATE_TLS_CERT, without VECGATE_TLS_KEY, '{cert}' holds no private key" in server.log()


@pytest.fixture(scope="module")
def modes() -> tuple[int, int]:
    """Of the sockets of two servers, one as it comes, each of which has answered."""
    found = []
    for names in ({}, {"VECGATE_UDS_MODE": "660"}):
        with TemporaryDirectory(dir="/tmp") as folder, httpx.Client(transport=over(folder)) as client:
            cwd = Path(folder)
            settings = {"BACKEND": "fake", "MODEL_NAME": str(small.folder(cwd / "small")), "VECGATE_UDS": "x.sock"}
            with Live(cwd, **settings, **names) as server:
                wait_ready(server, client)
                assert client.post(f"http://anything{EMBED}", json={"input": "a"}).status_code == 200
                with pytest.raises(urllib.error.URLError):
                    server.get("/health")  # nobody listens at the port
                found.append(stat.S_IMODE((cwd / "x.sock").stat().st_mode))
                assert f"listens on unix:{cwd}/x.sock" in server.log()
    return found[0], found[1]


def over(folder: str) -> httpx.HTTPTransport:
    return httpx.HTTPTransport(uds=f"{folder}/x.sock")


def wait_ready(server: Live, client: httpx.Client) -> None:
    """Asked by a bare socket first: httpx leaves one open where nobody listens yet."""
    path = str(server.cwd / "x.sock")
    with socket.socket(socket.AF_UNIX) as knock:
        while knock.connect_ex(path) != 0:
            assert server.process.poll() is None, server.log()
            time.sleep(0.05)
    while client.get("http://anything/health/ready").status_code != 200:
        assert server.process.poll() is None, server.log()


def test_uds(modes: tuple[int, int]) -> None:
    assert len(modes) == 2


def test_uds_mode(modes: tuple[int, int]) -> None:
    assert modes == (0o600, 0o660)


def logged(cwd: Path, **names: str) -> list[Path]:
    """The log files after a server of these settings took some calls."""
    settings = config.load({}, {"LOG_FILE": str(cwd / "vecgate.log"), **names}, cwd)
    assert settings.log_file is not None
    file = logs.File(settings.log_file, settings.log_file_bytes, settings.log_files)
    with logs.logging_to(io.StringIO(), file=file), Whole(cwd) as app:
        for _ in range(5):
            app.get("/health/live")
    return sorted(cwd.glob("vecgate.log*"))


def test_log_file(tmp_path: Path) -> None:
    (file,) = logged(tmp_path)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert sum(line.get("route") == "/health/live" for line in lines) == 5


def test_log_file_size(tmp_path: Path) -> None:
    files = logged(tmp_path, VECGATE_LOG_FILE_SIZE="300")
    assert len(files) > 2
    assert all(file.stat().st_size <= 300 for file in files)


def test_log_files(tmp_path: Path) -> None:
    files = logged(tmp_path, VECGATE_LOG_FILE_SIZE="300", VECGATE_LOG_FILES="1")
    assert [file.name for file in files] == ["vecgate.log", "vecgate.log.1"]


def test_reload(tmp_path: Path) -> None:
    source = tmp_path / "source" / "vecgate"
    shutil.copytree(Path(vecgate.__file__).parent, source, ignore=shutil.ignore_patterns("__pycache__"))
    names = {"BACKEND": "fake", "MODEL_NAME": str(small.folder(tmp_path / "small")), "PYTHONPATH": str(source.parent)}
    # polling, since not every file system of a container tells of changes
    with Live(tmp_path, RELOAD="true", WATCHFILES_FORCE_POLLING="true", **names) as server:
        server.ready()
        assert json.loads(server.get("/health")[2])["version"] == vecgate.__version__
        changed = (source / "__init__.py").read_text().replace(vecgate.__version__, "77.7.7")
        (source / "__init__.py").write_text(changed)
        server.wait_for("/health", 200, '"version":"77.7.7"')
        server.process.terminate()
        assert server.process.wait(30) == 0
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", server.port)) != 0  # the child has ended too


def test_every_setting_has_its_test() -> None:
    assert {f"test_{setting.key}" for setting in SETTINGS} - globals().keys() == set()
