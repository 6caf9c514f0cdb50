"""The batcher: what waits becomes batches on one thread; a failure or a departure costs only its own call."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vecgate.backends import fake
from vecgate.core import Batch, BatchReport, Checkpoint, Memory, Tokens
from vecgate.engine.batcher import Batcher
from vecgate.engine.waiting import Limits, Ticket
from vecgate.errors import BackendFailed, NotReady, OutOfMemory

CHECKPOINT = Checkpoint(
    name="m",
    folder=Path(),
    family="fake",
    task="embed",
    config={},
    weights=(),
    max_tokens=512,
    pad_id=0,
    stored_dtype="float32",
    weight_bytes=0,
)
LIMITS = Limits(tokens=1000, rows=64)


def row(*ids: int) -> Tokens:
    return Tokens(np.array(ids, np.int32), original=len(ids))


class Bench:
    """A started batcher over one fake model, its script and its reports."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.reports: list[BatchReport] = []
        self.script = fake.Script()
        self.backend = fake.load(CHECKPOINT, script=self.script)
        self.batcher = Batcher(self.reports.append)
        self.batcher.start()
        self.batcher.open("m", self.backend, limits)

    def hold(self) -> None:
        """The next forward begins and stays."""
        self.script.hold = threading.Event()
        self.script.entered.clear()

    async def entered(self) -> None:
        assert await asyncio.to_thread(self.script.entered.wait, 10)

    def release(self) -> None:
        assert self.script.hold is not None
        self.script.hold.set()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    if made.script.hold is not None:
        made.script.hold.set()
    made.batcher.close()


def test_rows_come_back_in_the_calls_order_whatever_their_lengths(bench: Bench) -> None:
    rows = [row(*range(1, n + 1)) for n in (9, 2, 30, 1, 5)]
    ticket = asyncio.run(bench.batcher.submit("m", rows))
    np.testing.assert_array_equal(ticket.vectors, np.stack([fake.vector(one.ids, 8) for one in rows]))


def test_everything_runs_on_one_thread_that_is_not_the_callers(bench: Bench) -> None:
    async def calls() -> None:
        await asyncio.gather(*(bench.batcher.submit("m", [row(i)]) for i in range(1, 20)))

    job = bench.batcher.run(threading.get_ident)
    asyncio.run(calls())
    assert {*bench.script.threads, job.result(10)} == {job.result(10)}
    assert threading.get_ident() != job.result(10)


def test_what_waits_while_the_device_is_busy_becomes_one_batch(bench: Bench) -> None:
    async def calls() -> None:
        bench.hold()
        first = asyncio.create_task(bench.batcher.submit("m", [row(1)]))
        await bench.entered()
        others = [asyncio.create_task(bench.batcher.submit("m", [row(i)])) for i in range(2, 12)]
        await asyncio.sleep(0)
        assert bench.batcher.queue().items == 10
        bench.release()
        await asyncio.gather(first, *others)

    asyncio.run(calls())
    assert [len(batch.rows) for batch in bench.script.batches] == [1, 10]


def test_the_loop_answers_while_a_forward_is_blocked(bench: Bench) -> None:
    async def calls() -> int:
        bench.hold()
        waiting = asyncio.create_task(bench.batcher.submit("m", [row(1)]))
        await bench.entered()
        turns = 0
        for _ in range(100):
            await asyncio.sleep(0)
            turns += 1
        assert not waiting.done()
        bench.release()
        await waiting
        return turns

    assert asyncio.run(calls()) == 100


def test_a_call_that_leaves_is_not_computed_and_is_reported_as_dropped(bench: Bench) -> None:
    async def calls() -> None:
        bench.hold()
        first = asyncio.create_task(bench.batcher.submit("m", [row(1)]))
        await bench.entered()
        leaving = asyncio.create_task(bench.batcher.submit("m", [row(2), row(3)]))
        staying = asyncio.create_task(bench.batcher.submit("m", [row(4)]))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert bench.batcher.queue().items == 1
        bench.release()
        await asyncio.gather(first, staying)

    asyncio.run(calls())
    assert bench.script.rows == 2
    assert sum(report.dropped_rows for report in bench.reports) == 2


