"""The verify command: flags -> Wish, a bar on a terminal, the table or JSON."""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from vecgate.backends import require_one
from vecgate.errors import CommandError
from vecgate.settings import Settings
from vecgate.verify import run, table


def wish(arguments: argparse.Namespace, settings: Settings) -> run.Wish:
    """Raises CommandError where --record could not be written."""
    record = Path(arguments.record) if arguments.record else None
    if record is not None and (record.is_dir() or not record.absolute().parent.is_dir()):
        raise CommandError(f"--record {arguments.record!a}: name a file in a folder that exists.")
    return run.Wish(
        settings=settings,
        models=tuple(arguments.models or ()),
        record=record,
        golden=Path(arguments.golden) if arguments.golden else None,
        against=arguments.against,
        reference=arguments.reference,
        dtypes=arguments.dtypes,
    )


def verified(wanted: run.Wish, *, progress: bool) -> tuple[run.Report, ...]:
    """Raises CommandError and ConfigError."""
    require_one(wanted.settings.backend)
    with tqdm(total=run.steps(wanted), unit=" steps", disable=not progress, dynamic_ncols=True, leave=False) as bar:

        def tick(step: str) -> None:
            bar.set_description(step)
            bar.update()

        return run.run(wanted, tick)


def written(reports: tuple[run.Report, ...], *, as_json: bool) -> str:
    return table.json(reports) if as_json else table.text(reports)


def good(reports: tuple[run.Report, ...], *, strict: bool) -> bool:
    """strict: what deviates, or was vouched for by nobody outside, is not good either."""
    return not any(one.failed or (strict and one.doubtful) for one in reports)
