"""A chat template taken apart: once, in a sandbox, and only where a pair comes out as it went in."""

from pathlib import Path
from typing import Any

import pytest

from vecgate.core import PairTemplate
from vecgate.engine import chat
from vecgate.engine.chat import Chat, put
from vecgate.errors import CheckpointError

PATH = Path("/m/chat_template.jinja")
BOTH = "{{ messages[-2].content }}|{{ messages[-1].content }}"


def pair(source: str, system: str = "") -> PairTemplate:
    return Chat(PATH, source, structured=False, names={"bos_token": "<s>"}).pair(system)


def test_a_template_is_taken_apart() -> None:
    source = "{{ bos_token }}{% if messages[0].role == 'system' %}S: {{ messages[0].content }} {% endif %}" + BOTH + "."
    assert pair(source) == PairTemplate("", "<s>", "|", ".", whole=True)
    assert pair(source, "judge") == PairTemplate("", "<s>S: judge ", "|", ".", whole=True)


def test_blanks_may_be_taken_off() -> None:
    made = pair("{{ messages[-2].content | trim }}|{{ messages[-1].content | trim }}")
    assert made == PairTemplate("", "", "|", "", whole=True, strip=True)
    assert put(made, " a\n", "\tb ") == "a|b"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ messages[-1].content }}|{{ messages[-2].content }}", "does not put a message of the role query once"),
        (BOTH + "{{ messages[-1].content }}", "does not put a message of the role query once"),
        ("{{ messages[0].content }}", "does not put a message of the role query once"),
        ("{{ messages[-2].content | upper }}" + BOTH, "changes the texts of a pair"),
        (BOTH.replace("content }}", "content | escape }}"), "changes the texts of a pair"),
        (BOTH + "{{ messages[-1].content | length }}", "changes the texts of a pair"),
        (BOTH + "{{ 'long' if messages[-1].content | length > 4000 }}", "changes the texts of a pair"),
        (BOTH + "{% if %}", "can't be rendered"),
        (BOTH + "{{ raise_exception('only users speak') }}", "can't be rendered .only users speak"),
        (BOTH + "{{ strftime_now('%d') }}", "can't be rendered .'strftime_now' is undefined"),
        (BOTH + "{{ messages[7].content.x }}", "can't be rendered"),
        (BOTH + "{{ ().__class__.__bases__[0].__subclasses__() }}", "can't be rendered .*unsafe"),
        (BOTH + "{% set _ = messages.append(1) %}", "can't be rendered"),
        (BOTH + "{% for i in range(10 ** 9) %}{% endfor %}", "can't be rendered"),
    ],
)
def test_a_template_that_cant_be_followed_is_named(source: str, words: str) -> None:
    with pytest.raises(
        CheckpointError, match=rf"^/m/chat_template\.jinja: its chat template .*{words}|{words}"
    ) as caught:
        pair(source)
    assert str(caught.value).startswith("/m/chat_template.jinja: its chat template ")
    assert "\n" not in str(caught.value)


def test_where_a_template_lies(tmp_path: Path) -> None:
    named = {"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}
    for tokenizer, source in (({"chat_template": "t"}, "t"), (named, "d"), ({}, None), ({"chat_template": []}, None)):
        found = chat.find(tmp_path, tokenizer, "qwen3", {})
        assert (found.source if found else None) == source
    (tmp_path / "chat_template.jinja").write_text("j")
    found = chat.find(tmp_path, {"chat_template": "t", "bos_token": {"content": "<s>"}, "pad_token": None}, "qwen3", {})
    assert found == Chat(tmp_path / "chat_template.jinja", "j", False, {"bos_token": "<s>"})
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja can't be read"):
        chat.find(tmp_path, {}, "qwen3", {})
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="must hold chat_template as a text"):
        chat.find(tmp_path, {"chat_template": 5}, "qwen3", {})


def test_options_and_the_form_of_messages_come_from_the_settings(tmp_path: Path) -> None:
    source = "{{ messages[-2].content }}{% for p in messages[-1].content if p.type == 'text' %}{{ p.text }}{% endfor %}{{ mood }}"
    settings: dict[str, Any] = {
        "modality_config": {"message": {"format": "structured"}},
        "processing_kwargs": {"chat_template": {"mood": "!", "restore_suffix": True}},
    }
    found = chat.find(tmp_path, {"chat_template": source}, "qwen3", settings)
    assert found is not None
    assert (found.structured, found.names["mood"]) == (True, "!")
    settings["modality_config"]["message"]["format"] = "flat"
    assert not chat.find(tmp_path, {"chat_template": source}, "qwen3", settings).structured  # type: ignore[union-attr]
    assert chat.find(tmp_path, {"chat_template": source}, "qwen3", {}).structured  # type: ignore[union-attr]
    assert not chat.find(tmp_path, {"chat_template": source}, "gpt_oss", {}).structured  # type: ignore[union-attr]
