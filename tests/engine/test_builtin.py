"""The models with short names."""

import re

import pytest

from vecgate.engine import families
from vecgate.engine.builtin import BUILT_IN, some


def test_short_names_are_one_each() -> None:
    names = [name.casefold() for one in BUILT_IN for name in {one.short, one.repo, one.name}]
    assert len(set(names)) == len(names)
    assert all(one.short == one.short.casefold() for one in BUILT_IN)


def test_a_revision_is_a_commit_or_nothing() -> None:
    assert [one.short for one in BUILT_IN if one.revision and not re.fullmatch("[0-9a-f]{40}", one.revision)] == []
    assert len({one.revision for one in BUILT_IN if one.revision}) == sum(one.revision is not None for one in BUILT_IN)
    unpinned = {one.repo.partition("/")[0] for one in BUILT_IN if one.revision is None}
    assert unpinned == {"mlx-community"}


@pytest.mark.parametrize(
    ("family", "repo"), [("qwen2", "gte-Qwen2-1.5B-instruct"), ("nomic_bert", "nomic-embed-text-v1.5")]
)
def test_code_is_ignored_only_where_the_table_knows_the_family(family: str, repo: str) -> None:
    vouched = [one.repo for one in BUILT_IN if one.ignore_code]
    assert len(vouched) == 2
    assert any(one.endswith(repo) for one in vouched)
    assert families.find({"model_type": family}, repo, "embed") is not None


def test_many_names_are_told_by_a_few() -> None:
    assert some(["a", "b"]) == "a, b"
    assert some([*"abcdef"]) == "a, b, c, d and 2 more, which `vecgate models` lists"
