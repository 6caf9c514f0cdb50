"""Every request of compat_fixtures/recorded against the app in this process, over the engine that the recording had.

Answers are byte for byte what was recorded, but for what exchanges.py masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.compat import exchanges, fixtures, servers
from tests.compat.exchanges import Message
from tests.whole import Whole

ADDRESS = "127.0.0.1:9000"
SOCKETS = {"server", "date", "transfer-encoding", "connection"}
"""Headers that the HTTP server adds, which is not there in this process."""
CASES = sorted(fixtures.FOLDER.glob("*/*.json"))


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    folder = tmp_path_factory.mktemp("recorded")
    with Whole(folder, **servers.fake(folder)) as started:
        yield started


def answered(app: Whole, request: dict[str, Any]) -> Message:
    headers = [
        (name, value.replace(exchanges.HOST, ADDRESS))
        for name, value in request["headers"].items()
        if name.lower() != "transfer-encoding"
    ]
    sent = httpx.Request(
        request["method"],
        f"http://{ADDRESS}{request['path']}",
        headers=headers,
        content=exchanges.unfolded(request["body"]).encode("utf-8", "surrogateescape"),
    )
    answer = app.run(app.client.send(sent))
    return Message(str(answer.status_code), tuple(answer.headers.items()), answer.content)


def comparable(response: dict[str, Any]) -> tuple[dict[str, str], str]:
    headers = {name.lower(): value for name, value in response["headers"].items()}
    return {name: value for name, value in headers.items() if name not in SOCKETS}, exchanges.unfolded(response["body"])


def hold(app: Whole, case: Path) -> None:
    """Every exchange of the case, as it was recorded."""
    for exchange in fixtures.read(case)["exchanges"]:
        if exchange.get("by") == "proxy":
            continue
        got = answered(app, exchange["request"])
        kept = exchanges.kept_message(got, exchanges.BODY_MASKS)
        assert (int(got.start), *comparable(kept)) == (
            exchange["response"]["status"],
            *comparable(exchange["response"]),
        )


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}-{case.stem}")
def test_a_recorded_request_is_answered_as_recorded(app: Whole, case: Path) -> None:
    hold(app, case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}-{case.stem}")
def test_a_fixture_is_whole(case: Path) -> None:
    found = fixtures.read(case)
    assert (found["client"], found["case"]) == (case.parent.name, case.stem)
    assert not found["exchanges"] or "skipped" not in found["outcome"]
    for exchange in found["exchanges"]:
        request, response = exchange["request"], exchange["response"]
        assert request["sha256"] == hashed(f"{request['method']} {request['path']}", request)
        assert response["sha256"] == hashed(str(response["status"]), response)


def hashed(start: str, message: dict[str, Any]) -> str:
    return exchanges.digest(start, message["headers"].items(), exchanges.unfolded(message["body"]))
