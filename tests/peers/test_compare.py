from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.bench.test_page import report, row
from tests.peers import compare, serving
from tests.peers.compare import PEERS, SCENARIOS, Peer
from tests.peers.serving import Served
from vecgate.bench.result import Report

WISH = Namespace(seconds="1", rounds="2", scenarios="")


class Process:
    pid = 1


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, ...]]:
    """No server is started and nothing is installed; the commands of the benches."""
    asked: list[tuple[str, ...]] = []

    @contextmanager
    def served(command: Sequence[str], log: Path, **_: Any) -> Iterator[Served]:
        one = Served(f"http://{'ours' if 'serve' in command else 'theirs'}", Process(), 1.5)  # type: ignore[arg-type]
        one.memory_bytes = {"first answer": 2**20, "after the load": 2**21}
        yield one

    def bench(urls: Sequence[str], arguments: Sequence[str], _out: Path) -> Report:
        asked.append((*urls, *arguments))
        return report(rows=[row(0, "m", 1), row(1, "m", 1)])

    monkeypatch.setattr(compare, "serving", served)
    monkeypatch.setattr(compare, "bench", bench)
    monkeypatch.setattr(compare, "onnx", lambda _model: tmp_path / "onnx")
    monkeypatch.setattr(compare, "cross_encoder", lambda _model: tmp_path / "judge")
    monkeypatch.setattr(Served, "weigh", lambda *_: None)
    monkeypatch.setattr(Peer, "versions", lambda _peer: "thing 1.0")
    return asked


def all_of(peer: Peer) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    found = list(compare.compare(peer, "float32", Path("/models/minilm"), WISH))
    return [line for one in found for line in one.lines], [cost for one in found for cost in one.costs]


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_no_scenario_is_left_out(peer: Peer, measured: list[tuple[str, ...]]) -> None:
    lines, costs = all_of(peer)
    assert sorted(line[2] for line in lines) == sorted(one.told for one in SCENARIOS)
    offered = [one for one in SCENARIOS if one.rerank is None or one.rerank in peer.reranks]
    assert len(measured) == len(offered)
    assert [line for line in lines if "not offered" in line] == [line for line in lines if line[3] == "-"]
    assert len([line for line in lines if line[3] == "-"]) == len(SCENARIOS) - len(offered)
    assert {asked[:2] for asked in measured} == {("http://ours", "http://theirs")}
    assert [cost[0] for cost in costs] == ["vecgate, float32", peer.name]


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_is_told_its_models_and_its_port(peer: Peer, measured: list[tuple[str, ...]]) -> None:
    for judge in (None, Path("/models/judge")):
        told = peer.command(Path("/models/minilm"), judge)
        assert told[told.index("--port") + 1] == "PORT"
        assert ("/models/judge" in told) == (judge is not None)
        assert any(part.endswith(("minilm", "onnx")) for part in told)


def test_the_table_goes_between_its_markers(tmp_path: Path, measured: list[tuple[str, ...]]) -> None:
    lines, costs = all_of(PEERS[0])
    written = compare.document(PEERS[:1], lines, costs, ["all is wrong"], ["--rounds", "2"])
    assert '`make bench-peers ARGS="--rounds 2"`' in written
    assert "- sentence-transformers + FastAPI: thing 1.0" in written
    assert "| 100 (90.0-110) | 100 (90.0-110) | 1.60 (1.50-1.70) | 8.00 / 8.00 |" in written
    assert "| vecgate, float32 | 1.5 | 1 | 2 |" in written
    assert "- all is wrong" in written
    target = tmp_path / "performance.md"
    target.write_text(f"before\n{compare.BEGIN}\nold\n{compare.END}\nafter\n")
    compare.write(target, written)
    compare.write(target, "new")
    assert target.read_text() == f"before\n{compare.BEGIN}\nnew\n{compare.END}\nafter\n"
    target.write_text("no markers")
    with pytest.raises(ValueError, match="has no place for the table"):
        compare.write(target, written)


def test_the_document_has_its_markers(root: Path) -> None:
    text = (root / "docs" / "performance.md").read_text()
    assert (text.count(compare.BEGIN), text.count(compare.END)) == (1, 1)


def test_a_server_that_ends_at_once_is_told_with_its_last_words(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo no such model; exit 3"]
    with pytest.raises(RuntimeError, match="no such model"), serving.serving(command, tmp_path / "log"):
        pass
