"""TEI's and vLLM's routes over the whole app with both kinds of model: scores, keys, truncation, a reranker alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import small
from tests.whole import Whole

TEXTS = ["dogs bark", "paris is the capital of france", "berlin is the capital of germany"]
LONG = "paris is the capital of france berlin is the capital of germany"
"""14 tokens with specials; the model takes 12."""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    cwd = tmp_path_factory.mktemp("tei")
    with Whole(cwd, CROSS_ENCODER_MODEL=str(small.folder(cwd / "judge", "rerank"))) as started:
        yield started


def good(app: Whole, path: str, body: Any) -> Any:
    answer = app.post(path, body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def rows(app: Whole, inputs: Any, **fields: Any) -> np.ndarray:
    return np.array(good(app, "/embed", {"inputs": inputs, **fields}), np.float32)


def test_rows_are_those_of_the_other_protocols(app: Whole) -> None:
    native = np.array(good(app, "/embed", {"texts": TEXTS})["vectors"], np.float32)
    np.testing.assert_array_equal(rows(app, TEXTS), native)
    np.testing.assert_array_equal(np.array(good(app, "/", {"inputs": TEXTS}), np.float32), native)


def test_a_prompt_is_that_of_the_checkpoint(app: Whole) -> None:
    np.testing.assert_allclose(rows(app, "a cat", prompt_name="query"), rows(app, "query: a cat"), atol=1e-6)
    answer = app.post("/embed", {"inputs": "a", "prompt_name": "haiku"})
    assert answer.status_code == 422
    assert "document, passage, query" in answer.json()["error"]


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, LONG.split()[:10]),
        ({"truncate": True}, LONG.split()[:10]),
        ({"truncation_direction": "Left"}, LONG.split()[-10:]),
        ({"truncate": True, "truncation_direction": "left"}, LONG.split()[-10:]),
        ({"truncate": True, "truncation_direction": "Left", "prompt_name": "query"}, ["query:", *LONG.split()[-9:]]),
    ],
)
def test_what_is_cut_is_cut_to_the_token(app: Whole, fields: dict[str, Any], kept: list[str]) -> None:
    np.testing.assert_allclose(rows(app, LONG, **fields), rows(app, " ".join(kept)), atol=1e-6)


def test_ids_are_cut_as_texts_are(app: Whole) -> None:
    ids = [one["id"] for one in good(app, "/tokenize", {"inputs": LONG})[0]]
    assert len(ids) == 14
    for direction in ("Left", "Right"):
        fields = {"truncate": True, "truncation_direction": direction}
        np.testing.assert_array_equal(rows(app, [ids], **fields), rows(app, LONG, **fields))
    assert app.post("/embed", {"inputs": ids, "truncate": False}).status_code == 422


def test_the_reranker_scores_and_raw_scores_are_its_logits(app: Whole) -> None:
    body = {"query": "paris ?", "texts": TEXTS}
    for path in ("/rerank", "/v1/rerank", "/"):
        scores = good(app, path, body)
        raw = good(app, path, {**body, "raw_scores": True})
        assert [one["index"] for one in scores] == [one["index"] for one in raw]
        logits = np.array([one["score"] for one in raw])
        assert [one["score"] for one in scores] == pytest.approx((1 / (1 + np.exp(-logits))).tolist())
    assert app.post("/rerank", body).headers["x-vecgate-model"] == "judge"


def test_vllm_scores_pairs_as_the_reranker_ranks_them(app: Whole) -> None:
    ranked = {one["index"]: one["score"] for one in good(app, "/rerank", {"query": "paris ?", "texts": TEXTS})}
    scored = good(app, "/v1/score", {"text_1": "paris ?", "text_2": TEXTS})
    assert [one["score"] for one in scored["data"]] == pytest.approx([ranked[at] for at in range(3)])
    assert scored["model"] == "judge"
    cosines = good(app, "/similarity", {"inputs": {"source_sentence": "a cat", "sentences": TEXTS}})
    near = good(app, "/score", {"model": "small", "queries": ["a cat"] * 3, "items": TEXTS, "use_activation": False})
    # the two sides of a score have prompts of their own
    assert len(near["data"]) == len(cosines) == 3
    assert near["model"] == "small"


def test_vllm_cuts_a_pair_to_the_token(app: Whole) -> None:
    body = {"text_1": "paris is", "text_2": "dogs bark a", "truncate_prompt_tokens": 6}
    answer = app.post("/v1/score", body)
    assert answer.headers["x-vecgate-truncated"] == "0:8>6"
    assert answer.json()["usage"]["prompt_tokens"] == 6
    refused = app.post("/v1/score", {**body, "truncate_prompt_tokens": 1})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, 400)


def test_info_is_of_the_model_that_embeds(app: Whole) -> None:
    info = app.get("/info").json()
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    limits = {"max_client_batch_size": 2048, "max_concurrent_requests": 4096, "max_batch_requests": 128}
    assert info.items() >= {**limits, "max_input_length": 12, "auto_truncate": True, "tokenization_workers": 2}.items()


def test_the_servers_settings_are_the_limits_it_tells_and_keeps(tmp_path: Path) -> None:
    settings = {
        "VECGATE_MAX_INPUTS": "3",
        "VECGATE_MAX_IN_FLIGHT": "50",
        "MAX_BATCH_SIZE": "40",
        "VECGATE_TRUNCATE": "refuse",
    }
    with Whole(tmp_path, **settings, VECGATE_BATCH_TOKENS="777") as app:
        info = app.get("/info").json()
        told = [info[f"max_{name}"] for name in ("client_batch_size", "concurrent_requests", "batch_requests")]
        assert (told, info["max_batch_tokens"], info["auto_truncate"]) == ([3, 50, 40], 777, False)
        assert app.post("/embed", {"inputs": ["a"] * 3}).status_code == 200
        assert app.post("/embed", {"inputs": ["a"] * 4}).status_code == 422
        assert app.post("/embed", {"inputs": LONG}).status_code == 422
        assert app.post("/embed", {"inputs": LONG, "truncate": True}).status_code == 200


def test_without_a_key_a_tei_path_answers_an_empty_401(tmp_path: Path) -> None:
    with Whole(tmp_path, VECGATE_API_KEY="first") as app:
        for method, path in (("GET", "/info"), ("POST", "/similarity"), ("POST", "/")):
            answer = app.ask(method, path, json={"inputs": "a"})
            assert (answer.status_code, answer.content, answer.headers["www-authenticate"]) == (401, b"", "Bearer")
            assert "content-type" not in answer.headers
        for path in ("/embed", "/rerank"):  # another protocol's first, which says more
            assert "API key" in app.post(path, {"inputs": "a"}).text
        assert app.get("/info", authorization="Bearer first").status_code == 200
        assert app.get("/ping").status_code == 200


def test_a_reranker_alone_ranks_and_says_that_it_does_not_embed(tmp_path: Path) -> None:
    judge = str(small.folder(tmp_path / "judge", "rerank"))
    with Whole(tmp_path, MODEL_NAME=judge) as app:
        info = app.get("/info").json()
        assert list(info["model_type"]) == ["reranker"]
        assert (info["model_id"], info["max_client_batch_size"]) == ("judge", 1000)
        assert good(app, "/", {"query": "paris ?", "texts": TEXTS})[0]["index"] == 1
        for path, inputs in (
            ("/embed", "a"),
            ("/", "a"),
            ("/similarity", {"source_sentence": "a", "sentences": ["a"]}),
        ):
            refused = app.post(path, {"inputs": inputs})
            assert refused.status_code == 424
            assert refused.json() == {
                "error": "No loaded model offers embeddings; served here: judge.",
                "error_type": "Backend",
            }
        assert len(good(app, "/tokenize", {"inputs": "paris"})[0]) == 3
