"""What crosses to another process: calls, results and every error, by their bytes."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from tests.protocols.stub import StubEngine
from vecgate import errors
from vecgate.core import BatchReport, Call, Embeddings, pack, unpack
from vecgate.engine import parcel
from vecgate.engine.parcel import Desk, Failure, Parcel, Reply
from vecgate.errors import ModelNotFound, VecgateError
from vecgate.traits import Engine

CALL = Call("id", 3.5, "a-space")
ASKED: list[parcel.Asked] = [
    parcel.Embed(CALL, "m", ["a", [1, 2]], "query", 4, False, "start", 8, 16),
    parcel.Embed(Call("id"), None, ("a",), None, None, True, "end", None, None),
    parcel.Rerank(CALL, "m", "q", ["a", "b"], "similarity", 1, 7, "refuse", 16),
    parcel.Tokenize("m", ["a"], False),
    parcel.Decode("m", [[1, 2]], True),
]


KINDS = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, VecgateError)]
DETAILS: dict[str, Any] = {"param": "input", "retry_after_s": 17, "allowed": ("GET", "HEAD"), "lasting": True}


def made(kind: type[VecgateError]) -> VecgateError:
    """One with nothing left at its default."""
    names = vars(kind("it went wrong"))
    return kind("it went wrong", **{name: DETAILS[name] for name in names})


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: type(asked).__name__)
def test_a_call_arrives_as_it_left(asked: parcel.Asked) -> None:
    (arrived,) = unpack(Parcel, pack(Parcel((asked,)))).calls
    assert type(arrived) is type(asked)
    assert pack(arrived) == pack(asked)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_beyond_every_limit_travels_as_one(sign: int) -> None:
    (arrived,) = unpack(
        Parcel, pack(Parcel((parcel.fitting(structs.replace(ASKED[0], dimensions=sign * 10**30)),)))
    ).calls
    assert arrived == structs.replace(ASKED[0], dimensions=sign * (2**63 - 1))


def test_a_call_that_fits_is_left_as_it_is() -> None:
    assert all(parcel.fitting(asked) is asked for asked in ASKED)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_arrives_as_it_left(kind: type[VecgateError]) -> None:
    left = made(kind)
    arrived = parcel.error_of(unpack(Failure, pack(parcel.failure(left))), "replica")
    assert type(arrived) is kind
    assert str(arrived) == str(left)
    assert {name: list(value) if isinstance(value, tuple) else value for name, value in vars(left).items()} == vars(
        arrived
    )


def test_a_note_on_an_error_does_not_travel() -> None:
    left = ModelNotFound("no")
    left.add_note("a machine's path")
    assert str(parcel.error_of(parcel.failure(left), "replica")) == "no"


@pytest.mark.parametrize("kind", ["", "ConfigError", "annotations", "Nothing"])
def test_what_is_no_error_for_a_client_becomes_an_unforeseen_one(kind: str) -> None:
    assert type(parcel.error_of(Failure(kind, "TypeError"), "replica 7")) is RuntimeError


class Broken(StubEngine):
    async def tokenize(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a client's text")


def answered(engine: Engine, *asked: parcel.Asked, status: bool = False) -> tuple[Reply, Desk]:
    desk = Desk("replica 7", engine, deque([BatchReport("m", 1, 2, 3, 0.5, (0.25,))]))
    return unpack(Reply, asyncio.run(desk.answer(pack(Parcel(asked, status))))), desk


def embed(text: str, **changes: Any) -> parcel.Embed:
    given: dict[str, Any] = {"role": None, "dimensions": None, "normalize": True, "cut": "end"}
    return parcel.Embed(Call("id"), None, [text], **given, batch_size=None, max_tokens=None)


def test_the_far_side_answers_each_call_with_its_own_outcome() -> None:
    wrong = parcel.Tokenize("nothing", ["a"], True)
    reply, _ = answered(StubEngine(), embed("cat"), wrong, parcel.Tokenize(None, ["cat"], True))
    assert reply.replica == "replica 7"
    rows = parcel.result(embed("cat"), _bytes(reply.outcomes[0]))
    assert isinstance(rows, Embeddings)
    assert np.allclose(np.linalg.norm(rows.vectors, axis=1), 1.0)
    failure = reply.outcomes[1]
    assert isinstance(failure, Failure)
    assert failure.kind == "ModelNotFound"
    (pieces,) = parcel.result(parcel.Tokenize(None, [], True), _bytes(reply.outcomes[2]))
    assert pieces.texts == ("[CLS]", "cat", "[SEP]")


def _bytes(outcome: bytes | Failure) -> bytes:
    assert isinstance(outcome, bytes)
    return outcome


def test_of_an_error_that_nobody_foresaw_the_type_travels_and_the_log_has_the_stack(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR, "vecgate.engine"):
        reply, _ = answered(Broken(), parcel.Tokenize(None, ["a"], True))
    assert reply.outcomes == (Failure("", "TypeError"),)
    assert caplog.records[0].exc_info is not None


def test_batches_are_told_of_once_and_the_status_where_it_is_asked_for() -> None:
    reply, desk = answered(StubEngine(), status=True)
    assert [report.rows for report in reply.reports] == [1]
    assert reply.status is not None
    assert reply.status.models[0].name == "org/stub-embed"
    again = unpack(Reply, asyncio.run(desk.answer(pack(Parcel()))))
    assert (again.reports, again.status) == ((), None)
