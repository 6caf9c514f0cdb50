"""TEI's routes in-process over the stub engine: every field, every refusal, and the paths they share with others."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from tests.protocols import stub
from vecgate import __version__, errors
from vecgate.core import Status
from vecgate.protocols import Site, tei_bodies
from vecgate.protocols import tei as protocol

TEXTS = ["the dog sat", "paris is the capital of france", "banana", "berlin is the capital of germany"]
QUERY = "capital of france"
LONG = " ".join(["dog"] * 20 + ["cat"] * 20)
"""42 tokens with specials; the stub takes 32."""
TIMES = ("x-compute-time", "x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time")
EMBEDS = ["/embed", "/"]
RERANKS = ["/rerank", "/v1/rerank", "/v2/rerank", "/"]
SIMILARITIES = ["/similarity", "/"]


def send(method: str, path: str, engine: stub.StubEngine | None = None, /, *, site: Any = None, **given: Any) -> Any:
    async def go() -> httpx.Response:
        async with stub.client_of(stub.app_of(engine or stub.StubEngine(), Site(**(site or {})))) as client:
            return await client.request(method, path, **given)

    return asyncio.run(go())


def post(path: str, body: Any, engine: stub.StubEngine | None = None, **site: Any) -> httpx.Response:
    answer: httpx.Response = send("POST", path, engine, site=site, json=body)
    return answer


def good(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def refused(answer: httpx.Response, status: int = 422, kind: str = "Validation") -> str:
    """The message of a refusal, once its shape is checked."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert list(body) == ["error", "error_type"]
    assert body["error_type"] == kind
    return str(body["error"])


def rows(inputs: Any, engine: stub.StubEngine | None = None, **fields: Any) -> np.ndarray:
    return np.array(good(post("/embed", {"inputs": inputs, **fields}, engine)), np.float32)


def ids_of(text: str) -> list[int]:
    (pieces,) = asyncio.run(stub.StubEngine().tokenize(None, [text]))
    return list(pieces.ids)


# embed


@pytest.mark.parametrize("path", EMBEDS)
def test_the_answer_is_a_bare_list_of_unit_rows_in_order(path: str) -> None:
    answer = post(path, {"inputs": TEXTS})
    found = np.array(msgspec.json.decode(answer.content, type=list[list[float]]))
    assert found.shape == (4, stub.DIMENSIONS)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(found.astype(np.float32), np.concatenate([rows(text) for text in TEXTS]))
    assert answer.headers["x-vecgate-model"] == "org/stub-embed"


def test_one_text_is_a_list_of_one_row() -> None:
    np.testing.assert_array_equal(rows("a cat"), rows(["a cat"]))


@pytest.mark.parametrize("specials", [True, False])
def test_token_ids_are_the_models_with_its_specials_or_without(specials: bool) -> None:
    ids = ids_of("the dog sat") if specials else ids_of("the dog sat")[1:-1]
    for inputs in (ids, [ids]):
        np.testing.assert_array_equal(rows(inputs), rows("the dog sat"))


def test_texts_and_ids_may_stand_in_one_list() -> None:
    np.testing.assert_array_equal(rows(["a cat", ids_of("banana"), "the dog"]), rows(["a cat", "banana", "the dog"]))


@pytest.mark.parametrize("inputs", [[1000, "a"], ["a", 1000], [1000, [1000]]])
def test_ids_beside_other_things_are_refused(inputs: list[Any]) -> None:
    assert "mixes" in refused(post("/embed", {"inputs": inputs}))


def test_ids_can_be_refused_by_the_server() -> None:
    assert "VECGATE_TOKEN_IDS" in refused(post("/embed", {"inputs": [[1000]]}, token_ids="refuse"))
    good(post("/embed", {"inputs": ["a"]}, token_ids="refuse"))
    good(post("/embed", {"inputs": [1000]}, token_ids="cl100k"))  # ids are the model's by the protocol


def test_an_id_outside_the_vocabulary_is_refused() -> None:
    assert "5" in refused(post("/embed", {"inputs": [5]}))


@pytest.mark.parametrize(("normalize", "unit"), [(None, True), (True, True), (False, False)])
def test_normalize(normalize: bool | None, unit: bool) -> None:
    norms = np.linalg.norm(rows(TEXTS, normalize=normalize), axis=1)
    assert bool(np.allclose(norms, 1, atol=1e-6)) is unit


