"""embed and rerank as a user types them: over the fake backend, in this process and by a server; every way they end."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import small
from tests.live import Live, command, environment
from vecgate import ask, bulk, cli
from vecgate.app import build_engine
from vecgate.backends import fake
from vecgate.core import Call
from vecgate.settings import Settings

Said = pytest.CaptureFixture[str]
TEXTS = ["paris is the capital", "dogs bark", "a cat ?", ""]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One with the models `small` and `judge` of tests/small.py, which the environment asks for."""
    small.folder(tmp_path / "small")
    small.folder(tmp_path / "judge", "rerank")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BACKEND", "fake")
    monkeypatch.setenv("MODEL_NAME", "./small")
    return tmp_path


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Puts bytes on standard input."""

    def put(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return put


def jsonl(path: Path, count: int, poison: int = -1) -> Path:
    """poison: the row that has tests/scripted.py's word too."""
    words = small.WORDS
    lines = (
        {"id": f"é{i}", "text": f"{words[i % 7]} {words[i % 11]}{' poison' * (i == poison)}"} for i in range(count)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def records(said: str) -> tuple[list[Any], np.ndarray]:
    found = [json.loads(line) for line in said.splitlines()]
    return [one["id"] for one in found], np.array([one["embedding"] for one in found], np.float32)


def one_line(said: Said) -> str:
    out, err = said.readouterr()
    assert out == ""
    assert re.fullmatch(r"vecgate: .+\n", err), err
    return err


def rows(*texts: str, **options: Any) -> np.ndarray:
    """What the engine itself says."""

    async def embed() -> np.ndarray:
        engine = build_engine(Settings(backend="fake", models=("./small",)))
        engine.start()
        await engine.settled()
        try:
            return (await engine.embed(Call("test"), None, list(texts), **options)).vectors
        finally:
            engine.close()

    return asyncio.run(embed())


# embed


def test_texts_come_out_as_a_line_each(capsys: Said) -> None:
    assert cli.main(["embed", *TEXTS]) == 0
    out, err = capsys.readouterr()
    ids, vectors = records(out)
    assert ids == [0, 1, 2, 3]
    np.testing.assert_array_equal(vectors, rows(*TEXTS))
    assert err == ""


@pytest.mark.parametrize(
    ("options", "wishes"),
    [
        (["--role", "query"], {"role": "query"}),
        (["--dimensions", "3"], {"dimensions": 3}),
        (["--no-normalize"], {"normalize": False}),
        (["--no-normalize", "--dimensions", "3"], {"normalize": False, "dimensions": 3}),
    ],
)
def test_what_is_asked_of_the_vectors_is_done(options: list[str], wishes: dict[str, Any], capsys: Said) -> None:
    assert cli.main(["embed", TEXTS[0], *options, TEXTS[1]]) == 0  # texts may stand on both sides of flags
    found = records(capsys.readouterr().out)[1]
    np.testing.assert_array_equal(found, rows(*TEXTS[:2], **wishes))
    assert not np.array_equal(found, rows(*TEXTS[:2]))


def test_a_text_may_look_like_a_flag(capsys: Said) -> None:
    assert cli.main(["embed", "--", "--role", "-"]) == 0
    assert records(capsys.readouterr().out)[0] == [0, 1]


@pytest.mark.parametrize("argv", [["in.jsonl"], ["--file", "in.jsonl"], ["--file", "in", "--input-format", "jsonl"]])
def test_a_file_of_json_lines(argv: list[str], folder: Path, capsys: Said) -> None:
    jsonl(folder / argv[-1 if len(argv) < 4 else 1], 70)
    assert cli.main(["embed", *argv]) == 0
    ids, vectors = records(capsys.readouterr().out)
    assert ids == [f"é{i}" for i in range(70)]
    assert vectors.shape == (70, 8)


def test_fields_by_other_names(folder: Path, capsys: Said) -> None:
    (folder / "in.ndjson").write_text('{"key": 7, "body": "dogs bark"}\n')
    assert cli.main(["embed", "in.ndjson", "--text-field", "body", "--id-field", "key"]) == 0
    ids, vectors = records(capsys.readouterr().out)
    assert ids == [7]
    np.testing.assert_array_equal(vectors, rows("dogs bark"))


@pytest.mark.parametrize("argv", [[], ["-"], ["--file", "-"], ["--file", "lines.md"], ["lines.txt"]])
def test_lines_of_text(argv: list[str], folder: Path, typed: Callable[[bytes], None], capsys: Said) -> None:
    data = "".join(f"{text}\n" for text in TEXTS).encode()
    typed(data)
    for name in ("lines.md", "lines.txt"):
        (folder / name).write_bytes(data)
    assert cli.main(["embed", *argv]) == 0
    ids, vectors = records(capsys.readouterr().out)
    assert ids == [0, 1, 2, 3]
    np.testing.assert_array_equal(vectors, rows(*TEXTS))


@pytest.mark.parametrize("argv", [["-o", "o.npy"], ["-o", "o", "--format", "npy"]])
@pytest.mark.parametrize("given", [["in.jsonl"], ["-", "--input-format", "jsonl"]])
def test_npy_with_its_ids_beside_it(
    argv: list[str], given: list[str], folder: Path, typed: Callable[[bytes], None], capsys: Said
) -> None:
    typed(jsonl(folder / "in.jsonl", 50).read_bytes())
    assert cli.main(["embed", *given, *argv]) == 0
    assert capsys.readouterr() == ("", "")
    assert np.load(argv[1]).shape == (50, 8)
    ids = Path(argv[1] + ".ids.jsonl").read_text().splitlines()
    assert [json.loads(one) for one in ids] == [f"é{i}" for i in range(50)]


def test_npy_of_texts_has_no_ids(folder: Path) -> None:
    assert cli.main(["embed", *TEXTS, "-o", "o.npy"]) == 0
    np.testing.assert_array_equal(np.load("o.npy"), rows(*TEXTS))
    assert not (folder / "o.npy.ids.jsonl").exists()


def test_json_is_one_list(capsys: Said) -> None:
    assert cli.main(["embed", "dogs", "--format", "json"]) == 0
    assert [one["id"] for one in json.loads(capsys.readouterr().out)] == [0]


def test_a_device_is_written_to_as_it_comes(folder: Path, capsys: Said) -> None:
    jsonl(folder / "in.jsonl", 3)
    assert cli.main(["embed", "in.jsonl", "-o", "/dev/null", "--format", "npy"]) == 0
    assert capsys.readouterr() == ("", "")


def test_texts_over_the_limit_are_told_of(capsys: Said) -> None:
    assert cli.main(["embed", "dogs " * 20, "dogs"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert err.startswith("vecgate: 1 of 2 texts were longer than the model reads")
    assert cli.main(["embed", "dogs " * 20, "dogs", "--truncate", "refuse"]) == 1
    assert "12" in one_line(capsys)


@pytest.mark.parametrize("flag", ["--progress", "--no-progress"])
def test_a_bar_of_rows(flag: str, folder: Path, capsys: Said) -> None:
    jsonl(folder / "in.jsonl", 40)
    assert cli.main(["embed", "in.jsonl", "-o", "out.jsonl", flag]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert ("40/40" in err and "rows/s" in err) is (flag == "--progress")
    assert (err == "") is (flag == "--no-progress")


REFUSED: list[tuple[list[str], str]] = [
    (["embed", "--rol", "a", "x"], "--rol is not a flag of vecgate embed; the nearest is --role"),
    (["embed", "x", "--port=80"], "--port is a flag of vecgate serve and means nothing to vecgate embed"),
    (["embed", "x", "--dtype", "int4"], "--dtype"),
    (["embed", "x", "--dimensions", "0"], "'0' is no whole number from 1"),
    (["embed", "x", "--dimensions", "²"], "no whole number"),
    (["embed", "x", "--format", "csv"], "'json', 'jsonl', 'npy'"),
    (["embed", "x", "-o", "out.csv"], "'out.csv' has no ending that says a format"),
    (["embed", "x", "-o", "no/out.npy"], "lies in a folder that does not exist"),
    (["embed", "x", "-o", "small", "--format", "npy"], "is a folder"),
    (["embed", "nowhere.jsonl"], "There is no file 'nowhere.jsonl'"),
    (["embed", "--file", "nowhere"], "There is no file 'nowhere'"),
    (["embed", "--file", "small"], "There is no file 'small'"),
    (["embed", "x", "--file", "y"], "give one or the other"),
    (["embed", "small/config.json"], "one JSON object a line"),
    (["embed", "plain"], "--file reads its lines"),
    (["embed", "in.jsonl", "-o", "in.jsonl"], "is the input"),
    (["embed", "x", "--model", "./nowhere"], "nowhere"),
    (["embed", "x", "--url"], "--url"),
    (["embed", "x", "--model", "a", "--model", "b"], "vecgate embed takes one model, and the flags name a and b"),
    (["rerank", "q", "d", "--reranker", "a", "--reranker", "b"], "vecgate rerank takes one"),
    (["rerank"], "QUERY"),
    (["rerank", "q", "d", "--top-n", "none"], "no whole number"),
    (["rerank", "q", "d", "--method", "magic"], "bi+cross-encoder"),
    (["rerank", "q", "d", "-o", "out.npy"], "has no ending that says a format"),
    (["models", "fetch", "x", "y"], "'y' is one too many"),
    (["models", "--al"], "--al is not a flag of vecgate models"),
    (["models", "remove"], "NAME"),
    (["completion", "tcsh"], "'bash', 'zsh', 'fish'"),
    (["completion"], "shell"),
    (["--vers"], "--version"),
]


@pytest.mark.parametrize(("argv", "words"), REFUSED)
def test_a_mistake_is_one_line_and_status_2(argv: list[str], words: str, folder: Path, capsys: Said) -> None:
    jsonl(folder / "in.jsonl", 3)
    (folder / "plain").write_text("lines\n")
    assert cli.main(argv) == 2
    assert words in one_line(capsys)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["embed", "x", "--role", "poet"], "'small:poet' does not exist here: the roles are query, document, passage"),
        (["embed", "x", "--dimensions", "9"], "dimensions is 9; 'small' allows 1 to 8 (at text 1)."),
        (["embed", "--model", "./judge", "x"], "No loaded model offers embeddings; served here: judge."),
        (["embed", "empty.jsonl"], "There is nothing to embed in empty.jsonl."),
        (["embed", "bad.jsonl", "-o", "out.npy"], "line 2 of bad.jsonl has no field 'text', but txt; --text-field"),
        (["embed", "x", "--url", "http://127.0.0.1:9"], "Nothing answers at http://127.0.0.1:9"),
        (["embed", "x", "--url", "ftp://a"], "--url 'ftp://a' is no address"),
        (["embed", "a\udcff"], "Text 1 is not UTF-8"),
        (["rerank", "q", "--file", "empty.jsonl"], "There is no document to rank in empty.jsonl."),
        (["rerank", "q\udcff", "d"], "is not UTF-8"),
        (["rerank", "q", "d", "--method", "cross-encoder"], "needs a reranker"),
        (["models", "remove", "org/none"], "org/none is not in the hub's cache"),
    ],
)
def test_what_can_not_be_done_is_one_line_and_status_1(argv: list[str], words: str, folder: Path, capsys: Said) -> None:
    (folder / "empty.jsonl").write_text("\n\n")
    (folder / "bad.jsonl").write_text('{"text": "fine"}\n{"txt": "not"}\n')
    assert cli.main(argv) == 1
    assert words in one_line(capsys)


def test_nothing_on_standard_input_is_said(typed: Callable[[bytes], None], capsys: Said) -> None:
    typed(b"")
    assert cli.main(["embed", "-", "--format", "json"]) == 1
    assert "nothing to embed" in one_line(capsys)


def test_a_terminal_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert cli.main(["embed"]) == 2
    assert "give texts, a file, or -" in one_line(capsys)
    assert cli.main(["rerank", "q"]) == 2
    assert "nothing to rank" in one_line(capsys)


def test_npy_is_not_for_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(["embed", "x", "--format", "npy"]) == 2
    assert "OUT.npy" in one_line(capsys)


def test_a_model_that_does_not_load_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("no such tensor.")

    monkeypatch.setattr(fake, "load", broken)
    assert cli.main(["embed", "x"]) == 1
    assert one_line(capsys) == "vecgate: The model failed to load: no such tensor; --debug shows where.\n"


def broken(*_: object, **__: object) -> None:
    raise RuntimeError("a bug")


def test_what_nobody_foresaw_is_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.setattr(ask, "build_engine", broken)
    assert cli.main(["embed", "x"]) == 1
    assert one_line(capsys).startswith("vecgate: RuntimeError (a bug), which nobody foresaw: --debug shows where")


@pytest.mark.parametrize("argv", [["--debug", "embed", "x"], ["embed", "x", "--debug"]])
def test_debug_shows_tracebacks(argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.setattr(ask, "build_engine", broken)
    assert cli.main(argv) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "in broken" in err
    assert err.splitlines()[-1].startswith("vecgate: RuntimeError")
    assert cli.main(["embed", "--", "--debug"]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "out.npy")

    monkeypatch.setattr(bulk.Output, "add", full)
    assert cli.main(["embed", "x", "-o", "out.npy"]) == 1
    assert one_line(capsys) == "vecgate: out.npy: No space left on device.\n"


# rerank


def test_a_ranking_for_the_eye(capsys: Said) -> None:
    assert cli.main(["rerank", "dogs bark", "paris\x1b[31m is", "dogs bark"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"0\.\d{4}  1  dogs bark", first)
    assert re.fullmatch(r"0\.\d{4}  0  paris \[31m is", second)


def test_a_ranking_as_json(folder: Path, capsys: Said) -> None:
    (folder / "d.jsonl").write_text('{"id": "x", "text": "paris"}\n{"id": [1], "text": "dogs bark"}\n')
    argv = ["rerank", "dogs", "d.jsonl", "--reranker", "./judge", "--json"]
    assert cli.main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["query"], found["model"], found["method"]) == ("dogs", "judge", "cross-encoder")
    assert [(one["index"], one["id"], one["text"]) for one in found["results"]] == [
        (1, [1], "dogs bark"),
        (0, "x", "paris"),
    ]
    assert cli.main([*argv[:-1], "--top-n", "1", "-o", "out.jsonl"]) == 0
    assert [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()] == found["results"][:1]


def test_documents_by_standard_input_and_behind_flags(typed: Callable[[bytes], None], capsys: Said) -> None:
    typed(b"paris\ndogs\n")
    assert cli.main(["rerank", "dogs", "-", "--format", "jsonl"]) == 0
    through = capsys.readouterr().out
    assert cli.main(["rerank", "--format", "jsonl", "dogs", "paris", "--top-n", "2", "dogs"]) == 0
    assert capsys.readouterr().out == through
    assert [json.loads(line)["index"] for line in through.splitlines()] == [1, 0]


def test_a_reranker_needs_no_embedding_model_here(capsys: Said) -> None:
    assert cli.main(["rerank", "dogs", "paris", "--model", "./nowhere", "--reranker", "./judge"]) == 0
    assert cli.main(["rerank", "dogs", "paris", "--model", "./judge"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    argv = ["rerank", "dogs", "paris", "--reranker", "./judge", "--method"]
    assert cli.main([*argv, "similarity", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "small"


# by a server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    cwd = tmp_path_factory.mktemp("server")
    models = {
        "MODEL_NAME": str(small.folder(cwd / "small")),
        "CROSS_ENCODER_MODEL": str(small.folder(cwd / "judge", "rerank")),
    }
    # two requests at once, so that the command meets 429
    with Live(cwd, BACKEND="fake", VECGATE_API_KEY="key", VECGATE_MAX_IN_FLIGHT="2", **models) as started:
        yield started.ready()


@pytest.mark.parametrize(
    "argv",
    [
        ["embed", *TEXTS],
        ["embed", *TEXTS, "--role", "query", "--dimensions", "3"],
        ["embed", *TEXTS, "--no-normalize", "--model", "small"],
        ["rerank", "dogs bark", *TEXTS, "--method", "similarity", "--json"],
        ["rerank", "dogs bark", *TEXTS, "--method", "cross-encoder", "--top-n", "2", "--json", "--reranker", "judge"],
    ],
)
def test_a_server_says_what_this_process_says(argv: list[str], server: Live, capsys: Said) -> None:
    assert cli.main([*argv, "--url", server.url + "/v1", "--api-key", "key"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert cli.main([one.replace("judge", "./judge") if one != "small" else "./small" for one in argv]) == 0
    assert out == capsys.readouterr().out


def test_a_server_ranks_by_coheres_route(server: Live, capsys: Said) -> None:
    argv = ["rerank", "dogs bark", "paris", "dogs", "--url", server.url, "--api-key", "key"]
    assert cli.main(argv) == 0
    by_reranker = capsys.readouterr().out
    assert cli.main([*argv, "--model", "small"]) == 0
    assert capsys.readouterr().out != by_reranker
    assert cli.main(["rerank", "dogs bark", "paris", "dogs", "--reranker", "./judge"]) == 0
    assert capsys.readouterr().out == by_reranker


def test_a_file_by_a_server_that_is_full_at_times(server: Live, folder: Path, capsys: Said) -> None:
    jsonl(folder / "in.jsonl", 600)
    argv = ["embed", "in.jsonl", "--batch-size", "20"]
    assert cli.main([*argv, "-o", "by.jsonl", "--url", server.url, "--api-key", "key"]) == 0
    assert cli.main([*argv, "-o", "here.jsonl"]) == 0
    assert capsys.readouterr() == ("", "")
    assert (folder / "by.jsonl").read_bytes() == (folder / "here.jsonl").read_bytes()
    assert re.search(
        rb'vecgate_shed_total\{reason="[a-z_]+"\} [1-9]', server.get("/metrics", Authorization="Bearer key")[2]
    )


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "answered 401: "),
        (["--api-key", "key", "--model", "nobody"], "The model 'nobody' does not exist here; these do: small, judge."),
        (["--api-key", "key", "--dimensions", "9"], "answered 400: dimensions is 9; 'small' allows 1 to 8."),
    ],
)
def test_the_servers_refusal_is_passed_on(argv: list[str], words: str, server: Live, capsys: Said) -> None:
    assert cli.main(["embed", "x", "--url", server.url, *argv]) == 1
    assert words in one_line(capsys)


@pytest.mark.parametrize("argv", [["embed", "dogs"], ["rerank", "dogs bark", "paris", "dogs"]])
@pytest.mark.parametrize("by_server", [True, False])
def test_a_space_may_be_expected(argv: list[str], by_server: bool, server: Live, capsys: Said) -> None:
    if by_server:
        argv = [*argv, "--url", server.url, "--api-key", "key"]
    assert cli.main([*argv, "--space", "vs1-0"]) == 1
    refusal = one_line(capsys)
    assert "'vs1-0'" in refusal
    found = re.search(r"of '(vs1-[0-9a-f]{24})'", refusal)
    assert found
    assert cli.main([*argv, "--space", found[1]]) == 0


def test_serve_says_that_it_is_ready(server: Live) -> None:
    lines = [json.loads(line) for line in server.log().splitlines()]
    told = next(line for line in lines if line["message"].startswith("Ready at"))
    assert told["url"] == server.url
    assert [(one["name"], one["task"]) for one in told["models"]] == [("small", "embed"), ("judge", "rerank")]


# ends


def start(folder: Path, *argv: str, module: str = "vecgate", **options: Any) -> subprocess.Popen[bytes]:
    env = environment(BACKEND="fake", MODEL_NAME="./small", HOW="slow")
    return subprocess.Popen(command(*argv, module=module), cwd=folder, env=env, stderr=subprocess.PIPE, **options)


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(folder: Path) -> None:
    jsonl(folder / "in.jsonl", 4_000, poison=3_000)  # which takes seconds
    out = folder / "out.jsonl"
    running = start(folder, "embed", "in.jsonl", "-o", "out.jsonl", module="tests.scripted")
    until = time.monotonic() + 60
    while not (out.exists() and out.stat().st_size) and running.poll() is None and time.monotonic() < until:
        time.sleep(0.001)
    running.send_signal(signal.SIGINT)
    err = running.communicate(timeout=60)[1].decode()
    assert running.returncode == 130, err
    assert re.fullmatch(
        r"vecgate: interrupted; \d+ of 4000 rows are in out.jsonl; the same command goes on from there.\n", err
    )
    other = cli.main(["embed", "in.jsonl", "-o", "out.jsonl", "--dimensions", "4"])
    assert other == 1
    assert bulk.state_beside(out).exists()
    assert cli.main(["embed", "in.jsonl", "-o", "out.jsonl"]) == 0
    assert cli.main(["embed", "in.jsonl", "-o", "whole.jsonl"]) == 0
    assert out.read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert not bulk.state_beside(out).exists()


def test_ctrl_c_ends_the_wait_for_standard_input(folder: Path) -> None:
    running = start(folder, "embed", "-", "--debug", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert running.stderr is not None
    while b"is ready" not in running.stderr.readline():
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    assert running.wait(30) == 130
    running.communicate()


def test_ctrl_c_just_before_the_wait_for_standard_input_ends_it_too() -> None:
    async def wait() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()  # all that asyncio does at first
        ask.Interruptible(io.BytesIO(b"a line")).readline()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(wait())


def test_a_reader_that_has_seen_enough_ends_it_quietly(folder: Path) -> None:
    jsonl(folder / "in.jsonl", 5_000)  # more than a pipe holds
    running = start(folder, "embed", "in.jsonl", stdout=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stderr is not None
    assert running.stdout.readline().startswith(b'{"id":')
    running.stdout.close()
    assert running.stderr.read() == b""
    assert running.wait(60) == 1
    running.stderr.close()
