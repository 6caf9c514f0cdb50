"""Every name a model answers to, and what an unknown one is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vecgate.core import Checkpoint, VirtualName
from vecgate.engine.names import Name, Names
from vecgate.errors import ConfigError, ModelNotFound, WrongTask

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
    prompts={"query": "q: ", "STS": "same: "},
)
RERANKER = replace(EMBEDDER, name="judge", task="rerank", aliases=())


@pytest.mark.parametrize("asked", ["org/Mini-LM", "Mini-LM", "mini", "MINI", " mini ", "a:b"])
def test_full_id_last_component_and_aliases_in_any_case(asked: str) -> None:
    assert Names([EMBEDDER]).find(asked, "embed") == Name("org/Mini-LM")


def test_a_true_name_goes_before_what_is_short_for_another_and_the_first_has_what_is_short_for_two() -> None:
    first, second = replace(EMBEDDER, name="a/mini"), replace(EMBEDDER, name="b/mini")
    names = Names([first, second, replace(RERANKER, name="MINI")])
    assert names.any("mini").name == "MINI"
    assert names.any("a:b").name == "a/mini"
    assert names.aliases_of("a/mini") == ("a:b",)
    assert names.aliases_of("b/mini") == ()
    assert names.listed() == ["a/mini", "a:b", "b/mini", "MINI"]


@pytest.mark.parametrize("asked", [None, "", "  "])
def test_no_name_is_the_default(asked: str | None) -> None:
    assert Names([EMBEDDER, RERANKER]).find(asked, "embed") == Name("org/Mini-LM")
    assert Names([EMBEDDER, RERANKER]).find(asked, "rerank") == Name("judge")


@pytest.mark.parametrize(
    ("asked", "role"),
    [
        ("mini:query", "query"),
        ("org/Mini-LM:document", "document"),
        ("a:b:STS", "STS"),
        ("MINI:sts", "STS"),
        ("mini:latest", None),
        ("mini:LATEST", None),
    ],
)
def test_a_role_behind_a_colon(asked: str, role: str | None) -> None:
    assert Names([EMBEDDER]).find(asked, "embed") == Name("org/Mini-LM", role)


@pytest.mark.parametrize("asked", ["nobody", "nobody:query", ":query", ":latest", "org", "mini/x"])
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


@pytest.mark.parametrize("asked", ["mini:poet", "mini:", "a:b:x"])
def test_a_role_that_is_none_is_told_which_are(asked: str) -> None:
    with pytest.raises(ModelNotFound, match=f"'{asked}' does not exist here: the roles are query, document, STS"):
        Names([EMBEDDER]).find(asked, "embed")


def test_a_reranker_has_no_roles() -> None:
    with pytest.raises(ModelNotFound, match="'judge:query' does not exist here; these do"):
        Names([EMBEDDER, RERANKER]).find("judge:query", "rerank")


def test_aliases_carry_a_role_and_a_width_over_each_other() -> None:
    aliases = [("Short", "q", 4), ("q", "mini:query", 6), ("whole", "q:sts", None), ("rerank-v3.5", "judge", None)]
    names = Names([EMBEDDER, RERANKER], aliases)
    assert names.find("q", "embed") == Name("org/Mini-LM", "query", 6)
    assert names.find("short", "embed") == Name("org/Mini-LM", "query", 4)
    assert names.find("whole", "embed") == Name("org/Mini-LM", "STS", 6)
    assert names.find("short:document", "embed") == Name("org/Mini-LM", "document", 4)
    assert names.find("short:latest", "embed") == Name("org/Mini-LM", "query", 4)
    assert names.find("RERANK-v3.5", "rerank") == Name("judge")
    assert names.any("rerank-v3.5") is RERANKER
    assert names.listed() == ["org/Mini-LM", "Mini-LM", "mini", "a:b", "judge", "Short", "q", "whole", "rerank-v3.5"]


def test_what_a_list_shows_of_each_model() -> None:
    names = Names([EMBEDDER, RERANKER], [("short", "mini:query", 4), ("rerank-v3.5", "judge", None)])
    assert names.virtual_of("org/Mini-LM") == (
        VirtualName("org/Mini-LM:query", "query"),
        VirtualName("org/Mini-LM:document", "document"),
        VirtualName("org/Mini-LM:STS", "STS"),
        VirtualName("short", "query", 4),
    )
    assert names.virtual_of("judge") == (VirtualName("rerank-v3.5"),)
    assert names.aliases_of("org/Mini-LM") == ("Mini-LM", "mini", "a:b")
    assert names.aliases_of("judge") == ("rerank-v3.5",)
    assert all(names.find(one.name, "embed").role == one.role for one in names.virtual_of("org/Mini-LM"))


@pytest.mark.parametrize(
    ("aliases", "told"),
    [
        ([("x", "nobody", None)], "'x' stands for 'nobody', which is not served; served: org/Mini-LM, judge."),
        ([("x", "y", None), ("y", "nobody:query", None)], "'y' stands for 'nobody:query', which is not served"),
        ([("x", "mini:poet", None)], "'x' stands for 'mini:poet', which is not served"),
        ([("x", "x", None)], "aliases x stand for each other and for no model"),
        ([("x", "Y", None), ("y", "x:query", None), ("ok", "mini", None)], "aliases x, y stand for each other"),
        ([("MINI", "judge", None)], "'MINI' is a name of 'org/Mini-LM' already"),
        ([("mini:query", "judge", None)], "'mini:query' is a name of 'org/Mini-LM' already"),
        ([("x", "judge", 8)], "'x' has dimensions, and 'judge' is a reranker"),
    ],
)
def test_an_alias_that_stands_for_nothing_stops_the_start(
    aliases: list[tuple[str, str, int | None]], told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Names([EMBEDDER, RERANKER], aliases)
    assert told in str(caught.value)
    assert str(caught.value).endswith(".")


def test_an_alias_is_no_wider_than_the_loaded_model() -> None:
    names = Names([EMBEDDER, RERANKER], [("x", "mini", 9), ("y", "x", 8), ("z", "judge", None)])
    names.check_width("org/Mini-LM", 9)
    names.check_width("judge", 1)
    with pytest.raises(ConfigError, match=r"alias 'x' asks for 9 dimensions; 'org/Mini-LM' allows 1 to 8\."):
        names.check_width("org/Mini-LM", 8)
