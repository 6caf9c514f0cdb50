import asyncio

import pytest

from tests import cost

AT_MOST = 12.0
"""Times the bare handler's CPU: a Litestar route was measured at 4 to 6; logging or validating twice would go beyond."""


def test_a_route_costs_a_few_times_a_bare_handler() -> None:
    found = asyncio.run(cost.costs("float", rounds=5, requests=100))
    assert {len(times) for times in found.values()} == {5}
    assert min(one / base for one, base in zip(found["route"], found["bare"])) < AT_MOST


def test_all_that_are_compared_answer_the_same_row() -> None:
    async def sizes() -> list[int]:
        app, client = cost.app(), cost.Client("float")
        found = []
        for one, inner in ((cost.bare, False), (app.app, True), (app, False)):
            client.sent = 0
            await client.ask(one, inner=inner)
            found.append(client.sent)
        return found

    bare, route, whole = asyncio.run(sizes())
    assert route == whole == pytest.approx(bare, abs=100)  # of some 4600 bytes; the names differ
