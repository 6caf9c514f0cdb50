"""The whole server with the real MiniLM, over its socket: right rows, OpenAI's, Cohere's and Hugging Face's clients, start,
mistakes and the end."""

from __future__ import annotations

import base64
import json
import random
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cohere
import httpx
import numpy as np
import openai
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from tests.alone import BEGUN, OUTGOING
from tests.awkward import TEXTS
from tests.live import Live, command, environment, free_port

TOLERANCE = 1e-6
"""max |difference| of unit rows in fp32: the reference itself moves by 4e-7 between one batch and another."""


@dataclass(frozen=True, slots=True)
class Start:
    """A server, and what it answered before it was ready."""

    server: Live
    health: str
    refusal: tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    with Live(tmp_path_factory.mktemp("server"), module="tests.alone") as server:
        server.wait_for("/health/live", 200)
        health = json.loads(server.get("/health")[2])["status"]
        refusal = server.post("/v1/embeddings", {"input": "a"})
        yield Start(server.ready(), health, refusal)


@pytest.fixture(scope="module")
def server(start: Start) -> Live:
    """The same for all tests of this file: importing torch and transformers takes seconds."""
    return start.server


@pytest.fixture(scope="module")
def expected(minilm_rows: np.ndarray) -> np.ndarray:
    return minilm_rows


def rows(server: Live, texts: str | list[str]) -> np.ndarray:
    status, _, body = server.post("/v1/embeddings", {"input": texts, "encoding_format": "base64"})
    assert status == 200, body
    data = json.loads(body)["data"]
    assert [one["index"] for one in data] == list(range(len(data)))
    return np.stack([np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in data])


def worst(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max())


def test_in_one_batch(server: Live, expected: np.ndarray) -> None:
    assert worst(rows(server, TEXTS), expected) < TOLERANCE


def test_alone(server: Live, expected: np.ndarray) -> None:
    found = np.concatenate([rows(server, text) for text in TEXTS])  # 40 calls
    assert worst(found, expected) < TOLERANCE


def test_shuffled(server: Live, expected: np.ndarray) -> None:
    order = random.Random(7).sample(range(len(TEXTS)), len(TEXTS))
    assert worst(rows(server, [TEXTS[i] for i in order]), expected[order]) < TOLERANCE


def test_from_32_clients_at_once(server: Live, expected: np.ndarray) -> None:
    def client(seed: int) -> float:
        chosen = random.Random(seed).sample(range(len(TEXTS)), 4)
        return worst(rows(server, [TEXTS[i] for i in chosen]), expected[chosen])

    with ThreadPoolExecutor(32) as pool:
        assert max(pool.map(client, range(32))) < TOLERANCE


def test_floats_are_the_same_numbers_as_base64(server: Live) -> None:
    body = server.post("/v1/embeddings", {"input": TEXTS[:20]})[2]
    floats = np.array([one["embedding"] for one in json.loads(body)["data"]], np.float32)
    np.testing.assert_array_equal(floats, rows(server, TEXTS[:20]))


def test_dimensions_are_cut_then_renormalised(server: Live, expected: np.ndarray) -> None:
    body = server.post("/v1/embeddings", {"input": TEXTS[36], "dimensions": 64})[2]
    found = np.array(json.loads(body)["data"][0]["embedding"], np.float32)
    cut = expected[36, :64] / np.linalg.norm(expected[36, :64])
    assert np.abs(found - cut).max() < TOLERANCE


def test_native_rows_and_similarity(server: Live, expected: np.ndarray) -> None:
    native = json.loads(server.post("/api/v1/embed/", {"texts": TEXTS[35:]})[2])
    assert native["dim"] == 384
    assert worst(np.array(native["vectors"], np.float32), expected[35:]) < TOLERANCE
    ranked = json.loads(server.post("/rerank", {"query": TEXTS[39], "passages": TEXTS[36:39]})[2])
    cosines = expected[36:39] @ expected[39]
    assert ranked["method"] == "similarity"
    for result in ranked["results"]:
        assert result["score"] == pytest.approx(float(cosines[result["index"]]), abs=1e-5)


def test_truncation_is_reported_and_counts_the_tokens(server: Live) -> None:
    status, headers, body = server.post("/v1/embeddings", {"input": ["short", "word " * 2_000]})
    assert status == 200
    assert headers["x-vecgate-truncated"] == "1:2002>256"
    assert json.loads(body)["usage"]["prompt_tokens"] == 3 + 256


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="unused", max_retries=0) as made:
        yield made


