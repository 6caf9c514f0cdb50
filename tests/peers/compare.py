"""`make bench-peers`: vecgate and other servers in turns, the same model, machine, client and texts -> docs/performance.md.

Each peer gets an environment of its own under .bench/, made once. No scenario is left out where vecgate loses.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.peers.serving import Served, bench, serving, vecgate
from vecgate import __version__
from vecgate.bench import table
from vecgate.bench.figures import spread
from vecgate.bench.machine import machine
from vecgate.bench.result import Report
from vecgate.engine.checkpoint import resolve

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PLACE = ROOT / ".bench"
DOCUMENT = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- peers:begin -->", "<!-- peers:end -->"
TORCH = "torch==2.13.0"
"""First and alone, so that what is installed for this machine is taken, whatever a peer would ask for."""
QUIET = {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}


@dataclass(frozen=True, slots=True)
class Scenario:
    """mix x clients; rerank "similarity" or "cross-encoder" for a ranking."""

    mix: str
    clients: int
    rerank: str | None = None

    @property
    def told(self) -> str:
        by = f" by {self.rerank}" if self.rerank else ""
        return f"{self.mix}{by}, {table.load(self.clients, None)}"


SCENARIOS = (
    Scenario("queries", 1),
    Scenario("queries", 64),
    Scenario("mixed", 8),
    Scenario("mixed", 64),
    Scenario("batch", 1),
    Scenario("batch", 4),
    Scenario("rerank", 1, "similarity"),
    Scenario("rerank", 1, "cross-encoder"),
)


@dataclass(frozen=True, slots=True)
class Peer:
    """One server. environment: its folder under .bench/ and its file of requirements here. reranks: how it can."""

    name: str
    environment: str
    packages: tuple[str, ...]
    reranks: tuple[str, ...] = ()

    @property
    def python(self) -> Path:
        return PLACE / self.environment / "bin" / "python"

    def command(self, model: Path, reranker: Path | None) -> list[str]:
        """What starts it with PORT to be put in."""
        if self.environment == "sentence-transformers":
            judge = ["--reranker", str(reranker)] if reranker else []
            script = str(HERE / "sentence_transformers_server.py")
            return [str(self.python), script, "--model", str(model), "--port", "PORT", *judge]
        engine = "optimum" if "onnx" in self.name else "torch"
        loaded = [onnx(model) if engine == "optimum" else model, *([reranker] if reranker else [])]
        models = [part for one in loaded for part in ("--model-id", str(one))]
        pairs = (("--engine", engine), ("--device", "cpu"), ("--dtype", "float32"))
        every = [*pairs, ("--no-bettertransformer",), ("--no-model-warmup",)]
        flags = [part for flag in every for part in flag * len(loaded)]  # each once for each model
        where = ["--host", "127.0.0.1", "--port", "PORT", "--url-prefix", "/v1", "--log-level", "warning"]
        return [str(self.python.with_name("infinity_emb")), "v2", *models, *flags, *where]

    def versions(self) -> str:
        script = "from importlib.metadata import version as v; import sys; print(*(f'{n} {v(n)}' for n in sys.argv[1:]), sep=', ')"
        return _said([str(self.python), "-c", script, *self.packages])


PEERS = (
    Peer(
        "sentence-transformers + FastAPI",
        "sentence-transformers",
        ("sentence-transformers", "transformers", "torch", "fastapi", "uvicorn"),
        ("similarity", "cross-encoder"),
    ),
    Peer("infinity, torch", "infinity", ("infinity-emb", "transformers", "torch", "numpy"), ("cross-encoder",)),
    Peer("infinity, onnxruntime", "infinity", ("infinity-emb", "optimum", "onnxruntime", "numpy")),
)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="make bench-peers")
    parser.add_argument("--seconds", default="5")
    parser.add_argument("--rounds", default="3")
    parser.add_argument(
        "--peers", default=",".join(peer.name.split(",")[-1].strip() for peer in PEERS), help="by a word"
    )
    parser.add_argument("--scenarios", default="", help="only those with this in their name")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="of vecgate; the peers compute in float32")
    parser.add_argument("--install-only", action="store_true")
    parser.add_argument("--no-table", action="store_true", help="leave docs/performance.md as it is")
    wish = parser.parse_args(argv)
    peers = [peer for peer in PEERS if any(word.strip() in peer.name for word in wish.peers.split(","))]
    for peer in peers:
        install(peer)
    if wish.install_only:
        return 0
    model = resolve("minilm").folder
    lines: list[tuple[str, ...]] = []
    costs: list[tuple[str, ...]] = []
    errors: list[str] = []
    for dtype in wish.dtypes.split(","):
        for peer in peers:
            for found in compare(peer, dtype, model, wish):
                lines += found.lines
                costs += found.costs
                errors += found.errors
    written = document(peers, lines, costs, errors, argv)
    print(written)
    if not wish.no_table:
        write(DOCUMENT, written)
    return bool(errors)


# environments and models


def install(peer: Peer) -> None:
    """The peer's environment, unless it was made from the same requirements."""
    wanted = HERE / f"{peer.environment}.txt"
    stamp = PLACE / peer.environment / ".made"
    now = f"{TORCH}\n{wanted.read_text()}"
    if stamp.exists() and stamp.read_text() == now:
        return
    print(f"installing {peer.environment} into {stamp.parent.relative_to(ROOT)}", file=sys.stderr)
    PLACE.mkdir(exist_ok=True)
    if not peer.python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(stamp.parent)], check=True)
    pip = [str(peer.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, TORCH], check=True)
    subprocess.run([*pip, TORCH, "-r", str(wanted)], check=True)
    stamp.write_text(now)


