"""One run of the bench: every server in turn, round by round, so that what the machine does to one it does to all.

Measures in the order ABBA...: servers change places from round to round. Knows no figure's meaning and no page.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from random import Random

import msgspec

from vecgate import __version__
from vecgate.bench import bulk, load, machine, plan
from vecgate.bench.figures import spread
from vecgate.bench.judge import judge
from vecgate.bench.plan import MIXES, Ask, Encoding, Mix
from vecgate.bench.raw import Offline, offline
from vecgate.bench.read import Reader
from vecgate.bench.result import BulkRound, BulkRow, Ceiling, Ratio, Report, Round, Row, Sweep
from vecgate.bench.target import Target
from vecgate.bench.wire import Broken, Place
from vecgate.errors import CommandError

SWEEPS: dict[str, tuple[int, ...]] = {
    "batch": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "length": (8, 16, 32, 64, 128, 256),
    "concurrency": (1, 2, 4, 8, 16, 32, 64, 128),
    "documents": (1, 5, 10, 25, 50, 100, 200),
}
SWEEP_CLIENTS = {"batch": 1, "length": 8, "documents": 1}
KNOWN_TEXTS = 24
"""Asked alone before the first window, so that rows asked beside others are held against them; from all over the pool."""
BUSY_CLIENT = 0.8
"""Of a core, from which on the client may be what limits."""
MOST_RAW_TEXTS = 4096


@dataclass(frozen=True, slots=True)
class Options:
    """What is to be measured. raw: Settings as JSON (None: not wanted). bulk_texts: 0 for no bulk."""

    urls: tuple[str, ...] = ()
    key: str | None = None
    command: str = "vecgate bench"
    mixes: tuple[str, ...] = ("queries", "mixed")
    concurrency: tuple[int, ...] = (1, 8, 64)
    rates: tuple[float, ...] = ()
    seconds: float = 5.0
    warm_s: float = 2.0
    rounds: int = 3
    seed: int = 0
    encoding: Encoding = "base64"
    names: dict[str, str | None] = field(default_factory=dict)
    timeout_s: float = 300.0
    bulk_texts: int = 0
    bulk_calls: tuple[int, ...] = (32,)
    bulk_in_flight: int = 8
    sweeps: tuple[str, ...] = ()
    raw: bytes | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One load of one mix: `concurrency` clients, or `rate` requests a second."""

    mix: Mix
    concurrency: int | None = None
    rate: float | None = None

    @property
    def told(self) -> str:
        return f"{self.mix.name} {f'at {self.rate:g}/s' if self.rate else f'x {self.concurrency}'}"


