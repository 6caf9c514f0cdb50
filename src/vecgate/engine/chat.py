"""A checkpoint's chat template, rendered once for a pair and taken apart into a PairTemplate (only door to jinja2).

The template is code of the repository's own in a language for texts: it runs in jinja2's sandbox, at start only, and
sees nothing but sentinels. Follows sentence-transformers 6.2 (base/modality.py) and transformers' chat templates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vecgate.core import PairTemplate
from vecgate.engine.modules import read_json
from vecgate.errors import CheckpointError

FLAT = ("apertus", "deepseek_v3", "gpt_oss", "seed_oss")
"""Families whose messages hold their text bare, whatever their template looks like."""
STRUCTURED = ("content[0]", ".type", "'type'", '"type"', "item.type", "message.content[")
"""Signs in a template that messages hold lists of typed parts."""
PROBES = (("kwerie7", "dokument8"), (" Q: <b>&\"q'\u00e9\n", "\nD {{ d }}\u4f60 "), ("", "x" * 5000))
"""Pairs that must come out as they went in; the first finds the places."""
SPECIALS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class Chat:
    """A template and what is given to it beside the messages. structured: texts come as lists of typed parts."""

    path: Path
    source: str
    structured: bool
    names: Mapping[str, Any] = field(default_factory=dict)

    def pair(self, system: str) -> PairTemplate:
        """The form of a pair of query and document, after a system message unless that is empty.

        Raises CheckpointError where the template does more with them than put them, whole and once, query first.
        """
        query, document = PROBES[0]
        text = self._render(system, query, document)
        if text.count(query) != 1 or text.count(document) != 1 or text.index(query) > text.index(document):
            raise CheckpointError(
                f"{self.path}: its chat template does not put a message of the role query once, and one of the role "
                "document once after it; a reranker is served by such a template only."
            )
        before, _, rest = text.partition(query)
        middle, _, after = rest.partition(document)
        for strip in (False, True):
            made = PairTemplate("", before, middle, after, whole=True, strip=strip)
            if all(self._render(system, *probe) == put(made, *probe) for probe in PROBES):
                return made
        raise CheckpointError(
            f"{self.path}: its chat template changes the texts of a pair, or itself with them; it can't be followed."
        )

    def _render(self, system: str, query: str, document: str) -> str:
        told = [("system", system)] if system else []
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}] if self.structured else text}
            for role, text in (*told, ("query", query), ("document", document))
        ]
        given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": False}
        try:
            return _sandbox().from_string(self.source).render(**{**given, **self.names})
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise CheckpointError(f"{self.path}: its chat template can't be rendered ({reason}).") from error


def put(template: PairTemplate, query: str, document: str) -> str:
    """The pair in its form, as one text."""
    if template.strip:
        query, document = query.strip(), document.strip()
    return f"{template.prefix}{template.lead}{query}{template.middle}{document}{template.suffix}"


def find(root: Path, tokenizer: Mapping[str, Any], family: str, settings: Mapping[str, Any]) -> Chat | None:
    """The template of the tokenizer in this folder; settings: sentence_bert_config.json."""
    path, source = root / "chat_template.jinja", tokenizer.get("chat_template")
    if path.exists():
        try:
            source = path.read_text("utf-8")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} can't be read ({error}); fetch it again.") from error
    else:
        path = root / "tokenizer_config.json"
    if isinstance(source, list):  # several by name
        named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
        source = named.get("default")
    if source is None:
        return None
    if not isinstance(source, str):
        raise CheckpointError(f"{path} must hold chat_template as a text; fetch it again.")
    declared = ((settings.get("modality_config") or {}).get("message") or {}).get("format", "auto")
    looks = family not in FLAT and any(sign in source for sign in STRUCTURED)
    structured = looks if declared == "auto" else declared == "structured"
    options = (settings.get("processing_kwargs") or {}).get("chat_template") or {}
    return Chat(path, source, structured, {**_specials(root, tokenizer), **options})


def speaks_of_pairs(chat: Chat) -> bool:
    """Whether the template names the roles of a pair; a chat model's own would drop them, or take them for a user's."""
    return "query" in chat.source and "document" in chat.source


def _specials(root: Path, tokenizer: Mapping[str, Any]) -> dict[str, str]:
    path = root / "special_tokens_map.json"
    named = {**(read_json(path, dict) if path.exists() else {}), **tokenizer}
    texts = {name: one.get("content") if isinstance(one, dict) else one for name, one in named.items()}
    return {name: text for name, text in texts.items() if name in SPECIALS and isinstance(text, str)}


class _Generation(Extension):
    """{% generation %} marks what an assistant says, for training; here it only wraps its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> Node | list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _sandbox() -> ImmutableSandboxedEnvironment:
    """As transformers sets it up, without strftime_now: what depends on the day is refused."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    made.filters["tojson"] = _as_json
    made.globals["raise_exception"] = _raise
    return made


def _raise(message: str) -> None:
    raise TemplateError(message)


def _as_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)