def onnx(model: Path) -> Path:
    """The model as infinity's onnxruntime engine wants it, made once."""
    out = PLACE / "onnx"
    if not (out / "model.onnx").exists():
        subprocess.run([PLACE / "infinity" / "bin" / "python", HERE / "onnx_export.py", model, out], check=True)
    return out


def cross_encoder(model: Path) -> Path:
    """A reranker of the model's shape with random weights: what it says means nothing, what it costs does."""
    out = PLACE / "cross-encoder"
    if not (out / "config.json").exists():
        subprocess.run([sys.executable, HERE / "cross_encoder.py", model, out], check=True)
    return out


# measuring


@dataclass(frozen=True, slots=True)
class Found:
    """Rows of the two tables."""

    lines: list[tuple[str, ...]]
    costs: list[tuple[str, ...]]
    errors: list[str]


def compare(peer: Peer, dtype: str, model: Path, wish: argparse.Namespace) -> Iterator[Found]:
    """vecgate and the peer beside each other, once without and once with a reranker."""
    for rerank in (None, "cross-encoder"):
        wanted = [
            one for one in SCENARIOS if wish.scenarios in one.told and (one.rerank == "cross-encoder") == bool(rerank)
        ]
        able = [one for one in wanted if one.rerank is None or one.rerank in peer.reranks]
        missing: list[tuple[str, ...]] = [
            (peer.name, dtype, one.told, "-", "-", "not offered", "-", "-", "-") for one in wanted if one not in able
        ]
        found = Found(missing, [], [])
        if able:
            judge = cross_encoder(model) if rerank else None
            names = ["--model", str(model), *(["--reranker", str(judge)] if judge else [])]
            ours = vecgate("serve", *names, "--dtype", dtype, "--port", "PORT", "--backend", "torch")
            with (
                serving(ours, PLACE / "vecgate.log") as first,
                serving(peer.command(model, judge), PLACE / "peer.log", environ=QUIET) as second,
            ):
                for scenario in able:
                    _measure(peer, dtype, scenario, (first, second), wish, found)
                for served in (first, second):
                    served.weigh("after the load")
                if not rerank:
                    found.costs.extend(
                        _cost(name, one) for name, one in ((f"vecgate, {dtype}", first), (peer.name, second))
                    )
        yield found


