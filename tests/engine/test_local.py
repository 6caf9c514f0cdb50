"""LocalEngine: roles, dimensions, normalising, ranking, states, deadlines, and what it refuses."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import small
from vecgate.backends import fake
from vecgate.core import Call, Cut, Ranking, Task
from vecgate.engine import batcher
from vecgate.engine.local import LocalEngine, unit
from vecgate.engine.model import Model, prompt_of
from vecgate.errors import (
    BackendFailed,
    CheckpointError,
    DeadlineExceeded,
    InputTooLong,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    Overloaded,
    SpaceMismatch,
    WrongTask,
)
from vecgate.traits import Engine

T = TypeVar("T")
CALL = Call("test")
TEXTS = ["paris is the capital of france", "dogs bark", "berlin is the capital of germany", "a cat"]
POISON = small.SPECIALS.index("poison")


def with_engine(models: Sequence[Model], use: Callable[[LocalEngine], Awaitable[T]], **options: Any) -> T:
    async def run() -> T:
        with small.Served(*models, **options) as engine:
            await engine.settled()
            return await use(engine)

    return asyncio.run(run())


@pytest.fixture
def embedder(tmp_path: Path) -> Model:
    return small.model(small.checkpoint(tmp_path))


@pytest.fixture
def reranker(tmp_path: Path) -> Model:
    return small.model(small.checkpoint(tmp_path, "rerank"))


def row(*words: str) -> np.ndarray:
    """The fake's unit row of these words between [CLS] and [SEP]."""
    vocabulary = (*small.SPECIALS, *small.WORDS)
    ids = np.array([vocabulary.index(word) for word in ("[CLS]", *words, "[SEP]")], np.int32)
    found = fake.vector(ids, 8)
    return found / np.linalg.norm(found)


def test_it_is_an_engine(embedder: Model) -> None:
    assert isinstance(LocalEngine([embedder]), Engine)


def test_rows_are_the_models_own_in_order_and_unit(embedder: Model) -> None:
    found = with_engine([embedder], lambda engine: engine.embed(CALL, None, TEXTS))
    np.testing.assert_allclose(found.vectors, [row(*text.split()) for text in TEXTS], atol=1e-6)
    assert found.applied.model == "small"
    assert found.applied.role is None


def test_a_thousand_texts_come_back_in_order(embedder: Model) -> None:
    texts = [" ".join(small.WORDS[: 1 + i % 9]) for i in range(1000)]
    found = with_engine([embedder], lambda engine: engine.embed(CALL, None, texts))
    np.testing.assert_allclose(found.vectors, [row(*text.split()) for text in texts], atol=1e-6)


def test_without_normalising_rows_are_as_the_model_gave_them(embedder: Model) -> None:
    found = with_engine([embedder], lambda engine: engine.embed(CALL, None, ["a cat"], normalize=False))
    assert abs(np.linalg.norm(found.vectors) - 1) > 1e-3


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dimensions=st.integers(1, 8))
def test_dimensions_cut_then_renormalise(tmp_path: Path, dimensions: int) -> None:
    model = small.model(small.checkpoint(tmp_path))
    found = with_engine([model], lambda engine: engine.embed(CALL, None, TEXTS, dimensions=dimensions))
    whole = np.array([row(*text.split()) for text in TEXTS])[:, :dimensions]
    np.testing.assert_allclose(found.vectors, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-5)
    assert found.vectors.flags.c_contiguous


@pytest.mark.parametrize("dimensions", [0, -1, 9])
def test_dimensions_out_of_range_name_both(embedder: Model, dimensions: int) -> None:
    with pytest.raises(InvalidRequest, match=rf"{dimensions}.*1 to 8") as refused:
        with_engine([embedder], lambda engine: engine.embed(CALL, None, TEXTS, dimensions=dimensions))
    assert refused.value.param == "dimensions"


@pytest.mark.parametrize(
    ("model", "role", "words"),
    [
        (None, "query", ("query:", "a", "cat")),
        (None, "document", ("passage:", "a", "cat")),
        ("small:query", None, ("query:", "a", "cat")),
        ("small:query", "document", ("passage:", "a", "cat")),
        (None, None, ("a", "cat")),
    ],
)
def test_the_role_puts_its_prompt_before_the_text(
    embedder: Model, model: str | None, role: str | None, words: tuple[str, ...]
) -> None:
    found = with_engine([embedder], lambda engine: engine.embed(CALL, model, ["a cat"], role=role))
    np.testing.assert_allclose(found.vectors[0], row(*words), atol=1e-6)
    assert found.applied.tokens == (len(words) + 2,)


