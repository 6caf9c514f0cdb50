"""`make tuning`: what each setting that matters for speed does here, in turns with the default -> docs/tuning.md.

The loads are those of `vecgate bench`; where requests are meant to be refused, which it would call errors, a few threads ask.
"""

from __future__ import annotations

import argparse
import http.client
import json
import platform
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from tests.peers.compare import PLACE, ROOT, between
from tests.peers.serving import Served, bench, serving, vecgate
from vecgate import __version__
from vecgate.bench import table
from vecgate.bench.figures import spread
from vecgate.bench.machine import machine

DOCUMENT = ROOT / "docs" / "tuning.md"
BEGIN, END = "<!-- tuning:begin -->", "<!-- tuning:end -->"
SENTENCE = "Refunds are paid within thirty days of the request, to the account that the order was paid from. "
REFUSED_WAIT_S = 0.5
"""Of a client that was refused; OpenAI's SDKs wait as long as Retry-After says, a second at least."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A server with these settings beside one without them, at loads of the bench: mix and clients."""

    settings: Mapping[str, str]
    loads: tuple[tuple[str, int], ...]

    @property
    def told(self) -> str:
        return told(self.settings)


def told(settings: Mapping[str, str]) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in settings.items()) or "the defaults"


PAIRS = (
    Pair({"VECGATE_BATCH_TOKENS": "512"}, (("mixed", 64),)),
    Pair({"VECGATE_BATCH_TOKENS": "16384"}, (("mixed", 64),)),
    Pair({"MAX_BATCH_SIZE": "8"}, (("queries", 64),)),
    Pair({"VECGATE_DTYPE": "bfloat16"}, (("mixed", 8),)),
    Pair({"OMP_NUM_THREADS": "1"}, (("queries", 1), ("mixed", 8))),
    Pair({"LOG_LEVEL": "WARNING"}, (("queries", 64),)),
)
STARTS: tuple[Mapping[str, str], ...] = (
    {},
    {"VECGATE_VERIFY": "off"},
    {"VECGATE_VERIFY": "full"},
    {"VECGATE_DTYPE": "bfloat16"},
    {"DEVICE_MEMORY_FRACTION": "0.1"},
)
LIMITED: tuple[Mapping[str, str], ...] = (
    {},
    {"VECGATE_MAX_IN_FLIGHT": "8"},
    {"VECGATE_KEY_CONCURRENCY": "8"},
    {"REQUEST_TIMEOUT": "2"},
)
CLIENTS = (1, 4, 16, 64)
CALLS = (1, 8, 32, 128)
START_ROUNDS = 2
"""At most: a start takes ten seconds."""
NATIVE_TEXTS, LIMITED_CLIENTS, CALL_TEXTS = 100, 32, 8
LONG_CHARS = 1_000_000


@dataclass(slots=True)
class Run:
    """One run of it. default: a server without any setting, for as long as the run lasts."""

    seconds: float
    rounds: int
    backend: str
    default: Served
    errors: list[str] = field(default_factory=list)

    def bench(self, urls: Sequence[str], *arguments: str) -> Any:
        given = ["--seconds", str(self.seconds), "--warm-up", "1", "--rounds", str(self.rounds), *arguments]
        report = bench(urls, given, PLACE / "tuning.json")
        self.errors += report.errors
        return report

    def timed(self, ways: Mapping[str, Callable[[], Any]]) -> dict[str, list[tuple[float, Any]]]:
        """(seconds, answer) of each way, one call at a time, in turns."""
        found: dict[str, list[tuple[float, Any]]] = {name: [] for name in ways}
        for way in ways.values():
            way()
        for _ in range(self.rounds):
            for name, way in ways.items():
                until = time.monotonic() + self.seconds / 2
                while not found[name] or time.monotonic() < until:
                    begin = time.perf_counter()
                    answer = way()
                    found[name].append((time.perf_counter() - begin, answer))
        return found


