"""The command line in this process: what it prints, its status, and the table it fetches from a server on this machine."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests import small
from tests.test_banner import status
from vecgate import __version__, app, cli, logs, place, ram, server
from vecgate.core import Status
from vecgate.protocols import token_ids
from vecgate.settings import SETTINGS, Settings

Said = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one to be in, so that no .env and no vecgate.toml of the developer's is read."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What would have been served; nothing is."""
    settings: list[Settings] = []

    def serve(one: Settings) -> int:
        settings.append(one)
        return 0

    monkeypatch.setattr(cli, "serve", serve)
    monkeypatch.setattr(cli, "_leave", lambda status: status)
    return settings


def one_line(said: Said) -> str:
    """The one sentence on stderr; nothing on stdout."""
    out, err = said.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("vecgate: ")
    assert err.endswith(".\n")
    return err


# help


def test_without_arguments_it_helps(capsys: Said) -> None:
    assert cli.main([]) == 0
    out, err = capsys.readouterr()
    assert "serve" in out
    assert "models" in out
    assert err == ""


@pytest.mark.parametrize("argv", [["--help"], ["serve", "--help"], ["models", "--help"], ["models", "fetch", "-h"]])
def test_help_is_no_failure(argv: list[str], capsys: Said) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(argv)
    assert left.value.code == 0
    assert "usage: vecgate" in capsys.readouterr().out


def test_the_help_of_serve_has_every_setting(capsys: Said) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert [setting.option for setting in SETTINGS if setting.option not in out] == []
    assert [setting.name for setting in SETTINGS if f"[{setting.name}]" not in out] == []


def test_the_version(capsys: Said) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"vecgate {__version__}\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"GOMP_SPINCOUNT": cli.SPINS}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_a_forward_s_threads_sleep_soon_unless_somebody_wants_them_otherwise(
    before: dict[str, str], after: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", before)
    assert cli.main([]) == 0
    assert before == after


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP")
def test_torch_s_openmp_is_told_in_time() -> None:
    code = "from vecgate import cli; cli.main([]); import torch; torch.get_num_threads()"
    environ = {name: value for name, value in os.environ.items() if name not in cli.SPIN}
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={**environ, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert f"GOMP_SPINCOUNT = '{cli.SPINS}'" in told.stderr


def test_closed_standard_streams_lead_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert cli.main(["models"]) == 0
    assert cli.main(["srve"]) == 2
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        assert stream.name == os.devnull
        stream.close()


# refusals


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["serve", "--prt", "9001"], ("--prt", "--port")),
        (["serve", "--api-kee=secret"], ("--api-kee", "--api-key")),
        (["--model=secret"], ("--model", "after the command")),
        (["serve", "--port"], ("--port", "vecgate serve --help")),
        (["serve", "--port", "http"], ("--port", "'http'", "65535")),
        (["serve", "--batch-size", "9", "--max-batch-size", "8"], ("--batch-size", "8")),
        (["serve", "--port", "0", "--model", "./nowhere"], ("nowhere",)),
        (["srve"], ("srve", "serve", "vecgate --help")),
        (["models", "fetch"], ("NAME", "vecgate models fetch --help")),
        (["models", "fetch", "p50k"], ("p50k", "cl100k", "o200k", "minilm")),
    ],
)
def test_a_mistake_is_one_line_and_status_2(argv: list[str], parts: tuple[str, ...], capsys: Said) -> None:
    assert cli.main(argv) == 2
    told = one_line(capsys)
    assert [part for part in parts if part not in told] == []
    assert "secret" not in told