def test_one_bad_row_fails_its_own_call_only(bench: Bench) -> None:
    bench.script.failure = lambda tokens: RuntimeError("secret text") if 13 in tokens.ids else None

    async def calls() -> list[object]:
        bench.hold()
        first = asyncio.create_task(bench.batcher.submit("m", [row(1)]))
        await bench.entered()
        others = [asyncio.create_task(bench.batcher.submit("m", [row(i)])) for i in (12, 13, 14)]
        await asyncio.sleep(0)
        bench.release()
        return list(await asyncio.gather(first, *others, return_exceptions=True))

    answers = asyncio.run(calls())
    assert [isinstance(answer, BackendFailed) for answer in answers] == [False, False, True, False]
    assert "secret" not in str(answers[2])
    assert bench.reports[-1].failed_rows == 1


def test_a_row_that_is_not_finite_is_an_error_never_an_answer(bench: Bench) -> None:
    bench.script.nan_ids = frozenset({13})

    async def calls() -> list[object]:
        return list(
            await asyncio.gather(*(bench.batcher.submit("m", [row(i)]) for i in (12, 13)), return_exceptions=True)
        )

    answers = asyncio.run(calls())
    assert [isinstance(answer, BackendFailed) for answer in answers] == [False, True]
    assert sum(report.nonfinite_rows for report in bench.reports) == 1


def test_the_report_counts_what_was_computed() -> None:
    bench = Bench(Limits(1000, 64, (8, 16)))
    try:
        asyncio.run(bench.batcher.submit("m", [row(*range(10)), row(*range(3))]))
    finally:
        bench.batcher.close()
    (report,) = bench.reports
    assert (report.rows, report.tokens, report.padded_tokens, len(report.queue_s)) == (2, 13, 32, 2)


def test_two_models_take_turns_by_who_has_waited_longest(bench: Bench) -> None:
    order: list[str] = []
    bench.batcher._on_batch = lambda report: order.append(report.model)
    other = fake.load(CHECKPOINT, script=fake.Script())
    bench.batcher.open("n", other, LIMITS)

    async def calls() -> None:
        bench.hold()
        tasks = [asyncio.create_task(bench.batcher.submit("m", [row(1)]))]
        await bench.entered()
        for model in ("n", "m"):
            tasks.append(asyncio.create_task(bench.batcher.submit(model, [row(2)])))
            await asyncio.sleep(0.002)
        bench.release()
        await asyncio.gather(*tasks)

    asyncio.run(calls())
    assert order == ["m", "n", "m"]


def test_a_model_with_much_to_do_does_not_keep_another_from_its_turn(bench: Bench) -> None:
    """Each has its share of the device's time, whoever came first and however much waits."""
    order: list[str] = []
    bench.batcher._on_batch = lambda report: order.append(report.model)
    other = fake.Script(forward_s=0.004)
    bench.script.forward_s = 0.002
    bench.batcher.open("n", fake.load(CHECKPOINT, script=other), LIMITS)

    async def calls() -> None:
        bench.hold()
        first = asyncio.create_task(bench.batcher.submit("m", [row(*range(100))] * 600))
        await bench.entered()
        second = asyncio.create_task(bench.batcher.submit("n", [row(*range(100))] * 100))
        await asyncio.sleep(0)
        bench.release()
        await second
        await first

    asyncio.run(calls())
    last = len(order) - order[::-1].index("n")
    assert order.index("n") <= 2
    assert order[last:] == ["m"] * (len(order) - last)
    assert len(order) - last > 2


def test_a_model_that_was_idle_has_not_saved_its_time_up(bench: Bench) -> None:
    bench.batcher.open("n", fake.load(CHECKPOINT, script=fake.Script()), LIMITS)
    lanes = bench.batcher._lanes

    async def calls() -> None:
        await bench.batcher.submit("m", [row(1)])
        lanes["m"].spent_s = 100.0
        bench.hold()
        waiting = [asyncio.create_task(bench.batcher.submit("m", [row(1)])) for _ in range(2)]
        await bench.entered()
        waiting.append(asyncio.create_task(bench.batcher.submit("m", [row(1)])))
        await asyncio.sleep(0)
        waiting.append(asyncio.create_task(bench.batcher.submit("n", [row(1)])))
        await asyncio.sleep(0)
        assert lanes["n"].spent_s == 100.0
        bench.release()
        await asyncio.gather(*waiting)

    asyncio.run(calls())


