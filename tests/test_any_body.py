"""Any body to any route of the whole app: an answer or a refusal, as JSON in the route's own dialect, and never a 500.

Hypothesis fills every Struct's fields with values that fit and values that do not; the rest is written down.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import small
from tests.whole import Whole
from vecgate.errors import InvalidRequest, TooLarge
from vecgate.protocols import Route, routes

PLACES = [
    (path, route)
    for route in routes()
    for path in route.paths
    if route.body is not None and path not in ("/embeddings", "/openai/v1/embeddings", "/score")  # the same handler
]
POSTS = [pytest.param(path, route, id=f"{path} {route.summary}") for path, route in PLACES]
EACH_BODY = list({route.body: post for (_, route), post in zip(PLACES, POSTS)}.values())
"""One route for each Struct: what is slow is tried no more often than it is decoded differently."""
NAMES = {"{deployment:str}": "small", "{organization:str}": "org"}
DEEP = 100_000
MANY = 100_000

ODD_TEXTS = (
    "",
    " ",
    "\0",
    "\ud800",
    "\udfff\ud800",
    "\ufeffa",
    "\u202e",
    "a\u0301" * 50,
    "poison",
    "small",
    "small:query",
    "x" * 2_000,
)
ODD_NUMBERS = (0, -1, 1, 1.5, 2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 1e308, -0.0)
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from(ODD_TEXTS),
        st.sampled_from(ODD_NUMBERS),
        st.text(max_size=8),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(("text", "type", "a", "")), inner, max_size=2),
    max_leaves=6,
)  # fmt: skip


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    cwd = tmp_path_factory.mktemp("any")
    judge = str(small.folder(cwd / "judge", "rerank"))
    with Whole(cwd, CROSS_ENCODER_MODEL=judge, LOG_LEVEL="ERROR") as started:
        yield started


def keys_of_errors(path: str) -> set[frozenset[str]]:
    """What an error of this path has on its top, in each of its dialects."""
    return {
        frozenset(json.loads(route.render(error)[2]))
        for route in routes()
        if path in route.paths
        for error in (InvalidRequest("x"), TooLarge("x"))
    }


def keeps_its_shape(app: Whole, path: str, body: bytes) -> httpx.Response:
    place = path
    for name, value in NAMES.items():
        place = place.replace(name, value)
    answer = app.post(place, body)
    told = json.loads(answer.content)
    assert answer.status_code < 500, (answer.status_code, body[:300], told)
    assert answer.status_code < 400 or frozenset(told) in keys_of_errors(path)
    assert b"Traceback" not in answer.content
    assert b"/vecgate/" not in answer.content
    return answer


def mutations(route: Route) -> st.SearchStrategy[dict[str, Any]]:
    """The route's example, some fields of its Struct left out, or anything at all."""
    example = dict(route.example or {})
    fields = {}
    assert route.body is not None
    for field in msgspec.structs.fields(route.body):
        name = field.encode_name
        kept = [st.just(example[name])] * 3 if name in example else []
        fields[name] = st.one_of(*kept, values)
    required = [name for name in fields if name in example]
    return st.fixed_dictionaries(
        {name: fields[name] for name in required},
        optional={name: strategy for name, strategy in fields.items() if name not in required},
    )


@pytest.mark.parametrize(("path", "route"), POSTS)
def test_whatever_a_field_holds(app: Whole, path: str, route: Route) -> None:
    @settings(max_examples=10, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(mutations(route))
    def tried(body: dict[str, Any]) -> None:
        keeps_its_shape(app, path, json.dumps(body).encode())

    tried()


BODIES: dict[str, bytes] = {
    "nothing": b"",
    "blanks": b" \r\n\t ",
    "half": b'{"input": "a"',
    "no JSON": b"input=a&model=b",
    "a comment": b'{"input": "a" /* b */}',
    "single quotes": b"{'input': 'a'}",
    "something behind": b'{"input": "a"} {"input": "b"}',
    "null": b"null",
    "true": b"true",
    "a number": b"1",
    "a text": b'"a"',
    "a list": b'["a"]',
    "an empty object": b"{}",
    "a list of objects": b'[{"input": "a"}]',
    "NaN": b'{"input": NaN}',
    "Infinity": b'{"input": -Infinity}',
    "1e999": b'{"input": 1e999, "model": -1e999, "dimensions": 1e999, "top_n": 1e400}',
    "10,000 digits": b'{"dimensions": ' + b"9" * 10_000 + b"}",
    "a byte order mark": b'\xef\xbb\xbf{"input": "a"}',
    "UTF-16": '{"input": "a"}'.encode("utf-16"),
    "UTF-32": '{"input": "a"}'.encode("utf-32"),
    "latin-1": '{"input": "\xe9"}'.encode("latin-1"),
    "an overlong slash": b'{"input": "\xc0\xaf"}',
    "half a character": b'{"input": "\xed\xa0\x80"}',
    "a null byte": b'{"input": "a\x00b"}',
    "nulls": b"\x00" * 64,
    "a bare control character": b'{"input": "a\x01b"}',
    "lists in lists": b"[" * DEEP,
    "objects in objects": b'{"input":' * DEEP,
    "closed lists in lists": b'{"input": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "depth in an unknown field": b'{"input": "a", "x": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "the same key 10,000 times": b"{" + b'"input": "a",' * 10_000 + b'"input": "b"}',
    "100,000 unknown fields": b"{" + b",".join(b'"k%d": 1' % at for at in range(MANY)) + b"}",
    "a key of 1 MB": b'{"' + b"k" * 2**20 + b'": 1}',
}


@pytest.mark.parametrize("path", sorted({path for path, _ in PLACES}))
def test_whatever_a_body_is(app: Whole, path: str) -> None:
    for raw in BODIES.values():
        keeps_its_shape(app, path, raw)


HOLD_TEXTS = ("input", "inputs", "prompt", "texts", "passages", "documents", "query", "text_1", "sentences")


@pytest.mark.parametrize(("path", "route"), EACH_BODY)
def test_a_field_that_is_long_or_many(app: Whole, path: str, route: Route) -> None:
    example = dict(route.example or {})
    for name in [one for one in example if one in HOLD_TEXTS]:
        for value in (
            "word " * 200_000,
            "." * 10**6,
            ["a"] * MANY,
            [1] * MANY,
            [["a"] * 10] * 1_000,
            "a\ud800",
            ["\ud800"],
        ):
            keeps_its_shape(app, path, json.dumps(example | {name: value}).encode())


def test_a_duplicated_key_is_read_as_json_readers_do(app: Whole) -> None:
    def row(body: bytes) -> Any:
        return keeps_its_shape(app, "/v1/embeddings", body).json()["data"]

    assert row(b'{"input": "dogs", "input": "a cat"}') == row(b'{"input": "a cat"}')