def test_roles_that_exist_always_and_those_that_do_not(tmp_path: Path) -> None:
    bare = small.checkpoint(tmp_path, prompts={}, default_prompt=None)
    assert prompt_of(bare, "query") == ("query", "")
    assert prompt_of(bare, None) == (None, "")
    assert prompt_of(dataclasses.replace(bare, prompts={"x": "X: "}, default_prompt="x"), None) == ("x", "X: ")
    with pytest.raises(InvalidRequest, match="document, query"):
        prompt_of(bare, "classification")


def test_an_input_too_long_is_cut_and_counted_or_refused(embedder: Model) -> None:
    long = "dogs " * 30

    async def both(engine: LocalEngine) -> tuple[tuple[int, ...], tuple[int, ...]]:
        found = await engine.embed(CALL, None, ["a", long])
        with pytest.raises(InputTooLong, match=r"32.*12"):
            await engine.embed(CALL, None, ["a", long], cut="refuse")
        return found.applied.tokens, found.applied.original

    assert with_engine([embedder], both) == ((3, 12), (3, 32))


def test_a_call_may_lower_the_limit_of_its_inputs(embedder: Model) -> None:
    async def calls(engine: LocalEngine) -> list[Any]:
        lower = [await engine.embed(CALL, None, ["a cat dogs bark"], max_tokens=4, cut=cut) for cut in ("end", "start")]
        higher = await engine.embed(CALL, None, ["dogs " * 30], max_tokens=1000)
        with pytest.raises(InputTooLong, match=r"6 tokens; the limit is 4\."):
            await engine.embed(CALL, None, ["a cat dogs bark"], max_tokens=4, cut="refuse")
        return [*lower, higher]

    end, start, higher = with_engine([embedder], calls)
    np.testing.assert_allclose(end.vectors[0], row("a", "cat"), atol=1e-6)
    np.testing.assert_allclose(start.vectors[0], row("dogs", "bark"), atol=1e-6)
    assert (end.applied.tokens, end.applied.original) == ((4,), (6,))
    assert higher.applied.tokens == (small.MAX_TOKENS,)


def test_own_token_ids_give_the_texts_row(embedder: Model) -> None:
    async def three(engine: LocalEngine) -> list[np.ndarray]:
        (with_specials,) = await engine.tokenize(None, ["a cat"])
        (without,) = await engine.tokenize(None, ["a cat"], specials=False)
        assert await engine.decode(None, [without.ids]) == ("a cat",)
        found = await engine.embed(CALL, None, ["a cat", with_specials.ids, without.ids])
        return list(found.vectors)

    for found in with_engine([embedder], three):
        np.testing.assert_allclose(found, row("a", "cat"), atol=1e-6)


def test_batch_size_bounds_the_rows_of_one_forward(tmp_path: Path) -> None:
    script = fake.Script()
    model = small.model(small.checkpoint(tmp_path), script)

    async def use(engine: LocalEngine) -> None:
        script.batches.clear()  # the warm-up's
        await engine.embed(CALL, None, TEXTS * 4, batch_size=3)

    with_engine([model], use)
    served = [len(batch.rows) for batch in script.batches]
    assert max(served) == 3
    assert sum(served) == 16


def test_max_rows_bounds_every_forward(tmp_path: Path) -> None:
    script = fake.Script()
    model = small.model(small.checkpoint(tmp_path), script)
    with_engine([model], lambda engine: engine.embed(CALL, None, TEXTS * 4), max_rows=5)
    assert max(len(batch.rows) for batch in script.batches) == 5


def ranked(ranking: Ranking) -> list[int]:
    return list(ranking.order)


