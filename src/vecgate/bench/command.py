"""What the bench command does around a run: its wishes out of the flags, a bar while it lasts, the files, the table."""

from __future__ import annotations

import argparse
import asyncio
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from tqdm import tqdm

from vecgate.bench import page, table
from vecgate.bench.result import Report
from vecgate.bench.run import Bench, Options
from vecgate.errors import ConfigError
from vecgate.settings import Settings


@dataclass(frozen=True, slots=True)
class Wish:
    """What to measure, and the files to write."""

    options: Options
    json: Path | None = None
    html: Path | None = None
    plots: Path | None = None


def wish(arguments: argparse.Namespace, settings: Settings) -> Wish:
    """Raises ConfigError, before anything is measured."""
    urls = tuple(arguments.urls)
    if len(urls) > 2 or not (urls or arguments.raw):
        raise ConfigError(f"{len(urls)} addresses: give one server, two to compare, or none with --raw.")
    options = Options(
        urls=urls,
        key=settings.key,
        command=shlex.join(["vecgate", *_shown(arguments.said)]),
        mixes=arguments.mix,
        concurrency=arguments.concurrency,
        rates=arguments.rate,
        seconds=arguments.seconds,
        warm_s=arguments.warm_up,
        rounds=arguments.rounds,
        seed=arguments.seed,
        encoding=arguments.encoding,
        names={"embed": arguments.name, "rerank": arguments.rerank_name},
        timeout_s=settings.request_timeout_s,
        bulk_texts=arguments.bulk_texts if arguments.bulk else 0,
        bulk_calls=arguments.bulk_calls,
        bulk_in_flight=arguments.bulk_in_flight,
        sweeps=arguments.sweep,
        raw=msgspec.json.encode(replace(settings, api_key=()), enc_hook=str) if arguments.raw else None,
    )
    plots = Path(arguments.plots) if arguments.plots else None
    if plots is not None and not plots.is_dir():
        raise ConfigError(f"--plots {arguments.plots!a} is no folder: make it first.")
    return Wish(options, _file("--json", arguments.json), _file("--html", arguments.html), plots)


def _file(flag: str, given: str | None) -> Path | None:
    target = Path(given) if given else None
    if target is not None and (target.is_dir() or not target.parent.is_dir()):
        raise ConfigError(f"{flag} {given!a} can't be written: name a file in a folder that exists.")
    return target


def _shown(argv: Sequence[str]) -> list[str]:
    """The arguments without a key's value, for a report that is passed on."""
    shown = list(argv)
    for at, argument in enumerate(shown):
        if argument == "--api-key" and at + 1 < len(shown):
            shown[at + 1] = "KEY"
        elif argument.startswith("--api-key="):
            shown[at] = "--api-key=KEY"
    return shown


def measure(wish: Wish, *, progress: bool) -> Report:
    """Raises CommandError where nothing can be measured."""
    with tqdm(unit=" windows", disable=not progress, dynamic_ncols=True) as bar:

        def step(what: str, total: int) -> None:
            bar.update(bar.total is not None)  # the one before is done
            bar.total = total
            bar.set_description(what)

        report = asyncio.run(Bench(wish.options, step).run())
        bar.update()
    return report


def written(report: Report, wish: Wish) -> str:
    """The table for the terminal; the files are there then."""
    if wish.json is not None:
        wish.json.write_bytes(as_json(report))
    if wish.html is not None:
        wish.html.write_text(page.page(report), "utf-8")
    if wish.plots is not None:
        for name, drawn in page.files(report).items():
            (wish.plots / name).write_text(drawn, "utf-8")
    return table.text(report)


def as_json(report: Report) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report)) + b"\n"
