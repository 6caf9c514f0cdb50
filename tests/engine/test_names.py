"""Every name a model answers to, and what an unknown one is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vecgate.core import Checkpoint
from vecgate.engine.names import Name, Names
from vecgate.errors import ModelNotFound, WrongTask

EMBEDDER = Checkpoint(
    name="org/Mini-LM",
    folder=Path(),
    family="bert",
    task="embed",
    config={},
    weights=(),
    max_tokens=8,
    pad_id=0,
    stored_dtype="float32",
    weight_bytes=0,
    aliases=("mini", "a:b"),
)
RERANKER = replace(EMBEDDER, name="judge", task="rerank", aliases=())


@pytest.mark.parametrize("asked", ["org/Mini-LM", "Mini-LM", "mini", "MINI", " mini ", "a:b"])
def test_full_id_last_component_and_aliases_in_any_case(asked: str) -> None:
    assert Names([EMBEDDER]).find(asked, "embed") == Name("org/Mini-LM")


@pytest.mark.parametrize("asked", [None, "", "  "])
def test_no_name_is_the_default(asked: str | None) -> None:
    assert Names([EMBEDDER, RERANKER]).find(asked, "embed") == Name("org/Mini-LM")
    assert Names([EMBEDDER, RERANKER]).find(asked, "rerank") == Name("judge")


@pytest.mark.parametrize(
    ("asked", "role"), [("mini:query", "query"), ("org/Mini-LM:document", "document"), ("a:b:x", "x")]
)
def test_a_role_behind_a_colon(asked: str, role: str) -> None:
    assert Names([EMBEDDER]).find(asked, "embed") == Name("org/Mini-LM", role)


@pytest.mark.parametrize("asked", ["nobody", "mini:", ":query", "org", "mini/x"])
def test_an_unknown_name_is_told_which_exist(asked: str) -> None:
    with pytest.raises(ModelNotFound, match="org/Mini-LM, Mini-LM, mini"):
        Names([EMBEDDER]).find(asked, "embed")


def test_a_model_of_the_other_task_is_not_taken() -> None:
    with pytest.raises(WrongTask, match="reranking, not embeddings"):
        Names([EMBEDDER, RERANKER]).find("judge", "embed")


def test_a_task_that_nobody_offers() -> None:
    with pytest.raises(WrongTask, match="judge"):
        Names([RERANKER]).find(None, "embed")
    assert Names([RERANKER]).first("embed") is None