@contextmanager
def server(backend: str, settings: Mapping[str, str]) -> Iterator[Served]:
    """A server of this checkout, with these settings in its environment."""
    log = PLACE / f"tuning-{'-'.join(settings) or 'default'}.log"
    with serving(vecgate("serve", "--port", "PORT", "--backend", backend), log, environ=settings) as served:
        yield served


# what is measured


def pairs(run: Run) -> str:
    """Texts a second and latency with a setting over those without."""
    lines = []
    for pair in PAIRS:
        with server(run.backend, pair.settings) as changed:
            for mix, clients in pair.loads:
                _say(f"{pair.told}: {mix}, {clients}")
                report = run.bench([changed.url, run.default.url], "--mix", mix, "--concurrency", str(clients))
                first, second = report.rows
                (ratio,) = report.ratios
                rates = (table.ranged(first.texts_per_s), table.ranged(second.texts_per_s))
                load = f"{mix}, {table.load(clients, None)}"
                lines.append((pair.told, load, *rates, table.ranged(ratio.texts_per_s), table.ranged(ratio.p50)))
    head = ("with", "load", "texts/s", "texts/s by default", "texts/s, with / default", "p50, with / default")
    return table.markdown(head, lines)


def starts(run: Run) -> str:
    """From the process's start to the first answer, and what it then holds."""
    found: dict[str, list[Served]] = {told(settings): [] for settings in STARTS}
    limits: dict[str, str] = {}
    for _ in range(min(run.rounds, START_ROUNDS)):
        for settings in STARTS:
            _say(f"start with {told(settings)}")
            with server(run.backend, settings) as served:
                found[told(settings)].append(served)
                limits[told(settings)] = f"{get(served, '/health')['device_memory']['limit_bytes'] / 2**20:.0f}"
    lines = [
        (
            name,
            table.ranged(spread([one.first_answer_s for one in many])),
            f"{median(one.memory_bytes['first answer'] for one in many) / 2**20:.0f}",
            limits[name],
        )
        for name, many in found.items()
    ]
    return table.markdown(("with", "first answer after, s", "memory then, MiB", "may use, MiB"), lines)


def idle(run: Run) -> str:
    """Memory of a model that was unloaded, and what the next request waits."""
    _say("VECGATE_IDLE_UNLOAD")
    with server(run.backend, {"VECGATE_IDLE_UNLOAD": "0.03"}) as served:
        until = time.monotonic() + 60.0
        while get(served, "/v1/models")["data"][0]["state"] != "unloaded":
            if time.monotonic() > until:
                raise RuntimeError("the model was never unloaded")
            time.sleep(0.1)
        served.weigh("unloaded")
        begin = time.perf_counter()
        embed(served, [SENTENCE])
        waited_s = time.perf_counter() - begin
        begin = time.perf_counter()
        embed(served, [SENTENCE])
        usual_s = time.perf_counter() - begin
    sizes = (f"{served.memory_bytes[when] / 2**20:.0f}" for when in ("first answer", "unloaded"))
    head = ("with", "memory loaded, MiB", "unloaded, MiB", "next request, ms", "the one after it, ms")
    line = ("`VECGATE_IDLE_UNLOAD=0.03`", *sizes, f"{1e3 * waited_s:.0f}", f"{1e3 * usual_s:.0f}")
    return table.markdown(head, [line])


def native(run: Run) -> str:
    """One client's largest native request, by the rows of it in one forward."""
    lines = []
    with server(run.backend, {"BATCH_SIZE": "4"}) as small:
        _say("BATCH_SIZE")
        texts = [f"{at}: {SENTENCE * (1 + at % 4)}" for at in range(NATIVE_TEXTS)]
        ways = {
            "the defaults": lambda: post(run.default, "/api/v1/embed/", {"texts": texts}),
            "`BATCH_SIZE=4`": lambda: post(small, "/api/v1/embed/", {"texts": texts}),
        }
        for name, found in run.timed(ways).items():
            lines.append((name, table.ranged(spread([len(texts) / took_s for took_s, _ in found]))))
    return table.markdown(("with", f"texts/s of a native request of {NATIVE_TEXTS}"), lines)