def test_similarity_is_the_cosine_of_query_and_document_roles(embedder: Model) -> None:
    query = "what is the capital of france ?"
    found = with_engine([embedder], lambda engine: engine.rerank(CALL, None, query, TEXTS))
    asked = row("query:", *query.split())
    cosines = np.array([row("passage:", *text.split()) @ asked for text in TEXTS])
    assert found.method == "similarity"
    assert ranked(found) == np.argsort(-cosines).tolist()
    np.testing.assert_allclose(found.raw, np.sort(cosines)[::-1], atol=1e-6)
    np.testing.assert_allclose(found.scores, (1 + np.array(found.raw)) / 2)
    assert found.applied.query_tokens == 10
    assert found.applied.tokens == tuple(len(text.split()) + 3 for text in TEXTS)


def test_the_reranker_answers_when_one_is_loaded(embedder: Model, reranker: Model) -> None:
    query = "what is the capital of france ?"
    found = with_engine([embedder, reranker], lambda engine: engine.rerank(CALL, None, query, TEXTS, top_n=2))
    assert found.method == "cross-encoder"
    assert ranked(found) == [0, 2]
    np.testing.assert_allclose(found.scores, 1 / (1 + np.exp(-np.array(found.raw))))
    assert found.applied.model == "judge"


def test_the_named_model_decides_the_method(embedder: Model, reranker: Model) -> None:
    async def both(engine: LocalEngine) -> list[str]:
        answers = [await engine.rerank(CALL, name, "cat", TEXTS) for name in ("small", "judge")]
        return [answer.method for answer in answers]

    assert with_engine([embedder, reranker], both) == ["similarity", "cross-encoder"]


def test_a_call_may_lower_the_limit_of_what_is_read_at_once(embedder: Model, reranker: Model) -> None:
    async def use(engine: LocalEngine) -> tuple[Ranking, ...]:
        with pytest.raises(InputTooLong, match="8 tokens; the limit is 6"):
            await engine.rerank(CALL, "judge", "paris is", ["dogs bark a"], max_tokens=6, cut="refuse")
        asked = [("judge", 6), ("judge", 1000), ("small", 4)]
        return tuple([await engine.rerank(CALL, name, "paris is", ["dogs bark a"], max_tokens=n) for name, n in asked])

    pair, whole, alone = with_engine([embedder, reranker], use)
    assert [one.applied.tokens for one in (pair, whole, alone)] == [(6,), (8,), (4,)]
    assert [one.applied.original for one in (pair, whole, alone)] == [(8,), (8,), (6,)]


def test_it_tells_the_text_before_each_input_of_a_role(embedder: Model, reranker: Model) -> None:
    engine = LocalEngine([embedder, reranker])
    assert [engine.prompt(None, role) for role in (None, "query", "document")] == ["", "query: ", "passage: "]
    assert engine.prompt("judge", "query") == "query: "
    with pytest.raises(InvalidRequest, match="'haiku' does not exist for 'small'; these do: document, passage, query"):
        engine.prompt(None, "haiku")


@pytest.mark.parametrize("model", ["small", "judge"])
@pytest.mark.parametrize("cut", ["end", "refuse"])
def test_documents_may_have_a_limit_of_their_own_beside_prompt_and_specials(
    embedder: Model, reranker: Model, model: str, cut: Cut
) -> None:
    documents = ["paris is the capital of france", "a cat", "dogs"]
    kept = ["paris is", "a cat", "dogs"]

    async def both(engine: LocalEngine) -> tuple[Ranking, Ranking]:
        limited = await engine.rerank(CALL, model, "paris is", documents, max_tokens_per_document=2, cut=cut)
        return limited, await engine.rerank(CALL, model, "paris is", kept, cut=cut)

    limited, short = with_engine([embedder, reranker], both)
    assert (limited.order, limited.raw) == (short.order, short.raw)
    assert limited.applied.tokens == short.applied.tokens
    assert [a - b for a, b in zip(limited.applied.original, short.applied.original)] == [4, 0, 0]


def test_a_shortlist_is_ordered_by_the_cross_encoder(embedder: Model, tmp_path: Path) -> None:
    script = fake.Script()
    judge = small.model(small.checkpoint(tmp_path, "rerank"), script)
    documents = [f"{a} {b}" for a in small.WORDS for b in small.WORDS]

    async def use(engine: LocalEngine) -> Ranking:
        script.rows = 0
        return await engine.rerank(CALL, None, "paris france", documents, method="bi+cross-encoder", top_n=2)

    found = with_engine([embedder, judge], use)
    assert found.method == "bi+cross-encoder"
    assert script.rows == 32
    assert {documents[i] for i in found.order} <= {"paris france", "france paris"}
    assert len(found.applied.tokens) == len(documents)
    # every document was read once as "[CLS] passage: a b [SEP]", the query as "[CLS] query: a b [SEP]", 32 as pairs
    assert sum(found.applied.tokens) + found.applied.query_tokens == 5 * len(documents) + 5 + 32 * 7