def test_a_model_that_comes_after_a_pause_has_not_saved_its_time_up_either(bench: Bench) -> None:
    bench.batcher.open("n", fake.load(CHECKPOINT, script=fake.Script()), LIMITS)
    lanes = bench.batcher._lanes

    async def calls() -> None:
        lanes["m"].spent_s = 100.0
        await bench.batcher.submit("m", [row(1)])
        await bench.batcher.submit("n", [row(1)])
        assert lanes["n"].spent_s >= 100.0

    asyncio.run(calls())


def test_a_failed_call_has_no_more_rows_computed(bench: Bench) -> None:
    bench.script.failure = lambda tokens: RuntimeError("no") if 1 in tokens.ids else None
    rows = [row(1), *[row(*range(2, 102)) for _ in range(500)]]

    async def call() -> None:
        task = asyncio.create_task(bench.batcher.submit("m", rows))
        await asyncio.sleep(0)
        while bench.batcher.queue().items:  # the loop, and with it the call, hears of nothing meanwhile
            time.sleep(0.001)  # noqa: ASYNC251 - on purpose
        with pytest.raises(BackendFailed):
            await task

    asyncio.run(call())
    assert bench.script.rows < 20
    assert bench.batcher.queue().items == 0


def test_no_room_halves_the_budget_and_it_comes_back(bench: Bench) -> None:
    bench.script.most_tokens = 600
    rows = [row(*range(100))] * 60
    ticket = asyncio.run(bench.batcher.submit("m", rows))
    assert ticket.left == 0
    assert bench.batcher.budget("m") == (LIMITS.tokens, 500)
    assert [len(batch.rows) for batch in bench.script.batches[:4]] == [10, 5, 5, 5]  # then every batch fits
    assert max(len(batch.rows) for batch in bench.script.batches[1:]) == 5
    bench.script.most_tokens = None
    asyncio.run(bench.batcher.submit("m", [row(*range(100))] * 2000))
    assert bench.batcher.budget("m") == (LIMITS.tokens, LIMITS.tokens)


def test_what_is_being_made_ready_counts_as_waiting(bench: Bench) -> None:
    asyncio.run(bench.batcher.submit("m", [row(*range(100))] * 10))
    assert bench.batcher.wait_s(10_000) == bench.batcher.queue().wait_s == 0.0
    with bench.batcher.coming("m", 1_000_000):
        assert bench.batcher.wait_s(10_000) == bench.batcher.queue().wait_s > 0.0
        assert bench.batcher.wait_s(1) == 0.0
    assert bench.batcher.wait_s(10_000) == 0.0


def test_the_wait_is_that_of_the_model_with_the_least_to_do(bench: Bench) -> None:
    bench.batcher.open("n", fake.load(CHECKPOINT, script=fake.Script()), LIMITS)
    asyncio.run(bench.batcher.submit("m", [row(*range(100))] * 10))
    with bench.batcher.coming("m", 1_000_000):
        assert bench.batcher.queue().wait_s > 0.0
        assert bench.batcher.wait_s(10_000) == 0.0


def test_no_rows_is_no_wait(bench: Bench) -> None:
    assert asyncio.run(bench.batcher.submit("m", [])).count == 0


def test_a_job_runs_before_waiting_rows_and_hands_its_error_back(bench: Bench) -> None:
    def boom() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        bench.batcher.run(boom).result(10)
    assert bench.batcher.alive


def test_a_job_that_nobody_waits_for_any_more_is_done_all_the_same(bench: Bench) -> None:
    held, done = threading.Event(), threading.Event()

    def work() -> None:
        assert held.wait(10)
        done.set()

    async def calls() -> None:
        running = bench.batcher.run(work)
        waiting = asyncio.ensure_future(asyncio.wrap_future(running))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        held.set()
        await asyncio.wrap_future(running)
        await bench.batcher.submit("m", [row(1)])

    asyncio.run(calls())
    assert done.is_set()


def test_a_job_after_the_end_is_refused(bench: Bench) -> None:
    bench.batcher.close()
    with pytest.raises(NotReady, match="going down"):
        bench.batcher.run(lambda: None).result(10)


class Death(BaseException):
    pass


