"""One run over the environments: their drivers against the fake server, written or compared, and against the real one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.compat import behaviour, environments, fixtures, matrix, servers
from tests.compat.environments import Environment
from tests.compat.exchanges import Exchange
from tests.compat.proxy import Notes, recording
from tests.live import Live

Told = dict[str, Any]


def record(chosen: Sequence[Environment], folder: Path) -> int:
    """Writes the fixtures of the chosen, which are then still to be judged."""
    for told, seen in recorded(chosen, folder):
        found = fixtures.fixture(told, seen)
        if fixtures.differences(fixtures.FOLDER, found):
            fixtures.write(fixtures.FOLDER, found)
            fixtures.judge({told["client"]: None})
    return 0


def check(chosen: Sequence[Environment], folder: Path) -> int:
    """Compares with the stored fixtures, then judges every client's results on the real model; writes the matrix."""
    changed, versions = [], {}
    for told, seen in recorded(chosen, folder):
        changed += fixtures.differences(fixtures.FOLDER, fixtures.fixture(told, seen))
        versions[told["client"]] = told["version"]
    print("\n".join(changed) or "every exchange is as recorded", flush=True)
    stored = fixtures.stored()
    outcomes = {(one["client"], one["case"]): one["outcome"] for one in stored}
    with Live(folder, **servers.real()) as server:
        lines = [*_through_the_proxy(chosen, server.ready().url)]
        wrong = behaviour.wrong(lines, server, outcomes)
    print("\n".join(wrong) or "every result on the real model is as it must be")
    if not changed and not wrong:
        fixtures.judge(versions)
        matrix.write()
    print(matrix.plain(stored))
    return 1 if changed or wrong else 0


def recorded(chosen: Sequence[Environment], folder: Path) -> Iterator[tuple[Told, list[Exchange]]]:
    """What each driver said of each case, with the exchanges, on the fake server."""
    with Live(folder, **servers.fake(folder)) as server:
        yield from _through_the_proxy(chosen, server.ready().url)


def _through_the_proxy(chosen: Sequence[Environment], url: str) -> Iterator[tuple[Told, list[Exchange]]]:
    notes = Notes()
    with recording(url, notes) as (base, control):
        for one in chosen:
            print(f"driving {one.name}", flush=True)
            for told in environments.drive(one, base, control, servers.KEY):
                yield told, notes.of(told["client"], told["case"])
    if notes.strays():
        raise SystemExit(f"requests of no case: {[one.request.start for one in notes.strays()]}")