def test_the_openai_sdk_as_it_comes(client: openai.OpenAI, expected: np.ndarray) -> None:
    answer = client.embeddings.create(model="all-MiniLM-L6-v2", input=TEXTS[35:])
    found = np.array([one.embedding for one in answer.data], np.float32)
    assert worst(found, expected[35:]) < TOLERANCE
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 10
    assert answer.model == "all-MiniLM-L6-v2"


def test_the_openai_sdk_lists_and_finds_models(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names == ["all-MiniLM-L6-v2", "all-MiniLM-L6-v2:query", "all-MiniLM-L6-v2:document"]
    assert client.models.retrieve("sentence-transformers/all-MiniLM-L6-v2").id
    with pytest.raises(openai.NotFoundError, match="all-MiniLM-L6-v2"):
        client.models.retrieve("gpt-9")


def test_the_openai_sdk_shows_what_was_wrong(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"385.*384") as dimensions:
        client.embeddings.create(model="minilm", input="a", dimensions=385)
    assert (dimensions.value.param, dimensions.value.type) == ("dimensions", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as model:
        client.embeddings.create(model="nobody", input="a")
    assert model.value.code == "model_not_found"
    assert model.value.request_id


def test_token_ids_of_the_model_give_the_texts_row(client: openai.OpenAI, minilm: Path, expected: np.ndarray) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for specials in (True, False):
        ids = tokenizer.encode(TEXTS[36], add_special_tokens=specials).ids
        found = client.embeddings.create(model="minilm", input=ids).data[0].embedding
        assert np.abs(np.array(found, np.float32) - expected[36]).max() < TOLERANCE


@pytest.fixture(scope="module", params=[cohere.Client, cohere.ClientV2])
def cohere_client(server: Live, request: pytest.FixtureRequest) -> Iterator[Any]:
    with httpx.Client(timeout=120) as http:
        yield request.param(api_key="unused", base_url=server.url, max_retries=0, httpx_client=http)


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")  # Cohere's SDK, merging batches
def test_the_cohere_sdk_embeds(cohere_client: Any, expected: np.ndarray) -> None:
    given = {"model": "minilm", "input_type": "search_document", "embedding_types": ["float", "int8"]}
    found = cohere_client.embed(texts=TEXTS, **given).embeddings
    assert worst(np.array(found.float_, np.float32), expected) < TOLERANCE
    decoded = np.array(found.int8, np.float64)
    cosines = (decoded * expected).sum(axis=1) / np.linalg.norm(decoded, axis=1)
    assert cosines.min() >= 0.999
    with pytest.raises(cohere.NotFoundError, match="all-MiniLM-L6-v2"):
        cohere_client.embed(texts=["a"], **given | {"model": "embed-v4.0"})


def test_the_cohere_sdk_reranks(cohere_client: Any, expected: np.ndarray) -> None:
    results = cohere_client.rerank(model="minilm", query=TEXTS[39], documents=TEXTS[30:39], top_n=5).results
    scores = (1.0 + expected[30:39] @ expected[39]) / 2.0
    best = np.argsort(-scores, kind="stable")[:5]
    # by text, not by index: one text stands there twice, and its two rows differ in the last bit from batch to batch
    assert [TEXTS[30 + one.index] for one in results] == [TEXTS[30 + i] for i in best]
    assert len({one.index for one in results}) == 5
    for one in results:
        assert one.relevance_score == pytest.approx(float(scores[one.index]), abs=1e-6)


@pytest.fixture(scope="module")
def hub_client(server: Live) -> InferenceClient:
    return InferenceClient(server.url, token="unused", provider="hf-inference")


def test_the_hugging_face_client_embeds(hub_client: InferenceClient, expected: np.ndarray) -> None:
    assert worst(hub_client.feature_extraction(TEXTS), expected) < TOLERANCE
    raw = hub_client.feature_extraction(TEXTS[36], normalize=False, prompt_name="query", truncate=False)
    assert raw.shape == (1, 384)
    assert worst(raw / np.linalg.norm(raw), expected[36:37]) < TOLERANCE
    with pytest.raises(HfHubHTTPError, match=r"haiku.*document, query"):
        hub_client.feature_extraction("a", prompt_name="haiku")
    with pytest.raises(HfHubHTTPError, match="2002 tokens; the limit is 256"):
        hub_client.feature_extraction("word " * 2_000, truncate=False)


def test_the_hugging_face_client_cuts_the_side_it_says(hub_client: InferenceClient) -> None:
    words = "one two three four five six seven eight nine ten eleven".split() * 30  # a token each
    sides: dict[Literal["left", "right"], list[str]] = {"left": words[-254:], "right": words[:254]}
    for side, kept in sides.items():
        cut = hub_client.feature_extraction(" ".join(words), truncate=True, truncation_direction=side)
        assert worst(cut, hub_client.feature_extraction(" ".join(kept), truncate=False)) < TOLERANCE


def test_the_hugging_face_client_compares(hub_client: InferenceClient, expected: np.ndarray) -> None:
    cosines = hub_client.sentence_similarity(TEXTS[39], other_sentences=TEXTS[36:39])
    assert cosines == pytest.approx((expected[36:39] @ expected[39]).tolist(), abs=1e-6)


def test_the_hugging_face_client_is_told_what_is_served(hub_client: InferenceClient) -> None:
    info = hub_client.get_endpoint_info()
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    limits = {"max_input_length": 256, "max_client_batch_size": 2048, "model_dtype": "float32"}
    assert info.items() >= limits.items()
    assert hub_client.health_check()


def test_token_ids_from_tokenize_give_the_texts_row(server: Live, expected: np.ndarray) -> None:
    (tokens,) = json.loads(server.post("/tokenize", {"inputs": TEXTS[36]})[2])
    assert all(TEXTS[36][one["start"] : one["stop"]] == one["text"] for one in tokens if not one["special"])
    ids = [one["id"] for one in tokens]
    for inputs in (ids, [ids[1:-1]]):  # with the special tokens, without them
        found = np.array(json.loads(server.post("/embed", {"inputs": inputs})[2]), np.float32)
        assert worst(found, expected[36:37]) < TOLERANCE


def test_health_tells_what_runs(server: Live) -> None:
    status, _, body = server.get("/health/")
    health = json.loads(body)
    assert (status, health["status"], health["backend"], health["device"]) == (200, "ok", "torch", "cpu")


def test_health_answers_while_the_model_loads(start: Start) -> None:
    # loading takes seconds (importing torch alone does), so the first answers come before its end
    status, headers, body = start.refusal
    assert start.health in ("loading", "warming")
    assert (status, headers["retry-after"]) == (503, "5")
    assert "loading" in json.loads(body)["error"]["message"]


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(tmp_path, "serve", PORT=str(port))
    assert done.returncode == 2
    assert done.stderr.startswith(f"vecgate: Port {port} on 127.0.0.1 is in use")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("setting", "value", "parts"),
    [
        ("PORT", "http", ("PORT", "http")),
        ("MODEL_NAME", "./nowhere", ("nowhere",)),
        ("BACKEND", "cuda", ("BACKEND", "cuda", "torch")),
        ("DEVICE_MEMORY_FRACTION", "1.5", ("DEVICE_MEMORY_FRACTION", "1.5")),
        ("VECGATE_DTYPES", "float32", ("VECGATE_DTYPES", "VECGATE_DTYPE")),
        ("HOST", "203.0.113.7", ("203.0.113.7",)),
    ],
)
def test_a_wrong_setting_stops_the_start_with_one_line(
    tmp_path: Path, setting: str, value: str, parts: tuple[str, ...]
) -> None:
    done = run(tmp_path, "serve", **{"PORT": str(free_port()), setting: value})
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    for part in parts:
        assert part in done.stderr


def test_nobody_was_called_to_load_the_model_or_to_serve_it(server: Live) -> None:
    assert rows(server, "a").shape == (1, 384)
    assert (server.cwd / OUTGOING).read_text() == f"{BEGUN}\n"


def run(cwd: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(**settings), cwd=cwd, capture_output=True, text=True, timeout=120
    )


def test_sigterm_ends_it_with_status_0_after_the_answer(server: Live) -> None:
    """The last of this file, since it ends the server of all of them; tests/test_server.py has the other signals."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.post, "/api/v1/embed", {"texts": ["word " * 300] * 6, "batch_size": 1})
        while json.loads(server.get("/health")[2])["queue"]["items"] == 0 and not answer.done():
            pass
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(120) == 0
        assert answer.result()[0] == 200