def test_dimensions_are_cut_then_renormalised() -> None:
    found, whole = rows("a cat", dimensions=3), rows("a cat")[:, :3]
    np.testing.assert_allclose(found, whole / np.linalg.norm(whole), atol=1e-6)
    assert "9" in refused(post("/embed", {"inputs": "a", "dimensions": 9}))
    assert "0" in refused(post("/embed", {"inputs": "a", "dimensions": 0}))


@pytest.mark.parametrize("truncate", [None, True, False])
@pytest.mark.parametrize("direction", [None, "Left", "Right", "left", "right"])
@pytest.mark.parametrize("server", ["end", "refuse"])
def test_truncation_is_what_the_request_says_then_what_the_server_does(
    truncate: bool | None, direction: str | None, server: str
) -> None:
    engine = stub.StubEngine()
    body = {"inputs": "a", "truncate": truncate, "truncation_direction": direction}
    post("/embed", body, engine, cut=server)
    side = "start" if direction in ("Left", "left") else "end"
    cuts = truncate if truncate is not None else server == "end"
    assert engine.calls[0]["cut"] == (side if cuts else "refuse")


def test_truncation_to_the_token() -> None:
    answer = post("/embed", {"inputs": ["a", LONG], "truncate": True, "truncation_direction": "Left"})
    assert answer.headers["x-vecgate-truncated"] == "1:42>32"
    np.testing.assert_array_equal(good(answer)[1], good(post("/embed", {"inputs": " ".join(LONG.split()[10:])}))[0])
    message = refused(post("/embed", {"inputs": LONG, "truncate": False}))
    assert "42" in message
    assert "32" in message


def test_an_unknown_direction_is_refused() -> None:
    message = refused(post("/embed", {"inputs": "a", "truncation_direction": "up"}))
    assert "'up'" in message
    assert "Left" in message


def test_prompt_name_is_the_role() -> None:
    engine = stub.StubEngine()
    for name in ("query", None):
        post("/embed", {"inputs": "a", "prompt_name": name}, engine)
    assert [call["role"] for call in engine.calls] == ["query", None]
    assert post("/embed", {"inputs": "a", "prompt_name": "query"}).headers["x-vecgate-role"] == "query"


def test_nulls_and_unknown_fields_are_accepted() -> None:
    fields = ("truncate", "truncation_direction", "normalize", "prompt_name", "dimensions")
    nulls: dict[str, Any] = dict.fromkeys(fields)
    ignored: dict[str, Any] = {
        "model": "whatever",
        "parameters": 7,
        "encoding_format": "float",
        "options": {"wait_for_model": True},
    }
    np.testing.assert_array_equal(rows("a cat", **nulls, **ignored), rows("a cat"))


@pytest.mark.parametrize(
    "name", ["truncate", "normalize", "dimensions", "prompt_name", "truncation_direction", "inputs"]
)
def test_a_field_of_the_wrong_kind_is_named(name: str) -> None:
    assert name in refused(post("/embed", {"inputs": "a", name: {"a": 1}}))


def test_as_many_inputs_as_the_limit_and_no_more() -> None:
    good(post("/embed", {"inputs": ["a"] * 5}, max_inputs=5))
    for inputs in (["a"] * 6, [[1000]] * 6):
        message = refused(post("/embed", {"inputs": inputs}, max_inputs=5))
        assert "6" in message
        assert "5" in message
    good(post("/embed", {"inputs": [1000] * 6}, max_inputs=5))  # one input of six ids


def test_blank_texts_have_rows() -> None:
    assert np.isfinite(rows(["", " ", "\n"])).all()


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/embed", {"inputs": []}, "inputs"),
        ("/", {"inputs": []}, "inputs"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, "inputs.sentences"),
        ("/rerank", {"query": "a", "texts": []}, "texts"),
        ("/tokenize", {"inputs": []}, "inputs"),
        ("/decode", {"ids": []}, "ids"),
    ],
)
def test_nothing_to_work_on_is_a_400(path: str, body: Any, name: str) -> None:
    assert refused(post(path, body), 400, "Empty").startswith(f"{name} is empty")


# the account of the work