def test_the_death_of_the_thread_fails_what_waits_and_is_told(bench: Bench) -> None:
    told = threading.Event()
    bench.batcher.on_death = lambda error: told.set()
    bench.script.failure = lambda tokens: Death()  # type: ignore[return-value,assignment]

    async def calls() -> list[object]:
        return list(
            await asyncio.gather(*(bench.batcher.submit("m", [row(i)]) for i in range(1, 4)), return_exceptions=True)
        )

    answers = asyncio.run(calls())
    assert all(isinstance(answer, NotReady) for answer in answers)
    assert told.wait(10)
    bench.batcher._thread.join(10)
    assert not bench.batcher.alive
    with pytest.raises(NotReady):
        asyncio.run(bench.batcher.submit("m", [row(1)]))


def test_close_fails_what_waits(bench: Bench) -> None:
    async def calls() -> object:
        bench.hold()
        first = asyncio.create_task(bench.batcher.submit("m", [row(1)]))
        await bench.entered()
        second = asyncio.create_task(bench.batcher.submit("m", [row(2)]))
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(bench.batcher.close))
        while not bench.batcher._closed:  # noqa: ASYNC110 - the batcher has no event for it, and only this test asks
            await asyncio.sleep(0)
        bench.release()
        await closing
        await first
        return (await asyncio.gather(second, return_exceptions=True))[0]

    assert isinstance(asyncio.run(calls()), NotReady)


def test_status_shows_a_busy_device(bench: Bench) -> None:
    async def calls() -> tuple[bool, float | None]:
        assert bench.batcher.busy_s is None
        bench.hold()
        first = asyncio.create_task(bench.batcher.submit("m", [row(1)]))
        await bench.entered()
        busy_s = bench.batcher.busy_s
        bench.release()
        await first
        await bench.batcher.submit("m", [row(*range(100))] * 10)
        return bench.batcher.alive, busy_s

    alive, busy_s = asyncio.run(calls())
    assert alive
    assert busy_s is not None
    assert bench.batcher.queue().tokens_per_s is not None


def test_the_queue_is_counted_exactly_through_every_coming_and_going(bench: Bench) -> None:
    lane = bench.batcher._lanes["m"]

    async def calls() -> None:
        bench.hold()
        first = asyncio.create_task(bench.batcher.submit("m", [row(1)]))
        await bench.entered()
        tasks = [asyncio.create_task(bench.batcher.submit("m", [row(*range(1, n + 2))] * 20)) for n in range(100)]
        await asyncio.sleep(0)
        assert bench.batcher.queue().items == 2000
        assert bench.batcher.queue().tokens == 20 * sum(n + 1 for n in range(100))
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks[::2], return_exceptions=True)
        assert bench.batcher.queue().items == 1000
        bench.release()
        await asyncio.gather(first, *tasks[1::2])

    asyncio.run(calls())
    assert (lane.rows, lane.tokens, lane.calls) == (0, 0, {})
    assert bench.script.rows == 1001


def test_a_call_with_a_batch_size_does_not_hide_the_others(bench: Bench) -> None:
    async def calls() -> None:
        bench.hold()
        first = asyncio.create_task(bench.batcher.submit("m", [row(1)]))
        await bench.entered()
        long = asyncio.create_task(bench.batcher.submit("m", [row(2)] * 1500, batch_size=1))
        await asyncio.sleep(0)
        other = asyncio.create_task(bench.batcher.submit("m", [row(3)]))
        await asyncio.sleep(0)
        bench.release()
        await asyncio.gather(first, long, other)

    asyncio.run(calls())
    assert [len(batch.rows) for batch in bench.script.batches[:2]] == [1, 2]