def limits(run: Run) -> str:
    """What clients see of a limit that they run into."""
    lines = []
    for settings in LIMITED:
        _say(f"limits: {told(settings)}")
        with server(run.backend, settings) as served:
            kept, statuses = crowd(served, LIMITED_CLIENTS, 2 * run.seconds)
        ordered = sorted(kept)
        p50, p99 = (
            f"{1e3 * ordered[int(share * (len(ordered) - 1))]:.0f}" if ordered else "-" for share in (0.5, 0.99)
        )
        total = sum(statuses.values())
        refused = ", ".join(
            f"{status}: {count} of {total}" for status, count in sorted(statuses.items()) if status != 200
        )
        rate = table.number(len(kept) / (2 * run.seconds))
        lines.append((told(settings), rate, p50, p99, refused or "none"))
    head = ("with", "answers/s", "p50 ms of answers", "p99 ms", "refused")
    return table.markdown(head, lines)


def clients(run: Run) -> str:
    """How many clients at once, and how many texts a call."""
    _say("clients and calls")
    report = run.bench([run.default.url], "--mix", "queries", "--concurrency", ",".join(map(str, CLIENTS)))
    rows = [
        (
            table.load(row.concurrency, None),
            table.ranged(row.texts_per_s),
            table.middle(row.p50_ms),
            table.middle(row.p99_ms),
        )
        for row in report.rows
    ]
    ways = {
        str(count): (lambda count=count: embed(run.default, [f"{at}: {SENTENCE}" for at in range(count)]))
        for count in CALLS
    }
    calls = [
        (count, table.number(int(count) / took_s), f"{1e3 * took_s:.0f}")
        for count, found in run.timed(ways).items()
        for took_s in [median(one_s for one_s, _ in found)]
    ]
    return (
        table.markdown(("queries, one a call", "texts/s", "p50 ms", "p99 ms"), rows)
        + "\n\n"
        + table.markdown(("texts a call, one client", "texts/s", "p50 ms of a call"), calls)
    )


def answers(run: Run) -> str:
    """What the form of the rows costs on the wire and in the server."""
    _say("encodings")
    texts = [f"{at}: {SENTENCE}" for at in range(32)]
    forms: dict[str, dict[str, Any]] = {
        '`encoding_format: "base64"`': {"encoding_format": "base64"},
        '`encoding_format: "float"`': {"encoding_format": "float"},
        '`encoding_format: "float"`, `dimensions: 64`': {"encoding_format": "float", "dimensions": 64},
    }
    ways = {name: (lambda form=form: embed(run.default, texts, **form)) for name, form in forms.items()}
    lines = []
    for name, found in run.timed(ways).items():
        size = len(found[0][1][0])
        encode_ms = median(stage(timing, "encode") for _, (_, timing) in found)
        lines.append((name, f"{size:,}", f"{encode_ms:.2f}", f"{1e3 * median(took_s for took_s, _ in found):.0f}"))
    return table.markdown(("32 texts, rows of 384 numbers", "bytes of the answer", "encode, ms", "p50 ms"), lines)