@pytest.mark.parametrize(
    ("path", "body", "characters", "tokens"),
    [
        ("/embed", {"inputs": ["a cat", [1000, 1001]]}, 5 + 2, 4 + 4),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["cat", "dog"]}}, 7, 9),
        ("/rerank", {"query": "cat", "texts": ["a", "dog"]}, 3 * 2 + 4, 9),
    ],
)
def test_the_headers_account_for_the_work(path: str, body: Any, characters: int, tokens: int) -> None:
    headers = post(path, body).headers
    assert headers["x-compute-type"] == "none"  # the stub's device
    assert headers["x-compute-characters"] == str(characters)
    assert headers["x-compute-tokens"] == str(tokens)
    assert all(headers[name].isdigit() for name in TIMES)
    assert [headers[name] for name in TIMES[2:]] == ["2", "1", "3"]
    assert headers["x-compute-time"] == headers["x-total-time"]


# similarity


@pytest.mark.parametrize("path", SIMILARITIES)
def test_similarities_are_cosines_in_the_order_of_the_sentences(path: str) -> None:
    found = good(post(path, {"inputs": {"source_sentence": QUERY, "sentences": [*TEXTS, QUERY]}, "parameters": {}}))
    unit = rows([QUERY, *TEXTS, QUERY]).astype(np.float64)
    np.testing.assert_allclose(found, unit[1:] @ unit[0], atol=1e-6)
    assert all(-1 <= one <= 1 for one in found)
    assert found[-1] == pytest.approx(1)


@pytest.mark.parametrize(
    "parameters", [None, {}, {"truncate": None, "prompt_name": None, "truncation_direction": None}]
)
def test_parameters_may_be_absent_in_every_way(parameters: Any) -> None:
    body: dict[str, Any] = {"inputs": {"source_sentence": "a", "sentences": ["a"], "more": 1}}
    assert good(post("/similarity", body | {"parameters": parameters})) == good(post("/similarity", body))


def test_parameters_say_how_to_embed() -> None:
    engine = stub.StubEngine()
    parameters = {"truncate": True, "truncation_direction": "left", "prompt_name": "query"}
    post("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": parameters}, engine)
    assert (engine.calls[0]["cut"], engine.calls[0]["role"]) == ("start", "query")
    assert "up" in refused(
        post(
            "/similarity",
            {"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": {"truncation_direction": "up"}},
        )
    )


def test_as_many_sentences_as_the_limit_and_no_more() -> None:
    body = {"inputs": {"source_sentence": "a", "sentences": ["a"] * 5}}
    assert len(good(post("/similarity", body, max_inputs=5))) == 5
    assert "the limit is 4" in refused(post("/similarity", body, max_inputs=4))


# rerank


@pytest.mark.parametrize("path", RERANKS)
def test_ranks_are_a_bare_list_best_first_with_scores_in_0_to_1(path: str) -> None:
    answer = post(path, {"query": QUERY, "texts": TEXTS})
    found = msgspec.json.decode(answer.content, type=list[tei_bodies.Rank], strict=True)
    assert [one.index for one in found] == [1, 3, 2, 0]
    assert [set(one) for one in answer.json()] == [{"index", "score"}] * 4
    assert all(0 <= one.score <= 1 for one in found)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_raw_scores_are_the_engines() -> None:
    scores = [one["score"] for one in good(post("/rerank", {"query": QUERY, "texts": TEXTS}))]
    raw = [one["score"] for one in good(post("/rerank", {"query": QUERY, "texts": TEXTS, "raw_scores": True}))]
    assert raw == pytest.approx([2 * one - 1 for one in scores])


def test_texts_come_back_when_asked_for() -> None:
    found = good(post("/rerank", {"query": QUERY, "texts": TEXTS, "return_text": True}))
    assert [one["text"] for one in found] == [TEXTS[one["index"]] for one in found]
    assert list(found[0]) == ["index", "text", "score"]


def test_what_litellm_sends_is_taken() -> None:
    extra = {"top_n": 2, "truncate": True, "truncation_direction": "Right", "return_text": False, "raw_scores": False}
    assert len(good(post("/v1/rerank", {"query": QUERY, "texts": TEXTS, **extra}))) == 2
    nulls = dict.fromkeys(("truncate", "truncation_direction", "return_text", "raw_scores"))
    assert good(post("/rerank", {"query": QUERY, "texts": TEXTS, **nulls})) == good(
        post("/rerank", {"query": QUERY, "texts": TEXTS})
    )


