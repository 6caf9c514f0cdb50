"""Every body of every protocol: null in each optional field is as if it were absent, and what nobody knows is ignored."""

import asyncio
from collections.abc import Iterator
from typing import Any, get_args

import httpx
import msgspec
import pytest

from tests.protocols import stub
from vecgate.protocols import Route, routes

NEEDED = {("CohereEmbed", "texts"), ("VllmScore", "text_1"), ("VllmScore", "text_2")}
"""Optional by itself, but one of several that a body must hold."""
BODIES = {
    route.body.__name__: route for route in reversed(routes()) if route.body is not None and route.answer is not None
}


def structs_in(kind: Any) -> Iterator[type[msgspec.Struct]]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
    for part in get_args(kind):
        yield from structs_in(part)


def changes(kind: Any, value: Any) -> Iterator[Any]:
    """`value`, an example of a Struct or of something that holds some, with one optional field null or one unknown."""
    if isinstance(value, list):
        for i, one in enumerate(value):
            for changed in changes(kind, one):
                yield [*value[:i], changed, *value[i + 1 :]]
    if not isinstance(value, dict):
        return
    for struct in structs_in(kind):
        if not set(value) <= set(struct.__struct_encode_fields__):
            continue
        yield {**value, "nobody_knows_this": {"a": [None, 1.5, "x"]}}
        for field in msgspec.structs.fields(struct):
            if not field.required and (struct.__name__, field.encode_name) not in NEEDED:
                yield {**value, field.encode_name: None}
            for inner in changes(field.type, value.get(field.encode_name)):
                yield {**value, field.encode_name: inner}


def post(route: Route, bodies: list[Any]) -> list[httpx.Response]:
    app = stub.app_of(stub.StubEngine())
    path = route.paths[0].replace("{deployment:str}", "stub")

    async def go() -> list[httpx.Response]:
        async with stub.client_of(app) as client:
            return [await client.post(path, json=body) for body in bodies]

    return asyncio.run(go())


@pytest.mark.parametrize("name", BODIES)
def test_nulls_and_unknown_fields_change_nothing(name: str) -> None:
    route = BODIES[name]
    bodies = [dict(route.example or {}), *changes(route.body, route.example)]
    assert len(bodies) >= 3
    answers = post(route, bodies)
    assert [(body, answer.text) for body, answer in zip(bodies, answers) if answer.status_code != 200] == []


def test_the_walk_reaches_what_lies_within() -> None:
    found = list(changes(BODIES["CohereEmbed"].body, {"inputs": [{"content": [{"type": "text", "text": "a"}]}]}))
    assert {"inputs": [{"content": [{"type": "text", "text": None}]}]} in found
    assert {"inputs": None} in found