def truncation(run: Run) -> str:
    """What a text far over the limit costs, by the end that is cut."""
    _say("VECGATE_TRUNCATE")
    text = (SENTENCE * (LONG_CHARS // len(SENTENCE) + 1))[:LONG_CHARS]
    with server(run.backend, {"VECGATE_TRUNCATE": "start"}) as start:
        ways = {
            "a text of 1,000 characters": lambda: embed(run.default, [text[:1000]]),
            f"one of {LONG_CHARS:,}, by default": lambda: embed(run.default, [text]),
            f"one of {LONG_CHARS:,}, `VECGATE_TRUNCATE=start`": lambda: embed(start, [text]),
        }
        found = run.timed(ways)
    lines = [
        (name, *(f"{median(stage(timing, what) for _, (_, timing) in many):.1f}" for what in ("tokenise", "forward")))
        for name, many in found.items()
    ]
    return table.markdown(("one text a call", "tokenise, ms", "forward, ms"), lines)


PARTS: dict[str, tuple[str, Callable[[Run], str]]] = {
    "pairs": ("Settings of the server, each beside a server without it", pairs),
    "native": ("Rows of a native request in one forward", native),
    "clients": ("Clients at once, texts a call", clients),
    "answers": ("The form of the rows", answers),
    "truncation": ("Texts over the limit", truncation),
    "limits": (
        f"Limits, {LIMITED_CLIENTS} clients of {CALL_TEXTS} texts a call; one that is refused waits {REFUSED_WAIT_S} s",
        limits,
    ),
    "starts": ("Start", starts),
    "idle": ("A model that nobody asks for", idle),
}


# asking


def get(served: Served, path: str) -> Any:
    with urllib.request.urlopen(served.url + path, timeout=60) as answer:
        return json.load(answer)


def post(served: Served, path: str, body: Mapping[str, Any]) -> tuple[bytes, str]:
    """The answer's body and its Server-Timing."""
    request = urllib.request.Request(served.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return answer.read(), answer.headers["server-timing"]


def embed(served: Served, texts: Sequence[str], **more: Any) -> tuple[bytes, str]:
    return post(served, "/v1/embeddings", {"input": list(texts), **more})


def stage(timing: str, name: str) -> float:
    """Milliseconds of one stage out of a Server-Timing header."""
    return next(float(part.partition("dur=")[2]) for part in timing.split(", ") if part.startswith(f"{name};"))


def crowd(served: Served, clients: int, seconds: float) -> tuple[list[float], Counter[int]]:
    """Seconds of every right answer, and how often each status came, of clients that ask as soon as they may."""
    kept: list[float] = []
    statuses: Counter[int] = Counter()
    until = time.monotonic() + seconds
    texts = [SENTENCE * (1 + at % 3) for at in range(CALL_TEXTS)]
    body = json.dumps({"input": texts}).encode()

    def ask() -> None:
        connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=600)
        while time.monotonic() < until:
            begin = time.perf_counter()
            connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            statuses[answer.status] += 1
            if answer.status == 200:
                kept.append(time.perf_counter() - begin)
            else:
                time.sleep(REFUSED_WAIT_S)
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return kept, statuses


# writing


def document(run: Run, parts: Mapping[str, str], argv: Sequence[str]) -> str:
    """What stands between the markers."""
    here, given, served = machine(), " ".join(argv), get(run.default, "/health")
    command = f'make tuning ARGS="{given}"' if given else "make tuning"
    written = [
        f"`{command}` on {here.processor}, {here.cores} cores, {here.memory_bytes / 2**30:.0f} GiB, {here.system}, Python "
        f"{platform.python_version()}, load average {here.load_average} at its end; vecgate {__version__}, "
        f"{served['model']} by {served['backend']} on {served['device']} in {served['dtype']}.",
        *(f"### {PARTS[name][0]}\n\n{text}" for name, text in parts.items()),
    ]
    if run.errors:
        wrong = "\n".join(f"- {one}" for one in dict.fromkeys(run.errors))
        written.append(f"**With errors; these figures are not to be used:**\n\n{wrong}")
    return "\n\n".join(written)


def _say(what: str) -> None:
    print(f"tuning: {what}", file=sys.stderr, flush=True)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="make tuning")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a window (default: 3)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--backend", default="torch", help="(default: torch)")
    parser.add_argument("--parts", default=",".join(PARTS), help="only these (default: all)")
    parser.add_argument("--no-table", action="store_true", help="leave docs/tuning.md as it is")
    wish = parser.parse_args(argv)
    wanted = wish.parts.split(",")
    PLACE.mkdir(exist_ok=True)
    with server(wish.backend, {}) as default:
        run = Run(wish.seconds, wish.rounds, wish.backend, default)
        written = document(run, {name: measure(run) for name, (_, measure) in PARTS.items() if name in wanted}, argv)
    print(written)
    if not wish.no_table:
        between(DOCUMENT, BEGIN, END, written)
    return bool(run.errors)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
