"""The table of families: which row a checkpoint gets, and that it says what the real files say where they are here."""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.engine import decoder
from vecgate.core import Task
from vecgate.engine import families
from vecgate.engine.checkpoint import read
from vecgate.engine.families import FAMILIES, WEB_SEARCH
from vecgate.errors import CheckpointError

CAUSAL = {"architectures": ["Qwen3ForCausalLM"]}


@pytest.mark.parametrize(
    ("family", "name", "expected"),
    [
        ("bert", "sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6"),
        ("bert", "mlx-community/all-MiniLM-L12-v2-bf16", "all-MiniLM-L12"),
        ("bert", "mlx-community/bge-small-en-v1.5-4bit", "bge, English"),
        ("bert", "BAAI/bge-large-zh-v1.5", "bge, Chinese"),
        ("bert", "mixedbread-ai/mxbai-embed-large-v1", "mxbai-embed"),
        ("bert", "intfloat/e5-base-v2", "e5"),
        ("xlm-roberta", "mlx-community/multilingual-e5-small-mlx", "e5"),
        ("xlm-roberta", "intfloat/multilingual-e5-large-instruct", "multilingual-e5-instruct"),
        ("xlm-roberta", "mlx-community/bge-m3-mlx-fp16", "bge-m3"),
        ("bert", "thenlper/gte-base", "gte"),
        ("bert", "thenlper/gte-base-zh", "gte, Chinese"),
        ("modernbert", "Alibaba-NLP/gte-modernbert-base", "gte-modernbert"),
        ("modernbert", "nomic-ai/modernbert-embed-base", "nomic, ModernBERT"),
        ("modernbert", "mlx-community/nomicai-modernbert-embed-base-4bit", "nomic, ModernBERT"),
        ("nomic_bert", "nomic-ai/nomic-embed-text-v1.5", "nomic-embed-text"),
        ("mpnet", "sentence-transformers/all-mpnet-base-v2", "all-mpnet"),
        ("mistral", "intfloat/e5-mistral-7b-instruct", "e5-mistral"),
        ("qwen2", "Alibaba-NLP/gte-Qwen2-1.5B-instruct", "gte-Qwen2-instruct"),
        ("qwen3", "mlx-community/Qwen3-Embedding-4B-4bit-DWQ", "Qwen3-Embedding"),
        ("gemma3_text", "mlx-community/embeddinggemma-300m-4bit", "EmbeddingGemma"),
        ("bert", "someone/my-bge-finetuned", None),
        ("bert", "e5", None),
        ("xlm-roberta", "BAAI/bge-m3x", None),
        ("roberta", "BAAI/bge-small-en-v1.5", None),
    ],
)
def test_a_name_finds_its_row(family: str, name: str, expected: str | None) -> None:
    found = families.find({"model_type": family, **CAUSAL}, name, "embed")
    assert (found.name if found else None) == expected


@pytest.mark.parametrize(
    ("config", "task", "ending", "expected"),
    [
        ({"model_type": "qwen3", **CAUSAL}, "embed", "<|endoftext|>", "Qwen3-Embedding"),
        ({"model_type": "qwen3", **CAUSAL}, "embed", None, None),
        ({"model_type": "qwen3", **CAUSAL, "is_causal": False}, "embed", "<|endoftext|>", None),
        ({"model_type": "qwen3", "architectures": ["Qwen3Model"]}, "embed", "<|endoftext|>", None),
        ({"model_type": "qwen3", **CAUSAL}, "rerank", None, "Qwen3-Reranker"),
        ({"model_type": "qwen2", **CAUSAL}, "rerank", None, None),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "embed", None, "EmbeddingGemma"),
        ({"model_type": "gemma3_text"}, "embed", None, None),
    ],
)
def test_files_find_a_row_without_a_name(
    config: dict[str, Any], task: Task, ending: str | None, expected: str | None
) -> None:
    found = families.find(config, "some-folder", task, ending)
    assert (found.name if found else None) == expected


def test_the_rows_are_sound() -> None:
    assert len({row.name for row in FAMILIES}) == len(FAMILIES)
    assert [row.name for row in FAMILIES if row.pattern is not None and not re.compile(row.pattern)] == []
    assert [row.name for row in FAMILIES if row.default_prompt not in {None, *row.prompts}] == []
    assert all(row.source for row in FAMILIES)


def test_verified_rows_say_what_the_real_files_say(minilm: Path) -> None:
    said = read(minilm)
    row = families.find(said.config, "all-MiniLM-L6-v2", "embed")
    assert row is not None
    assert [one.name for one in FAMILIES if one.verified] == [row.name]
    told = (said.pooling, said.normalize, said.prompts, said.max_tokens)
    assert ((row.pooling,), row.normalize, row.prompts, row.max_tokens) == told


