import msgspec
import pytest

from tests.bench.stub import embeddings
from vecgate.bench.judge import judge
from vecgate.bench.load import Shot, Window
from vecgate.bench.plan import Ask
from vecgate.bench.read import Reader

ASKS = [Ask(("a", "b")), Ask(("c", "d"))]
BODIES = [msgspec.json.encode(embeddings(list(ask.texts))) for ask in ASKS]


def shot(ask: int, begin_s: float, end_s: float, kind: str | None = None, body: bytes | None = None) -> Shot:
    timing = "queue;dur=100, forward;desc=x;dur=300.5"
    return Shot(ask, begin_s, end_s, kind, (body or BODIES[ask]) if kind is None else None, timing)


def window(*shots: Shot) -> Window:
    return Window(list(shots), begin_s=10.0, end_s=12.0, client_cpu_s=0.5)


def test_a_request_counts_for_its_share_in_the_window() -> None:
    found = judge(window(shot(0, 9.0, 11.0), shot(1, 11.0, 13.0), shot(0, 5.0, 9.0)), ASKS, Reader())
    assert found.requests == pytest.approx(1.0)
    assert found.texts_per_s == pytest.approx(1.0)
    assert found.tokens_per_s == pytest.approx(3.0)
    assert (found.p50_ms, found.p99_ms, found.most_ms) == (2000.0, 2000.0, 2000.0)  # the one that ended in it
    assert found.client_cpu == 0.25


def test_only_right_answers_count() -> None:
    other = msgspec.json.encode(embeddings(["x", "y"]))
    found = judge(
        window(shot(0, 10, 11), shot(0, 11, 12, body=other), shot(1, 10, 11, "429"), shot(1, 11, 12, "closed")),
        ASKS,
        Reader(),
    )
    assert found.errors == {"wrong: order": 1, "429": 1, "closed": 1}
    assert found.requests == pytest.approx(1.0)


def test_answers_not_kept_count_and_are_told() -> None:
    found = judge(window(Shot(0, 10, 11, None, None), shot(1, 10, 11)), ASKS, Reader())
    assert (found.unchecked, found.requests, found.errors) == (1, 2.0, {})


def test_stages_are_medians_and_the_rest_is_what_is_left() -> None:
    found = judge(window(shot(0, 10, 11), shot(1, 11, 12)), ASKS, Reader())
    assert found.stages_ms == {"queue": 100.0, "forward": 300.5, "rest": pytest.approx(599.5)}


def test_nothing_answered_has_no_latency() -> None:
    found = judge(window(shot(0, 10, 11, "timeout")), ASKS, Reader())
    assert (found.p50_ms, found.texts_per_s, found.stages_ms) == (None, 0.0, {})