def test_a_wrong_variable_is_one_line_and_status_2(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.setenv("VECGATE_PROT", "1")
    assert cli.main(["serve"]) == 2
    assert "VECGATE_PROT" in one_line(capsys)


def test_a_broken_checkpoint_is_one_line_and_status_2(folder: Path, capsys: Said) -> None:
    model = small.folder(folder / "small")
    (model / "config.json").unlink()
    assert cli.main(["serve", "--backend", "fake", "--port", "0", "--model", str(model)]) == 2
    assert "config.json" in one_line(capsys)


def test_a_port_in_use_is_one_line_and_status_2(capsys: Said) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert cli.main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "in use" in one_line(capsys)


def test_reload_without_its_package_is_one_line_and_status_2(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    assert cli.main(["serve", "--reload"]) == 2
    assert "vecgate[reload]" in one_line(capsys)


def test_reload_refuses_a_wrong_model_before_it_watches(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    import watchfiles

    monkeypatch.setattr(watchfiles, "run_process", lambda *_, **__: pytest.fail("it watched"))
    assert cli.main(["serve", "--reload", "--port", "0", "--model", "./nowhere"]) == 2
    assert "nowhere" in one_line(capsys)


def test_an_interrupted_start_has_the_shells_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Settings) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "serve", interrupted)
    assert cli.main(["serve"]) == 130


# serve


def test_flags_reach_the_settings_and_beat_the_environment(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORT", "7001")
    monkeypatch.setenv("BATCH_SIZE", "8")
    argv = ["serve", "--port", "7002", "--allowed-hosts", "a.example,b.example", "--allowed-hosts", "c.example"]
    assert cli.main(argv) == 0
    assert (served[0].port, served[0].batch_size) == (7002, 8)
    assert served[0].allowed_hosts == ("a.example", "b.example", "c.example")


def test_the_files_of_the_working_folder_are_read(served: list[Settings], folder: Path) -> None:
    (folder / ".env").write_text("PORT=7003\n")
    (folder / "vecgate.toml").write_text("port = 7004\nbatch_size = 4\n")
    (folder / "other.toml").write_text("batch_size = 5\n")
    assert cli.main(["serve"]) == 0
    assert cli.main(["serve", "--config", "other.toml"]) == 0
    assert [(one.port, one.batch_size) for one in served] == [(7003, 4), (7003, 5)]


@pytest.mark.parametrize(
    ("host", "address", "shown"), [("127.0.0.1", "127.0.0.1", "127.0.0.1"), ("::1", "::1", "[::1]")]
)
def test_serve_says_where_it_listens_and_what_is_dangerous(
    monkeypatch: pytest.MonkeyPatch, capsys: Said, folder: Path, host: str, address: str, shown: str
) -> None:
    ran: list[tuple[Any, ...]] = []
    monkeypatch.setattr(place, "free_place", lambda host, port, tls: place.Place(host, 7005, tls))

    def run(_app: object, _life: object, *rest: Any) -> int:
        ran.append(rest)
        return 0

    monkeypatch.setattr(server, "run", run)
    settings = Settings(
        backend="fake",
        models=(str(small.folder(folder / "small")),),
        host=host,
        log_format="console",
        allowed_hosts=("*",),
        drain_timeout_s=3.0,
    )
    assert cli.serve(settings) == 0
    assert ran == [(place.Place(address, 7005), 3.0)]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "WARNING" in lines[0]
    assert "ALLOWED_HOSTS" in lines[0]
    assert f"listens on http://{shown}:7005," in lines[1]
    assert not any(isinstance(handler, logging.handlers.QueueHandler) for handler in logging.getLogger().handlers)


# models fetch

TABLE = b"IQ== 0\nIg== 1\n" * 1000


class Site(BaseHTTPRequestHandler):
    """/whole, /broken (ends half-way), anything else: 404. `asked`: the paths, in order."""

    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200 if self.path in ("/whole", "/broken") else 404)
        self.send_header("Content-Length", str(len(TABLE)))
        self.end_headers()
        self.wfile.write(TABLE if self.path == "/whole" else TABLE[:100])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def listening() -> Iterator[str]:
    Site.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{site.server_port}"
        site.shutdown()
        thread.join()


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], token_ids.Table]]:
    """Makes cl100k's table be the one at a path of the site."""
    with listening() as url:

        def at(path: str) -> token_ids.Table:
            digest = sha256(TABLE).hexdigest()
            found = replace(token_ids.TABLES["cl100k"], url=url + path, sha256=digest)
            monkeypatch.setitem(token_ids.TABLES, "cl100k", found)
            return found

        yield at


def fetch(monkeypatch: pytest.MonkeyPatch, folder: Path) -> int:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    return cli.main(["models", "fetch", "cl100k"])