def test_a_cut_document_of_a_shortlist_is_named_by_its_place_in_the_request(embedder: Model, tmp_path: Path) -> None:
    judge = small.model(small.checkpoint(tmp_path, "rerank"))
    documents = ["dogs bark"] * 39 + ["paris france " * 20]

    async def use(engine: LocalEngine) -> Ranking:
        return await engine.rerank(CALL, None, "paris france", documents, method="bi+cross-encoder", top_n=1)

    applied = with_engine([embedder, judge], use).applied
    cut = [i for i, (before, kept) in enumerate(zip(applied.original, applied.tokens, strict=True)) if before > kept]
    assert cut == [39]


def test_no_documents_and_no_reranker_are_refused(embedder: Model) -> None:
    async def use(engine: LocalEngine) -> None:
        with pytest.raises(InvalidRequest, match="document"):
            await engine.rerank(CALL, None, "q", [])
        with pytest.raises(InvalidRequest, match="reranker"):
            await engine.rerank(CALL, None, "q", ["d"], method="cross-encoder")

    with_engine([embedder], use)


def test_a_reranker_alone_says_that_it_embeds_nothing(reranker: Model) -> None:
    with pytest.raises(WrongTask, match="judge"):
        with_engine([reranker], lambda engine: engine.embed(CALL, None, ["a"]))


def test_unknown_names_and_spaces_are_refused(embedder: Model) -> None:
    async def use(engine: LocalEngine) -> None:
        with pytest.raises(ModelNotFound, match="small"):
            await engine.embed(CALL, "nobody", ["a"])
        with pytest.raises(SpaceMismatch, match="other"):
            await engine.embed(msgspec.structs.replace(CALL, space="other"), None, ["a"])

    with_engine([embedder], use)


def test_equal_documents_are_computed_once_and_tie_in_the_order_they_came(tmp_path: Path) -> None:
    texts = ["a cat", "dogs bark", "a cat", "paris " * 30, "a cat", "paris " * 40]
    for task in ("embed", "rerank"):
        script = fake.Script()
        model = small.model(small.checkpoint(tmp_path / task, task), script)
        found = with_engine([model], lambda engine: engine.rerank(CALL, None, "a cat ?", texts))
        assert sum(len(batch.rows) for batch in script.batches[-1:]) == (4 if task == "embed" else 3)
        by_index = dict(zip(found.order, found.raw, strict=True))
        assert by_index[0] == by_index[2] == by_index[4]
        assert by_index[3] == by_index[5]  # alike once they are cut
        assert [index for index in found.order if index in (0, 2, 4)] == [0, 2, 4]
        assert len(found.applied.tokens) == len(texts)


@pytest.mark.parametrize(
    ("query", "documents", "param", "said"),
    [
        ("a " * 20, ["a"], "query", "The query has"),
        ("a", ["a", "a " * 20], "documents", "Document 1 has"),
    ],
)
def test_a_rerank_by_similarity_says_which_text_is_too_long(
    embedder: Model, query: str, documents: list[str], param: str, said: str
) -> None:
    with pytest.raises(InputTooLong, match=said) as refused:
        with_engine([embedder], lambda engine: engine.rerank(CALL, None, query, documents, cut="refuse"))
    assert refused.value.param == param


@pytest.mark.parametrize("role", ["Query", "QUERY", "query"])
def test_roles_are_found_in_any_case(embedder: Model, role: str) -> None:
    found = with_engine([embedder], lambda engine: engine.embed(CALL, None, ["a cat"], role=role))
    np.testing.assert_allclose(found.vectors[0], row("query:", "a", "cat"), atol=1e-6)
    assert found.applied.role == "query"