def test_the_row_by_row_run_asks_before_each_row(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = bench.backend.forward
    sizes: list[int] = []
    tickets: list[Ticket] = []
    alone = threading.Event()

    def failing(batch: Batch) -> np.ndarray:
        sizes.append(len(batch.rows))
        if len(batch.rows) > 1:
            raise RuntimeError("the batch")
        for ticket in tickets:
            ticket.gone = True  # its client leaves during the first of its rows
        alone.set()
        return forward(batch)

    async def calls() -> None:
        bench.hold()
        first = asyncio.create_task(bench.batcher.submit("m", [row(1)]))
        await bench.entered()
        leaving = asyncio.create_task(bench.batcher.submit("m", [row(2), row(3), row(4)]))
        await asyncio.sleep(0)
        tickets.extend(bench.batcher._lanes["m"].calls)
        monkeypatch.setattr(bench.backend, "forward", failing)
        bench.release()
        await first
        assert await asyncio.to_thread(alone.wait, 30)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await asyncio.wrap_future(bench.batcher.run(lambda: None))

    asyncio.run(calls())
    assert sizes == [3, 1]
    assert bench.reports[-1].dropped_rows == 2


def test_out_of_memory_gives_cached_memory_back_before_the_halves_are_tried(bench: Bench) -> None:
    bench.script.once.append(OutOfMemory("no room"))
    ticket = asyncio.run(bench.batcher.submit("m", [row(1), row(2)]))
    assert ticket.left == 0
    assert bench.script.trims == 1


def test_a_failed_batch_is_not_kept_alive_while_its_rows_run_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tensor:
        pass

    forward = bench.backend.forward
    refs: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []

    def failing(batch: Batch) -> np.ndarray:
        if refs:
            alive.append(refs[0]() is not None)
            return forward(batch)
        activations = Tensor()
        refs.append(weakref.ref(activations))
        raise OutOfMemory("no room") from RuntimeError("the library's own")

    monkeypatch.setattr(bench.backend, "forward", failing)
    asyncio.run(bench.batcher.submit("m", [row(1), row(2)]))
    assert alive == [False, False]


def test_a_backend_that_gives_too_few_rows_fails_its_calls_and_lives(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.backend, "forward", lambda batch: np.zeros((0, 8), np.float32))
    with pytest.raises(BackendFailed, match="0 rows for 1"):
        asyncio.run(bench.batcher.submit("m", [row(1)]))
    monkeypatch.undo()
    assert asyncio.run(bench.batcher.submit("m", [row(1)])).left == 0


def test_an_embedding_without_a_direction_is_counted(bench: Bench) -> None:
    bench.script.zero_ids = frozenset({13})
    with pytest.raises(BackendFailed):
        asyncio.run(bench.batcher.submit("m", [row(13)]))
    assert sum(report.nonfinite_rows for report in bench.reports) == 1


def test_device_memory_is_read_between_batches(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.backend, "memory", lambda: Memory(95, 4, 100))
    asyncio.run(bench.batcher.submit("m", [row(1)]))
    bench.batcher.run(lambda: None).result(10)
    assert bench.batcher.memory == Memory(95, 4, 100)
    assert bench.script.trims == 1


def test_more_kept_for_reuse_than_is_worth_keeping_is_given_back_while_there_is_work(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vecgate.engine.batcher.MEMORY_EVERY_S", 0.0)
    for cache, trims in ((30, 0), (31, 1)):
        monkeypatch.setattr(bench.backend, "memory", lambda cache=cache: Memory(10, cache, 100, enough_bytes=30))
        asyncio.run(bench.batcher.submit("m", [row(1)]))
        bench.batcher.run(lambda: None).result(10)
        assert bench.script.trims == trims


def test_a_device_with_nothing_to_do_gives_back_what_it_keeps_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vecgate.engine.batcher.IDLE_S", 0.01)
    trimmed, trim = threading.Semaphore(0), bench.backend.trim

    def told() -> None:
        trim()
        trimmed.release()

    monkeypatch.setattr(bench.backend, "trim", told)
    for _ in range(2):
        asyncio.run(bench.batcher.submit("m", [row(1)]))
        assert trimmed.acquire(timeout=10)
        assert not trimmed.acquire(timeout=0.1)
    assert bench.script.trims == 2


def test_what_a_loaded_model_left_is_given_back_though_nobody_asks_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vecgate.engine.batcher.IDLE_S", 0.01)
    trimmed = threading.Event()
    monkeypatch.setattr(bench.backend, "trim", trimmed.set)
    bench.batcher.open("m", bench.backend, Limits(64, 16))
    assert trimmed.wait(10)


def test_models_that_share_a_heap_keep_what_the_largest_needs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vecgate.engine.batcher.MEMORY_EVERY_S", 0.0)
    large = fake.load(CHECKPOINT)
    monkeypatch.setattr(large, "memory", lambda: Memory(10, 50, 100, enough_bytes=60))
    monkeypatch.setattr(bench.backend, "memory", lambda: Memory(10, 50, 100, enough_bytes=30))
    bench.batcher.open("large", large, Limits(64, 16))
    for model, trims in (("m", 1), ("large", 1), ("m", 1)):
        asyncio.run(bench.batcher.submit(model, [row(1)]))
        bench.batcher.run(lambda: None).result(10)
        assert bench.script.trims == trims