def test_a_rerank_is_cut_as_asked() -> None:
    engine = stub.StubEngine()
    for fields in ({}, {"truncate": False}, {"truncation_direction": "Left"}):
        post("/rerank", {"query": "a", "texts": ["b"], **fields}, engine)
    assert [one["cut"] for one in engine.rankings] == ["end", "refuse", "start"]


def test_a_rerank_gives_as_many_as_asked() -> None:
    every = good(post("/rerank", {"query": QUERY, "texts": TEXTS}))
    for top_n, kept in ((2, 2), (9, 4), (None, 4)):
        assert good(post("/rerank", {"query": QUERY, "texts": TEXTS, "top_n": top_n})) == every[:kept]
    assert "top_n is 0" in refused(post("/rerank", {"query": QUERY, "texts": TEXTS, "top_n": 0}))


def test_as_many_texts_as_the_limit_and_no_more() -> None:
    good(post("/rerank", {"query": "a", "texts": ["a"] * 5}, max_passages_per_rerank=5))
    message = refused(post("/rerank", {"query": "a", "texts": ["a"] * 6}, max_passages_per_rerank=5))
    assert "6" in message
    assert "the limit is 5" in message


# tokens


def test_tokens_with_their_places() -> None:
    found = good(post("/tokenize", {"inputs": ["the dog"]}))
    assert found == [
        [
            {"id": stub.CLS, "text": "[CLS]", "special": True, "start": None, "stop": None},
            {"id": 1000, "text": "the", "special": False, "start": 0, "stop": 3},
            {"id": 1000 + stub.WORDS.index("dog"), "text": "dog", "special": False, "start": 4, "stop": 7},
            {"id": stub.SEP, "text": "[SEP]", "special": True, "start": None, "stop": None},
        ]
    ]


def test_tokens_read_as_they_stand_in_the_text() -> None:
    (found,) = good(post("/tokenize", {"inputs": "The DOG", "add_special_tokens": False}))
    assert [one["text"] for one in found] == ["The", "DOG"]


@pytest.mark.parametrize(("asked", "count"), [(None, 4), (True, 4), (False, 2)])
def test_special_tokens_are_listed_unless_told_not_to(asked: bool | None, count: int) -> None:
    assert [len(one) for one in good(post("/tokenize", {"inputs": "a cat", "add_special_tokens": asked}))] == [count]


def test_the_prompt_is_part_of_the_text() -> None:
    engine = stub.StubEngine(prompts={"query": "search "})
    body = {"inputs": ["a cat", "a dog"], "prompt_name": "query", "add_special_tokens": False}
    found = good(post("/tokenize", body, engine))
    assert [[one["text"] for one in tokens] for tokens in found] == [["search", "a", "cat"], ["search", "a", "dog"]]
    assert found[0][1]["start"] == 7
    message = refused(post("/tokenize", {"inputs": "a", "prompt_name": "haiku"}))
    assert "haiku" in message
    assert "query" in message


def test_a_long_list_of_tokens_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"inputs": ["a cat " * 10, "", "dog"], "add_special_tokens": False}
    whole = good(post("/tokenize", body))
    monkeypatch.setattr(protocol, "SLICE_TOKENS", 3)
    assert good(post("/tokenize", body)) == whole
    assert [len(one) for one in whole] == [20, 0, 1]


def test_so_many_characters_are_tokenised_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MOST_LISTED", 11)
    engine = stub.StubEngine(prompts={"query": "a "})
    good(post("/tokenize", {"inputs": ["a dog", "a cat"]}, engine))
    message = refused(post("/tokenize", {"inputs": ["a dog", "a cat"], "prompt_name": "query"}, engine))
    assert "14 characters" in message
    assert "11" in message


@pytest.mark.parametrize("ids", [ids_of("the dog"), [ids_of("the dog")]])
def test_ids_become_texts(ids: Any) -> None:
    assert good(post("/decode", {"ids": ids})) == ["the dog"]
    assert good(post("/decode", {"ids": ids, "skip_special_tokens": None})) == ["the dog"]
    assert good(post("/decode", {"ids": ids, "skip_special_tokens": False})) == ["[CLS] the dog [SEP]"]


def test_what_tokenize_gives_decode_takes() -> None:
    tokens = good(post("/tokenize", {"inputs": TEXTS}))
    assert good(post("/decode", {"ids": [[one["id"] for one in text] for text in tokens]})) == TEXTS