class Bench:
    """on_step: told what begins and how many steps there are; once a window."""

    def __init__(self, options: Options, on_step: Callable[[str, int], None] = lambda *_: None) -> None:
        self._options = options
        self._on_step = on_step
        self._targets: list[Target] = []
        self._raw: Offline | None = None
        self._ceiling: Ceiling | None = None

    async def run(self) -> Report:
        """Raises CommandError where nothing can be measured; wrong answers and failed requests are in `errors`."""
        options = self._options
        begun, here = datetime.now(UTC).isoformat(timespec="seconds"), machine.machine()
        async with self._opened():
            floor = await machine.floor() if self._targets else None
            rows = list(chain.from_iterable([await self._case(case) for case in _cases(options)]))
            ratios = _ratios(rows) if len(self._targets) == 2 else []
            bulks = [row for size in self._sizes() for row in await self._bulk(size)]
            sweeps = [await self._sweep(what) for what in options.sweeps]
            await self._measure_ceiling()  # again: the highest of both is the ceiling
            report = Report(
                command=options.command,
                begun=begun,
                vecgate=__version__,
                machine=here,
                servers=[target.server for target in self._targets],
                floor=floor,
                raw=self._raw.card if self._raw else None,
                ceiling=self._ceiling,
                rows=self._shared(rows),
                ratios=ratios,
                bulk=bulks,
                sweeps=sweeps,
            )
        return msgspec.structs.replace(report, errors=complaints(report))

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[None]:
        options = self._options
        for url in options.urls:
            place = Place.of(url, options.key)
            self._targets.append(
                Target(place, timeout_s=options.timeout_s, encoding=options.encoding, names=options.names)
            )
        for target in self._targets:
            await target.look()
        async with offline(options.raw) if options.raw else nullcontext() as self._raw:
            await self._measure_ceiling()
            yield

    def _sizes(self) -> Iterable[int]:
        return self._options.bulk_calls if self._options.bulk_texts else ()

    async def _measure_ceiling(self) -> None:
        if self._raw is None:
            return
        self._on_step("ceilings", self._steps())
        found = await machine.ceiling(self._raw.card)
        if self._ceiling is None or found.flops_per_s > self._ceiling.flops_per_s:
            self._ceiling = found

    def _steps(self) -> int:
        options, servers = self._options, len(self._options.urls)
        cases = len(_cases(options)) + sum(len(SWEEPS[what]) for what in options.sweeps)
        bulks = 4 * sum(1 for _ in self._sizes())
        return servers * options.rounds * (cases + bulks) + 2 * (options.raw is not None)

    async def _case(self, case: Case) -> list[Row]:
        """One row for each server."""
        pool = plan.asks(case.mix, self._options.seed)
        readers = [await self._introduced(target, case.mix, pool) for target in self._targets]
        rounds: list[list[Round]] = [[] for _ in self._targets]
        for number in range(self._options.rounds):
            for index in _order(len(self._targets), number):
                self._on_step(f"{case.told}, server {index + 1}", self._steps())
                window = await self._window(self._targets[index], case, pool, number)
                found = judge(window, pool, readers[index])
                rounds[index].append(await self._beside_raw(found, case, pool, window))
        return [_row(index, case, found) for index, found in enumerate(rounds)]

    async def _introduced(self, target: Target, mix: Mix, pool: Sequence[Ask]) -> Reader:
        """The path is found, and some texts are asked alone; raises CommandError where one of them has no right answer."""
        await target.find(Ask(pool[0].texts[:1], pool[0].query))
        reader, connection = Reader(), target.connection()
        try:
            for ask in _alone(mix, pool):
                answer = await connection.ask(target.request(ask))
                wrong = reader.read(ask, answer.body)[0] if answer.status == 200 else str(answer.status)
                if wrong:
                    raise CommandError(
                        f"{target.place.url} answers one text alone wrongly ({wrong}): nothing to measure."
                    )
        except Broken as error:
            raise CommandError(f"{target.place.url} does not answer one text alone ({error}).") from error
        finally:
            connection.close()
        return reader

    async def _window(self, target: Target, case: Case, pool: Sequence[Ask], number: int) -> load.Window:
        options = self._options
        requests = [target.request(ask) for ask in pool]
        turn = plan.in_turn(pool, options.seed + number)
        if case.rate is not None:
            rng = Random(options.seed + number)
            return await load.poisson(
                target.connection, requests, turn, case.rate, warm_s=options.warm_s, seconds=options.seconds, rng=rng
            )
        return await load.closed(
            target.connection,
            requests,
            turn,
            case.concurrency or 1,
            warm_s=options.warm_s,
            until=lambda: asyncio.sleep(options.seconds),
        )

    async def _beside_raw(self, found: Round, case: Case, pool: Sequence[Ask], window: load.Window) -> Round:
        """With the same texts' forwards, in the same number, right after they were served."""
        if self._raw is None or case.mix.rerank:
            return found
        served = [shot for shot in window.shots if shot.kind is None and shot.end_s >= window.begin_s]
        calls = [pool[shot.ask].texts for shot in served][: max(1, MOST_RAW_TEXTS // case.mix.texts)]
        if not calls:
            return found
        alone = case.concurrency == 1
        done = await self._raw.run(calls if alone else [tuple(chain.from_iterable(calls))])
        return msgspec.structs.replace(
            found,
            raw_texts_per_s=done.texts / done.forward_s,
            raw_flops_per_s=done.flops / done.forward_s if done.flops else None,
            raw_p50_ms=1e3 * done.p50_s if alone else None,
        )

    async def _bulk(self, size: int) -> list[BulkRow]:
        options = self._options
        mix, queries = plan.chunks_of(size), plan.asks(MIXES["queries"], options.seed)
        chunks = plan.asks(mix, options.seed, max(size, options.bulk_texts))
        scene = bulk.Scene(queries, chunks, options.bulk_in_flight, options.seconds, options.warm_s, options.seed)
        readers = [
            (await self._introduced(target, MIXES["queries"], queries), await self._introduced(target, mix, chunks))
            for target in self._targets
        ]
        runs: list[list[BulkRound]] = [[] for _ in self._targets]
        for number in range(options.rounds):
            for index in _order(len(self._targets), number):

                def step(what: str, at: int = index) -> None:
                    self._on_step(f"bulk x {size}: {what}, server {at + 1}", self._steps())

                runs[index].append(await bulk.once(self._targets[index], scene, readers[index], number, step))
        batch_s = self._raw.card.full_batch_s if self._raw else None
        return [bulk.row(index, scene, found, batch_s) for index, found in enumerate(runs)]

    async def _sweep(self, what: str) -> Sweep:
        values = SWEEPS[what]
        rows = [row for value in values for row in await self._case(_swept(what, value))]
        return Sweep(what, list(values), self._shared(rows))

    def _shared(self, rows: Sequence[Row]) -> list[Row]:
        return [_with_ceiling(row, self._ceiling) for row in rows]


def _cases(options: Options) -> list[Case]:
    if not options.urls:
        return []
    mixes = [MIXES[name] for name in options.mixes]
    return [
        *(Case(mix, concurrency=one) for mix in mixes for one in options.concurrency),
        *(Case(mix, rate=rate) for mix in mixes for rate in options.rates),
    ]


def _swept(what: str, value: int) -> Case:
    clients = SWEEP_CLIENTS.get(what, value)
    if what == "documents":
        return Case(plan.ranking_of(value), clients)
    if what == "length":
        return Case(plan.texts_of(value), clients)
    return Case(plan.calls_of(value), clients) if what == "batch" else Case(MIXES["mixed"], clients)


def _order(servers: int, number: int) -> Sequence[int]:
    """A B, then B A, so that neither always has the machine as the other left it."""
    return range(servers) if number % 2 == 0 else range(servers - 1, -1, -1)


def _alone(mix: Mix, pool: Sequence[Ask]) -> list[Ask]:
    """Single texts of the pool; of rankings two, their documents the other way round."""
    if mix.rerank:
        return [Ask(ask.texts[::-1], ask.query) for ask in pool[:2]]
    texts = list(chain.from_iterable(ask.texts for ask in pool))
    return [Ask((text,)) for text in texts[:: len(texts) // KNOWN_TEXTS | 1]]  # odd: every place of a call has its turn


def _row(index: int, case: Case, rounds: list[Round]) -> Row:
    return Row(
        server=index,
        mix=case.mix.name,
        texts_a_request=case.mix.texts,
        concurrency=case.concurrency,
        rate=case.rate,
        rounds=rounds,
        texts_per_s=spread([one.texts_per_s for one in rounds]),
        p50_ms=spread([one.p50_ms for one in rounds if one.p50_ms is not None]),
        p99_ms=spread([one.p99_ms for one in rounds if one.p99_ms is not None]),
        p50_to_raw=spread([one.p50_ms / one.raw_p50_ms for one in rounds if one.p50_ms and one.raw_p50_ms]),
        served_to_raw=spread([one.texts_per_s / one.raw_texts_per_s for one in rounds if one.raw_texts_per_s]),
    )


def _with_ceiling(row: Row, ceiling: Ceiling | None) -> Row:
    """What was served, as a share of the most that the machine can compute."""
    shares = [
        one.raw_flops_per_s * one.texts_per_s / one.raw_texts_per_s / ceiling.flops_per_s
        for one in row.rounds
        if ceiling and one.raw_flops_per_s and one.raw_texts_per_s
    ]
    return msgspec.structs.replace(row, ceiling_share=spread(shares))


def _ratios(rows: Sequence[Row]) -> list[Ratio]:
    """The first server's rows over the second's; they come in pairs."""
    return [_ratio(first, second) for first, second in zip(rows[::2], rows[1::2])]


def _ratio(first: Row, second: Row) -> Ratio:
    rounds = list(zip(first.rounds, second.rounds))
    rates = [a.texts_per_s / b.texts_per_s for a, b in rounds if b.texts_per_s]
    halves = [a.p50_ms / b.p50_ms for a, b in rounds if a.p50_ms is not None and b.p50_ms]
    return Ratio(first.mix, first.concurrency, first.rate, rates, halves, spread(rates), spread(halves))


def complaints(report: Report) -> list[str]:
    """Why the figures are not to be used, a sentence each."""
    found = []
    for told, round_, server in _rounds(report):
        url = report.servers[server].url
        if round_.errors:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(round_.errors.items()))
            found.append(f"{told} on {url}: {kinds}.")
        elif round_.p50_ms is None:
            found.append(
                f"{told} on {url}: no request ended within the window of {round_.seconds:.3g} s; give --seconds more."
            )
        if round_.client_cpu > BUSY_CLIENT:
            found.append(f"{told} on {url}: the client used {round_.client_cpu:.0%} of a core and may be what limits.")
        if report.ceiling and round_.raw_flops_per_s and round_.raw_texts_per_s:
            limit = report.ceiling.flops_per_s
            served = round_.raw_flops_per_s * round_.texts_per_s / round_.raw_texts_per_s
            for what, value in (("the forward", round_.raw_flops_per_s), ("the server", served)):
                if value > limit:
                    found.append(
                        f"{told} on {url}: {what} did {value / 1e9:.0f} GFLOP/s, above the ceiling of "
                        f"{limit / 1e9:.0f}: it did not compute what it was asked, or the ceiling is wrong."
                    )
    return found


def _rounds(report: Report) -> Iterable[tuple[str, Round, int]]:
    for row in chain(report.rows, *(sweep.rows for sweep in report.sweeps)):
        load_ = f"at {row.rate:g}/s" if row.rate else f"x {row.concurrency}"
        for number, one in enumerate(row.rounds, 1):
            yield f"{row.mix} {load_}, round {number}", one, row.server
    for bulk_row in report.bulk:
        for number, runs in enumerate(bulk_row.rounds, 1):
            for name in runs.__struct_fields__:
                what = name.replace("_", " ")
                yield f"bulk x {bulk_row.texts_a_call}, {what}, round {number}", getattr(runs, name), bulk_row.server