@pytest.mark.parametrize(
    "script", [fake.Script(nan_ids=frozenset({POISON})), fake.Script(zero_ids=frozenset({POISON}))]
)
def test_a_row_without_a_direction_is_an_error_and_its_neighbours_are_not(tmp_path: Path, script: fake.Script) -> None:
    model = small.model(small.checkpoint(tmp_path), script)

    async def use(engine: LocalEngine) -> list[Any]:
        calls = (engine.embed(CALL, None, [text]) for text in ("a cat", "poison", "dogs"))
        return list(await asyncio.gather(*calls, return_exceptions=True))

    good, poisoned, other = with_engine([model], use)
    assert isinstance(poisoned, BackendFailed)
    np.testing.assert_allclose(good.vectors[0], row("a", "cat"), atol=1e-6)
    np.testing.assert_allclose(other.vectors[0], row("dogs"), atol=1e-6)


def test_the_deadline_ends_the_wait_and_the_work(tmp_path: Path) -> None:
    script = fake.Script()
    model = small.model(small.checkpoint(tmp_path), script)

    async def use(engine: LocalEngine) -> int:
        script.hold = threading.Event()
        script.entered.clear()
        first = asyncio.create_task(engine.embed(CALL, None, ["a"]))
        await asyncio.to_thread(script.entered.wait, 10)
        with pytest.raises(DeadlineExceeded, match=r"0\.01 s"):
            await engine.embed(Call("late", timeout_s=0.01), None, ["dogs"])
        waiting = engine.status().queue.items
        script.hold.set()
        await first
        return waiting

    assert with_engine([model], use) == 0


def test_before_it_is_loaded_it_says_so_and_status_never_waits(tmp_path: Path) -> None:
    gate = threading.Event()
    read = small.checkpoint(tmp_path)

    def slow() -> fake.Fake:
        assert gate.wait(10)
        return fake.load(read)

    async def run() -> tuple[str, str]:
        with small.Served(Model(read, slow, "fake")) as engine:
            early = engine.status()
            with pytest.raises(NotReady, match="loading") as refused:
                await engine.embed(CALL, None, ["a"])
            assert refused.value.retry_after_s == 5
            gate.set()
            await engine.settled()
            return early.state, engine.status().state

    assert asyncio.run(run()) == ("loading", "ready")


def test_a_model_that_can_not_be_loaded_stays_failed_with_its_reason_but_no_path(tmp_path: Path) -> None:
    read = small.checkpoint(tmp_path / "my models")

    def failing() -> fake.Fake:
        raise CheckpointError(
            f"{read.folder}/x.safetensors lacks the tensor a/b; fetch ~/x/y.json and /z/w.json again."
        )

    async def use(engine: LocalEngine) -> tuple[str, str | None]:
        with pytest.raises(NotReady) as refused:
            await engine.embed(CALL, None, ["a"])
        assert refused.value.retry_after_s is None
        return engine.status().state, engine.status().error

    state, error = with_engine([Model(read, failing, "fake")], use)
    assert state == "failed"
    assert error == "x.safetensors lacks the tensor a/b; fetch y.json and w.json again."


def test_a_warm_up_that_is_not_finite_is_not_ready(tmp_path: Path) -> None:
    model = small.model(small.checkpoint(tmp_path), fake.Script(nan_ids=frozenset({1})))

    async def state(engine: LocalEngine) -> str:
        return engine.status().state

    assert with_engine([model], state) == "failed"


def test_status_tells_of_the_model_and_the_drain(embedder: Model) -> None:
    async def use(engine: LocalEngine) -> Any:
        await engine.embed(CALL, None, ["a"])
        before = engine.status()
        engine.drain()
        return before, engine.status().state

    before, after = with_engine([embedder], use)
    card = before.models[0]
    assert (card.name, card.state, card.backend, card.dimensions, card.why) == (
        "small",
        "ready",
        "fake",
        8,
        "asked for",
    )
    assert (before.state, before.alive, before.error) == ("ready", True, None)
    assert after == "draining"


class Death(BaseException):
    pass


def test_a_dead_device_thread_is_told_and_refuses_work(tmp_path: Path) -> None:
    script = fake.Script()
    model = small.model(small.checkpoint(tmp_path), script)
    told = threading.Event()

    async def use(engine: LocalEngine) -> tuple[str, bool]:
        engine.on_death = told.set
        script.once.append(Death())  # type: ignore[arg-type]
        with pytest.raises(NotReady):
            await engine.embed(CALL, None, ["a"])
        assert await asyncio.to_thread(told.wait, 10)
        with pytest.raises(NotReady):
            await engine.embed(CALL, None, ["a"])
        return engine.status().state, engine.status().alive

    assert with_engine([model], use) == ("failed", False)


