"""The fixtures: one file a client and case, with what went over the wire and what became of it.

compat_fixtures/recorded/CLIENT/CASE.json is {"client", "version", "case", "outcome", "exchanges"}. An outcome is what the
client gave its user: {"rows": [how many, how long]}, {"ranking": [...]}, {"error": {...}} or {"skipped": why}; an exchange is
{"request", "response"}, with "by": "proxy" where the server never saw it. A long body is a list of its parts.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.compat import exchanges
from tests.compat.exchanges import Exchange

FOLDER = Path(__file__).parent.parent.parent / "compat_fixtures" / "recorded"
JUDGED = FOLDER / "judged.json"


def fixture(told: Mapping[str, Any], seen: Iterable[Exchange]) -> dict[str, Any]:
    """told: the driver's line."""
    return {
        "client": told["client"],
        "version": told["version"],
        "case": told["case"],
        "outcome": outcome(told),
        "exchanges": [exchanges.kept(one) for one in seen],
    }


def outcome(told: Mapping[str, Any]) -> dict[str, Any]:
    """What the client gave its user, short and the same every time."""
    usage = {"usage": told["usage"]} if told.get("usage") is not None else {}
    if "vectors" in told:
        widths = sorted({len(row) for row in told["vectors"]})
        return {"rows": [len(told["vectors"]), *widths], **usage}
    if "ranking" in told:
        return {"ranking": told["ranking"], **usage}
    if "skipped" in told:
        return {"skipped": told["skipped"]}
    error = told["error"]
    return {"error": {**error, "message": exchanges.masked(error["message"], exchanges.MESSAGE_MASKS)}}


def path(folder: Path, client: str, case: str) -> Path:
    return folder / client / f"{case}.json"


def text(found: Mapping[str, Any]) -> str:
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def write(folder: Path, found: Mapping[str, Any]) -> None:
    target = path(folder, found["client"], found["case"])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text(found), "utf-8")


def differences(folder: Path, found: Mapping[str, Any]) -> list[str]:
    """The lines in which the stored fixture is another one."""
    target = path(folder, found["client"], found["case"])
    stored = target.read_text("utf-8") if target.exists() else ""
    name = f"{found['client']}/{found['case']}"
    lines = difflib.unified_diff(
        stored.splitlines(), text(found).splitlines(), f"{name} stored", f"{name} now", "", "", 1
    )
    return [line.rstrip("\n") for line in lines]


def judged() -> dict[str, str]:
    """Client -> the version whose results on the real model were right, with the fixtures as they are stored."""
    found: dict[str, str] = read(JUDGED) if JUDGED.exists() else {}
    return found


def judge(clients: Mapping[str, str | None]) -> None:
    """Notes the versions; None for a client that is to be judged again."""
    JUDGED.parent.mkdir(parents=True, exist_ok=True)
    now = {client: version for client, version in {**judged(), **clients}.items() if version}
    JUDGED.write_text(text(dict(sorted(now.items()))), "utf-8")


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found


def stored(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """All that are kept, by client and case."""
    return [read(one) for one in sorted(folder.glob("*/*.json"))]
