from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.bench.stub import Stub
from vecgate import cli
from vecgate.bench import machine, run
from vecgate.bench.result import Floor, Report

TINY = ("--mix", "batch", "--concurrency", "1", "--seconds", "0.05", "--warm-up", "0", "--rounds", "1")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def floor() -> Floor:
        return Floor(0.1, 0.05)

    monkeypatch.setattr(machine, "floor", floor)
    monkeypatch.setattr(run, "BUSY_CLIENT", 9.0)
    monkeypatch.chdir(tmp_path)


def test_a_run_prints_its_table_and_writes_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    with Stub() as stub:
        status = cli.main(
            ["bench", stub.url, *TINY, "--json", "a.json", "--html", "a.html", "--plots", ".", "--api-key", "secret"]
        )
    said = capsys.readouterr()
    assert (status, said.err) == (0, "")  # no bar where no terminal shows it
    assert "batch (32 a call)" in said.out
    written = Path("a.json").read_bytes()
    found = msgspec.json.decode(written, type=Report)
    assert found.command.startswith(f"vecgate bench {stub.url} --mix batch")
    assert found.rows[0].mix == "batch"
    assert "secret" not in said.out + written.decode() + Path("a.html").read_text()
    assert stub.keys == {"Bearer secret"}
    assert "texts/s" in Path("throughput-over-concurrency.svg").read_text()


def test_a_bar_is_shown_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with Stub() as stub:
        cli.main(["bench", *TINY, "--progress", stub.url])
    assert "batch x 1, server 1: 100%" in capsys.readouterr().err


def test_a_run_with_errors_says_so_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def busy(_path: str, body: Any, answer: Any) -> Any:
        return answer if isinstance(body["input"], str) else 503

    with Stub(busy) as stub:
        assert cli.main(["bench", stub.url, *TINY]) == 1
    assert "ERRORS: these figures are not to be used.\n  batch x 1, round 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "0 addresses: give one server, two to compare, or none with --raw."),
        (("a", "b", "c"), "3 addresses"),
        (("a", "--mix", "queries,queries"), "'queries,queries' is not known; allowed: queries, chunks, mixed, batch"),
        (("a", "--sweep", "x"), "allowed: batch, length, concurrency, documents, each once, or all"),
        (("a", "--concurrency", "1,0"), "'0' is no whole number from 1"),
        (("a", "--rate", "0"), "'0' is not over 0"),
        (("a", "--seconds", "x"), "'x' is no number from 0 to 86400"),
        (("a", "--json", "no/where.json"), "--json 'no/where.json' can't be written"),
        (("a", "--plots", "nowhere"), "--plots 'nowhere' is no folder"),
        (("a", "--port", "1"), "--port is a flag of vecgate serve and means nothing to vecgate bench."),
    ],
)
def test_a_wrong_command_is_refused_before_anything_is_asked(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_nobody_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with Stub() as stub:
        pass
    assert cli.main(["bench", stub.url]) == 1
    assert capsys.readouterr().err.startswith(f"vecgate: Nothing answers at {stub.url} (refused): start a server")
