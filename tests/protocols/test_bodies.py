"""Bodies in bounded steps: what is counted, where it is decoded, and that no large body becomes objects unseen."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.protocols import stub
from vecgate.errors import InvalidRequest
from vecgate.protocols import Site, bodies

JSON = st.recursive(
    st.none() | st.integers() | st.text('a",:[]{}\\\u00e9\U0001f600'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('k"\\,'), inner),
)


def weight(value: Any) -> tuple[int, int]:
    """Commas and one, and the lists, objects and fields, counted on the value itself."""
    if not isinstance(value, list | dict):
        return 1, 0
    inner = [weight(one) for one in (value.values() if isinstance(value, dict) else value)]
    fields = len(value) if isinstance(value, dict) else 0
    return sum(values for values, _ in inner) or 1, 1 + fields + sum(nodes for _, nodes in inner)


@pytest.mark.parametrize(
    ("raw", "at"),
    [
        (b'{"texts": 1, "more": {"inputs": 2}}', 0),
        (b'{"inputs": ["a"]}', 2),
        (b'{"inputs": {"source": null}}', 1),
        (b'{"inputs" : {"other": 1, "source": "a"}}', 1),
        (b'{"inputs": {"other": 1}}', 2),
        (b'{"inputs": "source"}', 2),
        (b'{"inputs": 1, "texts": 2}', 0),
        (b'{"texts": null, "inputs": nullable}', 0),  # no JSON: the first one's decoder will say so
        (b'{"inputs": "a", "texts": nullable}', 2),
        (rb'{"inputs": "\ud83d"}', 2),
        (b'{"inputs": {"source": "a"', 2),
        (b'{"texts": null, "inputs": "null"}', 2),
        (b'{"texts" : null }', 0),
        (b'{"inputs": null}', 2),
        (b"{}", None),
        (b'{"other": {"source": 1}}', None),
        (b"[]", 0),
        (b"null", 0),
        (b'{"inputs": ', 2),
        (b'{"texts": [', 0),
        (b"[" * 5_000, 0),
        (b'{"other": ' + b"[" * 5_000, 0),
    ],
)
def test_the_key_that_a_body_holds(raw: bytes, at: int | None) -> None:
    assert bodies.finder(["texts", "inputs.source", "inputs"])(raw) == at


def test_a_single_key_needs_no_look() -> None:
    assert bodies.finder(["texts"])(b"{}") == 0


@given(JSON, st.booleans(), st.integers(1, 9))
@example('\\"', False, 2)
@example(["\\\\", ",", '\\",'], False, 3)
def test_what_stands_in_texts_is_not_counted_wherever_a_step_ends(value: Any, as_ascii: bool, step: int) -> None:
    raw = json.dumps(value, ensure_ascii=as_ascii).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "STEP_BYTES", step)
        assert bodies._weight(raw) == weight(value)
        most = bodies._at_most(raw)
    assert most >= weight(value)
    assert most[1] >= weight(value)[1]


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in (("INLINE_BYTES", 8), ("STEP_BYTES", 16), ("MOST_VALUES", 10), ("MOST_NODES", 5)):
        monkeypatch.setattr(bodies, name, limit)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize(
    ("body", "told"),
    [
        ([0] * 10, None),
        ([0] * 11, "The body holds 11 values (token ids, texts and so on); the limit is 10."),
        ([[]] * 4, None),
        ([[]] * 5, "The body holds 6 lists, objects and fields; the limit is 5."),
        ({"a": {"b": 1, "c": 2, "d": 3}}, "The body holds 6 lists, objects and fields; the limit is 5."),
        ([", : [ { " * 20], None),
        (['\\",' * 20], None),
    ],
)
def test_a_large_body_is_weighed_before_it_is_decoded(body: Any, told: str | None) -> None:
    refused = None
    try:
        bodies.check(json.dumps(body).encode())
    except InvalidRequest as error:
        refused = str(error)
    assert refused == told


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("at", range(14, 18))
def test_a_byte_that_is_not_utf8_is_named_wherever_a_step_ends(at: int) -> None:
    bodies.check(b"a" * at + "\U0001f600".encode() + b"a" * 20)
    with pytest.raises(InvalidRequest, match=rf"byte {at} is not UTF-8"):
        bodies.check(b"a" * at + b"\xf0\x9f" + b"a" * 20)
    with pytest.raises(InvalidRequest, match=rf"byte {at} is not UTF-8"):
        bodies.check(b"a" * at + b"\xf0\x9f")


def test_large_bodies_are_worked_on_in_a_thread_one_at_a_time() -> None:
    async def scene() -> list[int]:
        gate = asyncio.Semaphore(1)
        busy = threading.Lock()

        def work() -> int:
            assert busy.acquire(blocking=False), "two at once"
            threading.Event().wait(0.01)
            busy.release()
            return threading.get_ident()

        return await asyncio.gather(*(bodies.aside(gate, work) for _ in range(2)))

    assert threading.get_ident() not in asyncio.run(scene())


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("raw", [b'["a","b","c"]', b'["a","b",'], ids=["sound", "broken"])
def test_the_collector_is_off_while_a_large_body_is_decoded_and_on_after_it(raw: bytes) -> None:
    seen = []

    class Decoder:
        def decode(self, raw: bytes) -> Any:
            seen.append(gc.isenabled())
            return msgspec.json.decode(raw)

    outcome: Any = None
    try:
        outcome = bodies.decode(Decoder(), raw)  # type: ignore[arg-type]
    except InvalidRequest as error:
        outcome = error
    assert outcome is not None
    assert (seen, gc.isenabled()) == ([False], True)


MANY = b",".join([b"7"] * (bodies.MOST_VALUES + 1))
EMPTY = b",".join([b"{}"] * (bodies.MOST_NODES + 1))


@pytest.mark.parametrize(
    ("path", "raw", "limit"),
    [
        ("/v1/embeddings", b'{"input":[%s]}' % MANY, bodies.MOST_VALUES),
        ("/v1/embeddings", b'{"input":"a","unknown":[%s]}' % MANY, bodies.MOST_VALUES),
        ("/v2/rerank", b'{"query":"a","documents":[%s]}' % EMPTY, bodies.MOST_NODES),
        ("/rerank", b'{"query":"a","passages":[%s]}' % EMPTY, bodies.MOST_NODES),
    ],
    ids=["ids", "unknown", "documents", "shared"],
)
def test_no_route_makes_objects_of_too_many(path: str, raw: bytes, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "decode", lambda *_: pytest.fail("decoded"))

    async def ask() -> Any:
        async with stub.client_of(stub.app_of(stub.StubEngine(), Site(token_ids="model"))) as client:
            return await client.post(path, content=raw)

    answer = asyncio.run(ask())
    assert answer.status_code == 400
    assert f"the limit is {limit}" in answer.text