def test_odd_lists_of_ids_are_refused() -> None:
    assert "ids[1]" in refused(post("/decode", {"ids": [[1000], []]}))
    assert "mixes" in refused(post("/decode", {"ids": [1000, [1000]]}))
    assert "ids" in refused(post("/decode", {"ids": [-1]}))
    assert "the limit is 1" in refused(post("/decode", {"ids": [[1000], [1000]]}, max_inputs=1))
    good(post("/decode", {"ids": [1000, 1000]}, max_inputs=1))


# what is served


class Kind(stub.StubEngine):
    """A stub whose status tells of other models."""

    def __init__(self, *changes: dict[str, Any]) -> None:
        super().__init__()
        self.changes = changes

    def status(self) -> Status:
        status = super().status()
        return replace(status, models=tuple(replace(status.models[0], **change) for change in self.changes))


def told(*models: dict[str, Any], **site: Any) -> Any:
    return good(send("GET", "/info", Kind(*models) if models else None, site=site))


def test_info_tells_the_model_and_the_servers_own_limits() -> None:
    limits = {"max_inputs": 7, "max_in_flight": 8, "max_batch_size": 9, "tokenize_threads": 3}
    assert told(**limits) == {
        "model_id": "org/stub-embed",
        "model_sha": None,
        "model_dtype": "float32",
        "served_model_name": "org/stub-embed",
        "model_type": {"embedding": {"pooling": "mean"}},
        "max_concurrent_requests": 8,
        "max_input_length": 32,
        "max_batch_tokens": 1024,
        "max_batch_requests": 9,
        "max_client_batch_size": 7,
        "auto_truncate": True,
        "tokenization_workers": 3,
        "version": __version__,
        "space": "stub-space",
        "sha": None,
        "docker_label": None,
    }


RERANKER = {"task": "rerank", "name": "judge", "pooling": (), "max_tokens": 512}


def test_the_main_model_is_the_one_that_embeds_wherever_it_stands() -> None:
    found = told(RERANKER, {"name": "main"})
    assert (found["model_id"], list(found["model_type"])) == ("main", ["embedding"])


def test_a_reranker_alone_is_the_main_model() -> None:
    found = told(RERANKER, max_inputs=7, max_passages_per_rerank=5)
    assert found["model_type"] == {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
    assert (found["model_id"], found["max_input_length"], found["max_client_batch_size"]) == ("judge", 512, 5)


@pytest.mark.parametrize(
    ("pooling", "word"), [(("cls",), "cls"), (("last",), "last_token"), (("mean", "max"), "mean+max")]
)
def test_poolings_have_teis_names(pooling: tuple[str, ...], word: str) -> None:
    assert told({"pooling": pooling})["model_type"] == {"embedding": {"pooling": word}}


def test_auto_truncate_is_the_servers_setting() -> None:
    assert told(cut="refuse")["auto_truncate"] is False


@pytest.mark.parametrize(("state", "header"), [("loading", "retry-after"), ("failed", "x-should-retry")])
def test_before_a_model_is_loaded_its_limits_are_not_known(state: str, header: str) -> None:
    answer = send("GET", "/info", Kind({"dtype": None, "batch_tokens": None, "state": state}))
    assert state in refused(answer, 503, "Unhealthy")
    assert header in answer.headers


@pytest.mark.parametrize("path", ["/predict", "/embed_all", "/embed_sparse"])
def test_what_no_model_here_offers_is_a_424(path: str) -> None:
    message = refused(post(path, {"inputs": ["a"], "truncate": True}), 424, "Backend")
    assert "org/stub-embed" in message
    assert refused(post(path, {}), 424, "Backend") == message


# errors


RAISED: list[tuple[errors.VecgateError, int, str, dict[str, str]]] = [
    (errors.EmptyInput("no"), 400, "Empty", {}),
    (errors.InvalidRequest("no"), 422, "Validation", {}),
    (errors.InputTooLong("no"), 422, "Validation", {}),
    (errors.SpaceMismatch("no"), 400, "Validation", {}),
    (errors.WrongTask("no"), 424, "Backend", {}),
    (errors.Forbidden("no"), 403, "Validation", {}),
    (errors.NotFound("no"), 404, "Validation", {}),
    (errors.ModelNotFound("no"), 404, "Validation", {}),
    (errors.MethodNotAllowed("no", ("GET",)), 405, "Validation", {"allow": "GET"}),
    (errors.BodyTimeout("no"), 408, "Validation", {}),
    (errors.TooLarge("no"), 413, "Validation", {}),
    (errors.UnsupportedEncoding("no"), 415, "Validation", {}),
    (errors.Overloaded("no", 7), 429, "Overloaded", {"retry-after": "7"}),
    (errors.RateLimited("no", 3), 429, "Overloaded", {"retry-after": "3"}),
    (errors.BackendFailed("no"), 424, "Backend", {}),
    (errors.OutOfMemory("no"), 424, "Backend", {}),
    (errors.NotReady("no", 5), 503, "Unhealthy", {"retry-after": "5"}),
    (errors.NotReady("no", None), 503, "Unhealthy", {"x-should-retry": "false"}),
    (errors.DeadlineExceeded("no"), 504, "Backend", {"x-should-retry": "false"}),
    (errors.VecgateError("no"), 424, "Backend", {}),
]


@pytest.mark.parametrize(("raised", "status", "kind", "headers"), RAISED, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("path", ["/embed", "/rerank", "/similarity"])
def test_every_error_has_its_status_and_shape(
    path: str, raised: errors.VecgateError, status: int, kind: str, headers: dict[str, str]
) -> None:
    inputs: Any = {"source_sentence": "a", "sentences": ["a"]} if path == "/similarity" else ["a"]
    body = {"query": "q", "texts": ["a"]} if path == "/rerank" else {"inputs": inputs}
    answer = post(path, body, stub.StubEngine(fail=raised))
    assert refused(answer, status, kind) == "no"
    names = ("retry-after", "x-should-retry", "allow")
    assert {name: answer.headers[name] for name in names if name in answer.headers} == headers


def test_a_401_has_no_body() -> None:
    assert protocol.render(errors.Unauthenticated("no")) == (401, {"www-authenticate": "Bearer"}, b"")


def test_the_table_of_errors_leaves_none_out_and_holds_no_409() -> None:
    tree = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.VecgateError)}
    assert {type(raised) for raised, *_ in RAISED} | {errors.Unauthenticated} == tree
    assert 409 not in {status for status, _ in protocol.ERRORS.values()}