def test_qwen3s_query_prompt_to_the_letter() -> None:
    row = families.find({"model_type": "qwen3"}, "Qwen3-Embedding-8B", "embed")
    assert row is not None
    query = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
    assert row.prompts == {"query": query, "document": ""}
    assert WEB_SEARCH in query


def test_a_conversion_without_a_recipe_gets_the_tables_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What mlx_lm.convert leaves of Qwen3-Embedding: weights, config.json and a tokenizer."""
    folder = decoder.make(tmp_path / "snapshot", single="$A <|endoftext|>", quantization={"group_size": 64, "bits": 4})
    caplog.set_level(logging.INFO, "vecgate.engine")
    found = read(folder, name="mlx-community/Qwen3-Embedding-4B-4bit-DWQ")
    assert (found.task, found.pooling, found.normalize, found.tail) == ("embed", ("last",), True, ())
    assert found.prompts["query"].endswith("\nQuery:")
    assert (found.default_prompt, found.max_tokens, found.quantization) == (None, 32768, {"group_size": 64, "bits": 4})
    assert "its files say nothing of pooling, so it is that of Qwen3-Embedding: last" in caplog.text


@pytest.mark.parametrize(
    ("name", "family"), [("e5-mistral-7b-instruct-4bit", "mistral"), ("gte-Qwen2-1.5B-instruct-8bit", "qwen2")]
)
def test_a_name_of_the_table_says_the_task_of_a_conversion(tmp_path: Path, name: str, family: str) -> None:
    """Their tokenizers forget the ending, so the name is all that tells them from chat models."""
    folder = decoder.make(tmp_path / "snapshot", model_type=family)
    found = read(folder, name=f"mlx-community/{name}")
    assert (found.task, found.pooling, len(found.tail)) == ("embed", ("last",), 1)
    with pytest.raises(CheckpointError, match=r"may rerank .* or embed \(its name is one of"):
        read(folder, name=f"mlx-community/{name}-reranker")


def test_the_files_win(minilm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bge-small-en-v1.5"
    shutil.copytree(minilm, folder)
    found = read(folder)
    assert (found.pooling, found.max_tokens) == (("mean",), 256)
    assert found.prompts["query"] == "Represent this sentence for searching relevant passages: "
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "q: "}}))
    assert read(folder).prompts == {"query": "q: "}
    for name in ("modules.json", "sentence_bert_config.json"):
        (folder / name).unlink()
    assert (read(folder).pooling, read(folder).max_tokens) == (("cls",), 512)


def test_the_user_wins(tmp_path: Path) -> None:
    folder = decoder.make(tmp_path / "qwen3-embedding", single="$A <|endoftext|>")
    found = read(folder, pooling="mean", prompts={"query": "find: ", "sts": "like: "})
    assert (found.pooling, found.prompts) == (("mean",), {"query": "find: ", "document": "", "sts": "like: "})


def test_dense_layers_cant_be_made_up(tmp_path: Path) -> None:
    folder = decoder.make(
        tmp_path / "gemma", "gemma3_text", use_bidirectional_attention=True, architectures=["Gemma3TextModel"]
    )
    with pytest.raises(CheckpointError, match="lacks the Dense layers that EmbeddingGemma ends in; take the original"):
        read(folder)


def test_dense_layers_may_lie_among_the_weights_of_a_conversion(tmp_path: Path) -> None:
    folder = decoder.make(
        tmp_path / "gemma",
        "gemma3_text",
        single="$A </s>",
        tensors=("model.norm.weight", "dense.0.weight", "dense.1.weight"),
        use_bidirectional_attention=True,
        architectures=["Gemma3TextModel"],
    )
    found = read(folder)
    assert (found.dense, found.pooling, found.prompts["STS"]) == ((), ("mean",), "task: sentence similarity | query: ")


def test_gte_qwen2_is_bidirectional_even_where_only_its_code_says_so(tmp_path: Path) -> None:
    folder = decoder.make(
        tmp_path / "gte-Qwen2-1.5B-instruct", "qwen2", auto_map={"AutoModel": "modeling_qwen.Qwen2Model"}
    )
    found = read(folder, task="embed", ignore_code=True)
    assert (found.config["is_causal"], found.pooling) == (False, ("last",))
    assert found.tail == (2,)


def test_a_pooling_that_nothing_names_is_sentence_transformers_and_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = decoder.make(tmp_path / "nobody-knows", "bert", architectures=["BertModel"])
    assert read(folder).pooling == ("mean",)
    assert "its pooling is mean, as sentence-transformers would take it; --pooling says another" in caplog.text
    caplog.clear()
    assert read(folder, pooling="cls").pooling == ("cls",)
    assert not caplog.text