def watched(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The thread of every step of the model's tokenising."""
    threads: list[int] = []
    encode_steps = model.tokenizer.encode_steps

    def seen(*arguments: Any) -> Iterator[Any]:
        for step in encode_steps(*arguments):
            threads.append(threading.get_ident())
            yield step

    monkeypatch.setattr(model.tokenizer, "encode_steps", seen)
    return threads


def test_long_texts_are_tokenised_off_the_loop(embedder: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = watched(embedder, monkeypatch)

    async def use(engine: LocalEngine) -> int:
        threads.clear()  # the warm-up's
        await engine.embed(CALL, None, ["a"])
        await engine.embed(CALL, None, ["a " * 3000])
        return threading.get_ident()

    loop = with_engine([embedder], use)
    assert threads[0] == loop
    assert loop not in threads[1:]
    assert len(threads) > 1


def test_a_call_that_leaves_stops_being_tokenised(embedder: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = watched(embedder, monkeypatch)
    texts = ["a " * 100_000] * 100

    async def use(engine: LocalEngine) -> None:
        threads.clear()
        leaving = asyncio.create_task(engine.embed(CALL, None, texts))
        while not threads:  # noqa: ASYNC110 - the steps have no event
            await asyncio.sleep(0.001)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await engine.embed(CALL, None, ["a " * 3000])  # after at most one more step

    with_engine([embedder], use)
    assert len(threads) < 30


def test_the_end_frees_every_model(tmp_path: Path) -> None:
    scripts = [fake.Script(), fake.Script()]
    tasks: list[Task] = ["embed", "rerank"]
    models = [
        small.model(small.checkpoint(tmp_path, task), script) for task, script in zip(tasks, scripts, strict=True)
    ]
    with_engine(models, lambda engine: engine.embed(CALL, None, ["a"]))
    assert [script.closed for script in scripts] == [True, True]


def test_unit_refuses_what_has_no_length() -> None:
    np.testing.assert_allclose(unit(np.array([[3, 4]], np.float32)), [[0.6, 0.8]])
    with pytest.raises(BackendFailed):
        unit(np.zeros((1, 3), np.float32))


def test_a_backlog_of_one_model_refuses_its_calls_and_no_others(embedder: Model, reranker: Model) -> None:
    shed: list[None] = []

    async def use(engine: LocalEngine) -> None:
        lane = engine._batcher._lanes["small"]
        lane.small_tokens, lane.tokens_per_s, lane.sure = 1000, 1.0, True
        assert engine.wait_s(5) == 0.0
        with pytest.raises(Overloaded, match="1333 s of work wait for 'small'; a request may take 300 s") as refused:
            await engine.embed(CALL, None, ["a cat"])
        assert refused.value.retry_after_s == 60
        assert len((await engine.rerank(CALL, None, "a cat", ["dogs"])).order) == 1
        lane.small_tokens = 0
        await engine.embed(CALL, None, ["a cat"])

    with_engine([embedder, reranker], use, on_shed=lambda: shed.append(None))
    assert len(shed) == 1


def test_a_device_that_is_stuck_ends_the_server_once_a_request_has_waited_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = fake.Script()
    deaths: list[None] = []

    async def use(engine: LocalEngine) -> None:
        engine.on_death = lambda: deaths.append(None)
        script.hold = threading.Event()
        for stuck_after_s, ends in ((3600.0, 0), (0.0, 1), (0.0, 1)):
            monkeypatch.setattr(batcher, "STUCK_AFTER_S", stuck_after_s)
            monkeypatch.setattr(batcher, "HUNG_TIMES", 0.0)
            with pytest.raises((DeadlineExceeded, NotReady)):
                await engine.embed(Call("test", 0.01), None, ["a cat"])
            assert len(deaths) == ends
        assert (engine.status().state, engine.status().alive) == ("failed", False)
        script.hold.set()

    with_engine([small.model(small.checkpoint(tmp_path), script)], use)