def test_a_table_is_fetched_whole_and_once(
    folder: Path, table: Callable[[str], token_ids.Table], monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    into = folder / "deep" / "tables"
    path = into / table("/whole").file_name
    assert fetch(monkeypatch, into) == fetch(monkeypatch, into) == 0
    assert capsys.readouterr().out == f"{path}\n" * 2
    assert path.read_bytes() == TABLE
    assert [one.name for one in into.iterdir()] == [path.name]
    assert Site.asked == ["/whole"]
    assert token_ids.load_encoding("cl100k", into) is not None


def test_a_wrong_file_that_lies_there_is_replaced(
    folder: Path, table: Callable[[str], token_ids.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / table("/whole").file_name
    path.write_bytes(b"half")
    assert fetch(monkeypatch, folder) == 0
    assert path.read_bytes() == TABLE


@pytest.mark.parametrize(
    ("path", "told"), [("/nothing", "404"), ("/broken", "100 bytes read"), ("/whole", "of sha256")]
)
def test_what_is_not_the_table_is_not_kept(
    folder: Path,
    table: Callable[[str], token_ids.Table],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Said,
    path: str,
    told: str,
) -> None:
    found = table(path)
    monkeypatch.setitem(token_ids.TABLES, "cl100k", replace(found, sha256="0" * 64))
    assert fetch(monkeypatch, folder) == 2
    line = one_line(capsys)
    assert told in line
    assert found.url in line
    assert "vecgate models fetch cl100k" in line
    assert list(folder.iterdir()) == []


def test_no_connection_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    with listening() as url:
        gone = replace(token_ids.TABLES["cl100k"], url=url)
    monkeypatch.setitem(token_ids.TABLES, "cl100k", gone)
    assert fetch(monkeypatch, folder) == 2
    assert "refused" in one_line(capsys)


def test_a_folder_that_is_a_file_is_one_line(
    folder: Path, table: Callable[[str], token_ids.Table], monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    table("/whole")
    (folder / "taken").write_text("")
    assert fetch(monkeypatch, folder / "taken") == 2
    assert "TIKTOKEN_CACHE_DIR" in one_line(capsys)


def test_an_interrupted_write_leaves_no_half_of_a_table(
    folder: Path, table: Callable[[str], token_ids.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    table("/whole")

    def interrupted(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    assert fetch(monkeypatch, folder) == 130
    assert os.listdir(folder) == []


# models, and their removal


def test_models_are_asked_for_before_they_go(monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: Said) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    path = folder / token_ids.TABLES["o200k"].file_name
    path.write_bytes(b"x")
    assert cli.main(["models", "remove", "o200k"]) == 2
    assert "--yes" in one_line(capsys)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    for answer, stays in (("n", True), ("", True), ("yes", False)):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        assert cli.main(["models", "remove", "o200k"]) == 0
        assert path.exists() is stays
    assert "Nothing was removed." in capsys.readouterr().out


def test_models_have_a_table_and_json(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.setattr("vecgate.engine.cached.cached", tuple)
    assert cli.main(["models"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("minilm* ")
    assert cli.main(["models", "--model", "minilm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["names"][0] == "minilm"


@pytest.mark.parametrize("place", ["before", "behind"])
def test_flags_count_on_both_sides_of_an_action(place: str, folder: Path, capsys: Said) -> None:
    flag = ["--tiktoken-cache-dir", str(folder / "tables")]
    argv = ["models", *flag, "remove", "cl100k"] if place == "before" else ["models", "remove", "cl100k", *flag]
    assert cli.main(argv) == 1
    assert str(folder / "tables") in one_line(capsys)


# the banner


def test_what_is_loaded_is_settled_before_the_server_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    told: list[Callable[[Status], None]] = []

    def build(_settings: Settings, on_ready: Callable[[Status], None], *_: object) -> tuple[None, None]:
        told.append(on_ready)
        return None, None

    monkeypatch.setattr(app, "build", build)
    monkeypatch.setattr(ram, "settle", lambda: told.append(lambda _: None))
    monkeypatch.setattr(server, "run", lambda *_: told[0](ready(tmp_path / "ready")))
    cli.serve(Settings(port=0))
    assert len(told) == 2
    assert "Ready at" in capsys.readouterr().err


def ready(tmp_path: Path) -> Status:
    return status(tmp_path, "embed")


@pytest.mark.parametrize(("host", "shown"), [("0.0.0.0", "http://127.0.0.1:7"), ("::", "http://[::1]:7")])
def test_a_person_gets_a_banner(host: str, shown: str, tmp_path: Path, capsys: Said) -> None:
    settings = Settings(log_format="console", host=host)
    with logs.logging_to(form="console"):
        cli._announce(settings, place.Place(port=7), ready(tmp_path / "ready"))
    err = capsys.readouterr().err
    assert f'OpenAI(base_url="{shown}/v1", api_key="unused")' in err
    with logs.logging_to(level="ERROR", form="console"):
        cli._announce(settings, place.Place(port=7), ready(tmp_path / "ready"))
    assert capsys.readouterr().err == ""


def test_a_machine_gets_one_line_of_json(tmp_path: Path, capsys: Said) -> None:
    with logs.logging_to():
        cli._announce(Settings(), place.Place(port=7), ready(tmp_path / "ready"))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines[-1]["message"] == "Ready at http://127.0.0.1:7."
    assert lines[-1]["models"][0]["dimensions"] == 8
    assert lines[-1]["paste"].startswith("OpenAI(")
