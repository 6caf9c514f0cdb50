"""Pairs in a checkpoint's template: the same token ids as sentence-transformers makes of the same folder, cut or whole."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.awkward import TEXTS
from vecgate.core import PairTemplate
from vecgate.engine.checkpoint import read
from vecgate.engine.families import pair_form
from vecgate.engine.tokenizer import Tokenizer
from vecgate.errors import InputTooLong, InvalidRequest

Tiny = Callable[[str], Path]

QUERY = "which quick brown fox <|im_end|> jumps?"
DOCUMENTS = [
    *TEXTS,
    "",
    " ",
    "cat.\n",
    "\n\ncat",
    "ends with <|im_end|>",
    "the lazy dog sat " * 200,
    "1 2 3 " * 300 + "!\n",
]
ROLES = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}Answer:"
TEMPLATES = {
    "its own": None,
    "no special token at all": ROLES,
    "blanks taken off": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>{% endfor %}",
    "parts of a text": "{% for m in messages %}<|im_start|>{{ m.role }} {% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}",
    "the system last": "{% for m in messages if m.role != 'system' %}{{ m.content }}<|im_end|>{% endfor %}"
    "{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}",
    "nothing after the document": "{{ bos_token }}{{ messages[-2].content }}\n\n{{ messages[-1].content }}",
    "marked for training": "{% for m in messages %}{% generation %}{{ m.role | upper }} {{ m.content }}{% endgeneration %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}",
}


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def judges(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """qwen3-logit with each of the templates."""
    made = {}
    for name, source in TEMPLATES.items():
        made[name] = folder = tmp_path_factory.mktemp("judge") / "judge"
        shutil.copytree(tiny("qwen3-logit"), folder)
        if source is not None:
            (folder / "chat_template.jinja").write_text(source)
            settings = json.loads((folder / "sentence_bert_config.json").read_text())
            del settings["modality_config"]["message"]["format"]
            (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    return made


def reference(folder: Path, limit: int, pairs: list[tuple[str, str]]) -> list[list[int]]:
    """sentence-transformers' rows without their padding."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    model.max_seq_length = limit
    made = model.preprocess(pairs, prompt=model.prompts.get(model.default_prompt_name or ""))
    rows = zip(made["input_ids"].tolist(), made["attention_mask"].tolist())
    return [[one for one, real in zip(ids, mask) if real] for ids, mask in rows]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_template_gives_the_ids_of_sentence_transformers(name: str, judges: dict[str, Path]) -> None:
    folder, limit = judges[name], 150
    rows = Tokenizer(read(folder)).encode_pairs(QUERY, DOCUMENTS, limit, "end")
    expected = reference(folder, limit, [(QUERY, document) for document in DOCUMENTS])
    assert [row.ids.tolist() for row in rows] == expected
    assert sum(row.original > len(row) for row in rows) >= 2
    assert {row.second for row in rows} == {None}


def test_zerank_reads_the_query_as_the_system(tiny: Tiny) -> None:
    found = read(tiny("zerank"))
    assert (found.no_id, found.default_prompt) == (None, None)
    rows = Tokenizer(found).encode_pairs(QUERY, DOCUMENTS, 64, "end")
    assert [row.ids.tolist() for row in rows] == reference(found.folder, 64, [(QUERY, one) for one in DOCUMENTS])


@pytest.mark.parametrize("kind", ["qwen3-reranker", "qwen3-classifier"])
def test_qwen3_reads_a_pair_in_three_parts_of_which_the_body_alone_is_cut(kind: str, tiny: Tiny) -> None:
    """As the model card does it: prefix and suffix apart, and the body cut to what they leave."""
    from transformers import AutoTokenizer

    found, limit = read(tiny(kind)), 160
    form = pair_form("Given a web search query, retrieve relevant passages that answer the query")
    assert found.template == form
    card = AutoTokenizer.from_pretrained(found.folder, local_files_only=True)
    prefix, suffix = (card.encode(text, add_special_tokens=False) for text in (form.prefix, form.suffix))
    bodies = card(
        [f"{form.lead}{QUERY}{form.middle}{document}" for document in DOCUMENTS],
        add_special_tokens=False,
        truncation="longest_first",
        max_length=limit - len(prefix) - len(suffix),
    )["input_ids"]
    rows = Tokenizer(found).encode_pairs(QUERY, DOCUMENTS, limit, "end")
    assert [row.ids.tolist() for row in rows] == [[*prefix, *body, *suffix] for body in bodies]
    assert max(map(len, rows)) == limit
    assert max(row.original for row in rows) > 800


FORMS = [pair_form("judge"), PairTemplate("", "q: ", "<|im_end|>d: ", "<|im_end|>\nok", whole=True)]


@pytest.fixture(params=FORMS, ids=["apart", "whole"])
def judge(request: pytest.FixtureRequest, tiny: Tiny) -> Tokenizer:
    from dataclasses import replace

    return Tokenizer(replace(read(tiny("qwen3-reranker")), template=request.param))


LONG = "the quick brown fox jumps over the lazy dog " * 30


def test_a_cut_at_the_start_keeps_the_query_the_end_and_the_suffix(judge: Tokenizer) -> None:
    whole, cut = (judge.encode_pairs("cat", [LONG], limit, "start")[0] for limit in (5_000, 200))
    same = next(at for at, (one, other) in enumerate(zip(whole.ids, cut.ids)) if one != other)
    assert len(cut) == 200
    assert cut.ids[same:].tolist() == whole.ids[len(whole) - (200 - same) :].tolist()
    assert "cat" in judge.decode([cut.ids[:same].tolist()], skip_specials=False)[0]
    assert cut.original == whole.original == len(whole)


def test_a_giant_is_cut_as_the_whole_text_would_be(judge: Tokenizer) -> None:
    giant = "the quick brown fox " * 5_000
    for cut, part, ends in (("end", giant[:8_000], slice(None)), ("start", giant[-8_000:], slice(-40, None))):
        rows = [judge.encode_pairs("cat", [text], 200, cut)[0] for text in (giant, part)]  # type: ignore[arg-type]
        assert rows[0].ids[ends].tolist() == rows[1].ids[ends].tolist()
        assert rows[0].original > len(rows[0]) == 200


def test_a_document_may_be_limited_on_its_own(judge: Tokenizer) -> None:
    first = judge.encode([LONG], "", 5_000, "end")[0].ids[:7].tolist()
    short = judge.decode([first], skip_specials=False)[0]
    limited, most = judge.encode_pairs("cat", [LONG, short], 5_000, "end", 7)
    whole, plain = judge.encode_pairs("cat", [LONG, short], 5_000, "end")
    assert limited.ids.tolist() == most.ids.tolist() == plain.ids.tolist()
    assert (limited.original, most.original) == (whole.original, plain.original)


def test_what_does_not_fit_may_be_refused(judge: Tokenizer) -> None:
    with pytest.raises(InputTooLong, match="Document 1 with the query has"):
        judge.encode_pairs("cat", ["dog", LONG], 200, "refuse")
    assert len(judge.encode_pairs("cat", ["dog", "cat"], 200, "refuse")) == 2


def test_a_limit_below_the_form_itself_is_refused(judge: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="leaves no room"):
        judge.encode_pairs("cat", ["dog"], 3, "end")
