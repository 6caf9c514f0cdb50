"""Fetching from a fake hub on loopback: only what is needed, no request for what is cached, each refusal one sentence."""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vecgate.engine.hub import Wanted
from vecgate.engine.hub import fetch as fetch_model
from vecgate.errors import CheckpointError

Tiny = Callable[[str], Path]
COMMIT = "a" * 40
FETCH = """
import sys
from vecgate.engine import checkpoint
from vecgate.errors import CheckpointError
told = {"allow_pickle": "--allow-pickle" in sys.argv, "ignore_code": "--ignore-code" in sys.argv}
try:
    found = checkpoint.resolve(sys.argv[1], offline="--offline" in sys.argv, **told)
    print("ok", found.name, found.revision, checkpoint.read(found.folder, found.name, **told).pooling[0])
except CheckpointError as error:
    print("refused", error)
"""


class Hub(ThreadingHTTPServer):
    """One repository, org/model; `refuse` maps a word in a path to (status, error code)."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        self.refuse: dict[str, tuple[int, str]] = {}
        self.asked: list[str] = []

    def served(self) -> list[str]:
        """The files whose content was sent."""
        return sorted(
            {
                path.partition("/resolve/")[2].partition("/")[2]
                for path in self.asked
                if path.startswith("GET ") and "/resolve/" in path
            }
        )


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        for word, (status, code) in self.server.refuse.items():
            if word in self.path:
                return self.answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})
        if self.path.startswith("/api/models/org/model/tree/"):
            files = [
                {"type": "file", "path": path, "size": len(content), "oid": sha1(content).hexdigest()}
                for path, content in self.server.files.items()
            ]
            return self.answer(200, json.dumps(files).encode())
        if self.path.startswith("/api/models/org/model"):
            siblings = [{"rfilename": path} for path in self.server.files]
            return self.answer(200, json.dumps({"id": "org/model", "sha": COMMIT, "siblings": siblings}).encode())
        content = self.server.files.get(self.path.partition(f"/resolve/{COMMIT}/")[2])
        if content is None:
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        return self.answer(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{sha256(content).hexdigest()}"'})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(tiny: Tiny) -> Iterator[Hub]:
    with Hub(tiny("bert")) as server:
        server.files |= {
            "pytorch_model.bin": b"pickle",
            "modeling.py": b"code",
            "onnx/model.onnx": b"onnx",
            "onnx/config.json": b"{}",
            "model.fp16.safetensors": b"another form",
            "README.md": b"words",
            "chat_template.jinja": b"{{ messages }}",
        }
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def fetch(hub: Hub, tmp_path: Path) -> Callable[..., str]:
    """Resolve and read in a process of its own, as huggingface-hub reads its environment once; what it says."""

    def run(*arguments: str, **env: str) -> str:
        endpoint = f"http://127.0.0.1:{hub.server_port}"
        settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", **env}
        settings |= {"HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        command = [sys.executable, "-c", FETCH, *arguments]
        done = subprocess.run(command, env=kept | settings, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def test_only_what_is_needed_is_fetched_and_only_once(hub: Hub, fetch: Callable[..., str]) -> None:
    assert fetch("org/model") == f"ok org/model {COMMIT} mean"
    needed = sorted(path for path in hub.files if path.endswith(".json") and not path.startswith("onnx/"))
    needed = sorted([*needed, "chat_template.jinja", "model.safetensors"])
    assert hub.served() == needed
    hub.asked.clear()
    assert fetch("org/model") == f"ok org/model {COMMIT} mean"
    assert fetch(f"org/model@{COMMIT}") == f"ok org/model {COMMIT} mean"
    assert fetch("org/model", "--offline") == f"ok org/model {COMMIT} mean"
    assert fetch("org/model", HF_HUB_OFFLINE="1") == f"ok org/model {COMMIT} mean"
    assert hub.asked == []


def test_a_download_that_broke_off_is_taken_up_again(hub: Hub, fetch: Callable[..., str]) -> None:
    hub.refuse["model.safetensors"] = (403, "")
    assert fetch("org/model").startswith("refused org/model could not be fetched from the hub (")
    assert fetch("org/model", "--offline").startswith("refused org/model is not in the local cache")
    hub.refuse.clear()
    hub.asked.clear()
    assert fetch("org/model") == f"ok org/model {COMMIT} mean"
    assert hub.served() == ["model.safetensors"]


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "GatedRepo", "org/model is gated: accept its terms on its hub page, then log in with `hf auth login`"),
        (401, "GatedRepo", "org/model is gated: accept its terms"),
        (404, "RepoNotFound", "org/model is not on the hub, or private: check the spelling"),
        (401, "", "The hub refused org/model@v9: log in with `hf auth login` or set HF_TOKEN"),
        (404, "RevisionNotFound", "org/model has no revision 'v9'"),
    ],
)
def test_a_refusal_says_what_to_do(status: int, code: str, words: str, hub: Hub, fetch: Callable[..., str]) -> None:
    hub.refuse["/api/models"] = (status, code)
    said = fetch("org/model@v9")
    assert words.replace("org/model is gated", "org/model@v9 is gated") in said
    assert said.count("\n") == 0


def test_no_connection_is_one_sentence(fetch: Callable[..., str]) -> None:
    said = fetch("org/model", HF_ENDPOINT="http://127.0.0.1:9")
    assert said.startswith("refused org/model could not be fetched from the hub (")
    assert said.endswith("check the connection and start again.")


def test_the_library_tells_no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    logger = logging.getLogger("huggingface_hub")
    logger.setLevel(logging.WARNING)  # as its import leaves it
    with pytest.raises(CheckpointError, match="no route"):
        fetch_model(Wanted("org/model"))
    assert not logger.isEnabledFor(logging.WARNING)


def test_pickle_is_fetched_only_where_it_is_allowed_and_there_is_nothing_else(
    hub: Hub, fetch: Callable[..., str]
) -> None:
    del hub.files["model.safetensors"]
    assert "has no safetensors weights (model.safetensors); pickle can run code" in fetch("org/model")
    assert "pytorch_model.bin" not in hub.served()
    assert fetch("org/model", "--allow-pickle") == f"ok org/model {COMMIT} mean"
    assert "pytorch_model.bin" in hub.served()
    hub.asked.clear()
    assert fetch("org/model", "--allow-pickle", "--offline") == f"ok org/model {COMMIT} mean"
    assert hub.asked == []
    assert fetch("org/model", "--offline").startswith("refused org/model is not in the local cache")


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("modules.json", b"sentence_transformers.models", b"custom_st"),
        ("config.json", b'"model_type"', b'"auto_map": {"AutoModel": "modeling.Evil"}, "model_type"'),
    ],
)
def test_code_is_refused_before_the_weights_are_fetched(
    file: str, old: bytes, new: bytes, hub: Hub, fetch: Callable[..., str]
) -> None:
    hub.files[file] = hub.files[file].replace(old, new)
    assert "never run" in fetch("org/model")
    assert "never run" in fetch("org/model", "--offline")
    assert "model.safetensors" not in hub.served()
    assert fetch("org/model", "--ignore-code") == f"ok org/model {COMMIT} mean"
    assert "modeling.py" not in hub.served()