# shared paths


def test_on_embed_the_bodys_key_decides_answer_and_dialect() -> None:
    assert isinstance(good(post("/embed", {"inputs": ["a"]})), list)
    assert good(post("/embed", {"texts": ["a"]}))["dim"] == stub.DIMENSIONS
    refused(post("/embed", {"inputs": 7}))
    assert post("/embed", {"texts": 7}).status_code == 400


@pytest.mark.parametrize("body", [{}, {"other": 1}])
def test_on_embed_a_body_without_either_key_is_a_422_that_names_both(body: dict[str, Any]) -> None:
    message = refused(post("/embed", body))
    assert "inputs" in message
    assert "texts" in message


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_on_rerank_texts_are_teis_and_documents_coheres(path: str) -> None:
    assert isinstance(good(post(path, {"query": "a", "texts": ["a"]})), list)
    assert "results" in good(post(path, {"query": "a", "documents": ["a"]}))
    refused(post(path, {"query": 1, "texts": ["a"]}))
    neither = post(path, {"query": "a"})
    assert neither.status_code == 400
    assert "texts" in neither.json()["message"]


def test_a_null_key_is_no_key_where_another_one_is_there() -> None:
    assert isinstance(good(post("/rerank", {"query": "a", "documents": None, "texts": ["a"]})), list)
    assert "results" in good(post("/rerank", {"query": "a", "documents": ["a"], "texts": None}))
    assert post("/rerank", {"query": "a", "documents": None, "passages": None}).json().keys() == {"message", "detail"}


def test_on_the_base_url_the_inputs_decide() -> None:
    assert len(good(post("/", {"inputs": "a"}))[0]) == stub.DIMENSIONS
    assert isinstance(good(post("/", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}))[0], float)
    assert good(post("/", {"query": "a", "texts": ["b"]}))[0]["index"] == 0
    assert "inputs" in refused(post("/", {"inputs": {"sentences": ["b"]}}))
    message = refused(post("/", {}))
    assert all(name in message for name in ("inputs", "texts"))
    refused(post("/", {"inputs": None}))


def test_the_base_url_is_the_page_for_a_reader() -> None:
    assert send("GET", "/").headers["content-type"].startswith("text/html")
    assert (send("GET", "/ping").status_code, send("GET", "/ping").content) == (200, b"")
