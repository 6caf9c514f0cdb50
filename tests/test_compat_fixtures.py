"""Every exchange under compat_fixtures, recorded from a real client, replayed against the whole app over the stub engine.

compat_fixtures/<protocol>/<route>/<case>.json is {"source", "request", "response"}: request has method, path, headers and
body (JSON) or text (as it stood); response has status, body (a list where it is NDJSON) and those headers that matter. In a
response "<number>", "<string>" and "<anything>" stand for what differs from call to call; numbers agree to 1e-6, packed
vectors too. Where an error needs a server of its own there is "server" too: settings, and the error that its engine raises.
"""

import asyncio
import base64
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.protocols import stub
from vecgate import errors
from vecgate.app import create_app
from vecgate.protocols import PROTOCOLS
from vecgate.settings import Settings

FOLDER = Path(__file__).parent.parent / "compat_fixtures"
CASES = sorted(path for path in FOLDER.glob("*/*/*.json") if path.parts[-3] != "recorded")
KINDS: dict[str, tuple[type, ...]] = {"<number>": (int, float), "<string>": (str,), "<anything>": (object,)}


def tables() -> Path:
    """The folder of tiktoken's tables in litellm's wheel."""
    found = find_spec("litellm")
    assert found is not None, "litellm's wheel is missing; `make test` installs it"
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0], "litellm_core_utils", "tokenizers")


def served(server: dict[str, Any]) -> Any:
    """The app that a fixture's "server" describes: {"settings": {...}, "error": {"type", ...}}."""
    told: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in server.get("settings", {}).items()
    }
    raised = dict(server.get("error", {}))
    fail = getattr(errors, raised.pop("type"))(raised.pop("message"), **raised) if raised else None
    return create_app(Settings(tiktoken_dir=tables(), **told), stub.StubEngine(fail=fail))


def replay(request: dict[str, Any], server: dict[str, Any]) -> httpx.Response:
    content = request["text"].encode() if "text" in request else None
    if "body" in request:
        content = json.dumps(request["body"]).encode()

    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app=served(server))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9000") as client:
            return await client.request(
                request["method"], request["path"], headers=request.get("headers"), content=content
            )

    return asyncio.run(go())


def differences(want: Any, got: Any, where: str = "$") -> list[str]:
    """One line for each place where the answer is not what was recorded."""
    if isinstance(want, str) and want in KINDS:
        return [] if isinstance(got, KINDS[want]) and not isinstance(got, bool) else [f"{where}: {got!r} is no {want}"]
    if isinstance(want, dict) and isinstance(got, dict):
        if want.keys() != got.keys():
            return [f"{where}: keys {sorted(got)} instead of {sorted(want)}"]
        return [line for key in want for line in differences(want[key], got[key], f"{where}.{key}")]
    if isinstance(want, list) and isinstance(got, list) and len(want) == len(got):
        return [line for i, one in enumerate(want) for line in differences(one, got[i], f"{where}[{i}]")]
    if isinstance(want, str) and isinstance(got, str) and (where.endswith(".embedding") or ".base64[" in where):
        return differences(unpacked(want), unpacked(got), where + " (base64)")
    if isinstance(want, float) and isinstance(got, (int, float)):
        return [] if abs(want - got) <= 1e-6 else [f"{where}: {got} instead of {want}"]
    return [] if want == got and type(want) is type(got) else [f"{where}: {got!r} instead of {want!r}"]


def unpacked(text: str) -> list[float]:
    return [float(x) for x in np.frombuffer(base64.b64decode(text, validate=True), "<f4")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.relative_to(FOLDER).with_suffix("").as_posix())
def test_a_recorded_exchange_is_answered_as_recorded(case: Path) -> None:
    fixture = json.loads(case.read_text("utf-8"))
    assert fixture.keys() - {"server"} == {"source", "request", "response"}
    want, got = fixture["response"], replay(fixture["request"], fixture.get("server", {}))
    assert got.status_code == want["status"], got.text
    headers = want.get("headers", {})
    assert {name: got.headers.get(name) for name in headers} == headers
    assert differences(want["body"], read(got)) == []


def read(answer: httpx.Response) -> Any:
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if kind == "application/x-ndjson":
        return [json.loads(line) for line in answer.text.splitlines()]
    return answer.json() if kind == "application/json" and answer.content else answer.text


def test_every_protocol_has_recorded_answers_and_refusals() -> None:
    recorded: dict[str, set[bool]] = {}
    for case in CASES:
        status = json.loads(case.read_text("utf-8"))["response"]["status"]
        recorded.setdefault(case.parts[-3], set()).add(status < 400)
    assert recorded == {name: {True, False} for name in PROTOCOLS}


@pytest.mark.parametrize(
    ("want", "got"),
    [
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": 1}, {}),
        ([1], [1, 2]),
        (0.5, 0.50001),
        (1, True),
        (1, 1.0),
        ("<number>", "1"),
        ("<number>", True),
        ("<string>", None),
        ({"embedding": "AACAPw=="}, {"embedding": "AAAAAA=="}),
    ],
)
def test_a_difference_is_seen(want: Any, got: Any) -> None:
    assert len(differences(want, got)) == 1


def test_placeholders_and_the_last_bit_are_no_difference() -> None:
    want = {"seconds": "<number>", "id": "<string>", "x": "<anything>", "v": [0.1]}
    assert differences(want, {"seconds": 2, "id": "a", "x": None, "v": [0.1 + 1e-8]}) == []