def _measure(
    peer: Peer, dtype: str, scenario: Scenario, pair: tuple[Served, Served], wish: argparse.Namespace, found: Found
) -> None:
    print(f"\n{peer.name}, {dtype}: {scenario.told}", file=sys.stderr)
    arguments = ["--mix", scenario.mix, "--concurrency", str(scenario.clients)]
    arguments += ["--seconds", wish.seconds, "--rounds", wish.rounds]
    report = bench([one.url for one in pair], arguments, PLACE / "report.json")
    found.errors.extend(f"{peer.name}, {dtype}, {scenario.told}: {error}" for error in report.errors)
    found.lines.append(_line(peer.name, dtype, scenario, report))


def _line(peer: str, dtype: str, scenario: Scenario, report: Report) -> tuple[str, ...]:
    first, second = report.rows
    (ratio,) = report.ratios
    tails = [
        a.p99_ms / b.p99_ms
        for a, b in zip(first.rounds, second.rounds)
        if a.p99_ms is not None and b.p99_ms is not None
    ]
    return (
        peer,
        dtype,
        scenario.told,
        table.ranged(first.texts_per_s),
        table.ranged(second.texts_per_s),
        table.ranged(ratio.texts_per_s),
        f"{table.middle(first.p50_ms)} / {table.middle(second.p50_ms)}",
        table.ranged(ratio.p50),
        table.ranged(spread(tails)),
    )


def _cost(name: str, served: Served) -> tuple[str, ...]:
    sizes = (f"{served.memory_bytes[when] / 2**20:.0f}" for when in ("first answer", "after the load"))
    return name, f"{served.first_answer_s:.1f}", *sizes


# writing

HEAD = (
    *("peer (float32)", "vecgate in", "scenario", "vecgate, texts/s (range)", "peer, texts/s (range)"),
    *("texts/s, vecgate / peer", "p50 ms, vecgate / peer", "p50 ratio", "p99 ratio"),
)
COST_HEAD = ("server", "first answer after start, s", "memory then, MiB", "memory after the load, MiB")


def document(
    peers: Sequence[Peer],
    lines: Sequence[tuple[str, ...]],
    costs: Sequence[tuple[str, ...]],
    errors: Sequence[str],
    argv: Sequence[str],
) -> str:
    """What stands between the markers."""
    here, given = machine(), " ".join(argv)
    command = f'make bench-peers ARGS="{given}"' if given else "make bench-peers"
    parts = [
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, on {here.processor}, "
        f"{here.cores} cores, {here.memory_bytes / 2**30:.0f} GiB, {here.system}, Python {platform.python_version()}. "
        f"vecgate {__version__} at {_commit()}, {_versions()}.",
        "\n".join(f"- {peer.name}: {peer.versions()}" for peer in peers),
        "A ratio of texts/s above 1 is in vecgate's favour, one of latencies below 1. Ranges are over the rounds.",
        table.markdown(HEAD, lines),
        table.markdown(COST_HEAD, costs),
    ]
    if errors:
        parts.append("**With errors; these figures are not to be used:**\n\n" + "\n".join(f"- {one}" for one in errors))
    return "\n\n".join(parts)


def write(path: Path, written: str) -> None:
    """Into the document, between its markers."""
    between(path, BEGIN, END, written)


def between(path: Path, begin: str, end: str, written: str) -> None:
    """Into a document, between two markers that it has once."""
    text = path.read_text("utf-8")
    if (text.count(begin), text.count(end)) != (1, 1):
        raise ValueError(f"{path} has no place for the table: {begin} and {end}, each once")
    before, _, rest = text.partition(begin)
    path.write_text(f"{before}{begin}\n{written}\n{end}{rest.partition(end)[2]}", "utf-8")


def _commit() -> str:
    return _said(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]) or "no commit"


def _versions() -> str:
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "tokenizers", "granian"))


def _said(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
