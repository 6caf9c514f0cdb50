"""How a reranker's checkpoint reads a pair and what scores it: by its files, by the table, or not at all."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine import decoder
from vecgate.core import Checkpoint
from vecgate.engine.checkpoint import read
from vecgate.engine.families import WEB_SEARCH, pair_form
from vecgate.engine.tokenizer import Tokenizer
from vecgate.errors import CheckpointError

CHAT = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
PAIRS = "{{ messages[0].content if messages[0].role == 'query' }}<|im_end|>{{ messages[1].content if messages[1].role == 'document' }}"
CHATML = "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}"


def judge(folder: Path, **options: Any) -> Checkpoint:
    return read(decoder.make(folder, **options), task="rerank")


def test_qwen3_reranker_is_asked_for_yes_or_no(tmp_path: Path) -> None:
    found = judge(tmp_path / "m")
    assert (found.yes_id, found.no_id, found.template) == (6, 7, pair_form(WEB_SEARCH))
    assert (found.prompts, found.default_prompt) == ({"query": WEB_SEARCH}, "query")
    assert (found.max_tokens, found.tail, found.activation) == (8192, (), "Sigmoid")


def test_a_head_takes_the_place_of_yes_and_no(tmp_path: Path) -> None:
    found = judge(tmp_path / "m", architectures=["Qwen3ForSequenceClassification"], num_labels=1)
    assert (found.yes_id, found.no_id, found.template) == (None, None, pair_form(WEB_SEARCH))


@pytest.mark.parametrize("name", ["query", "web"])
def test_the_instruction_may_be_said(name: str, tmp_path: Path) -> None:
    folder = decoder.make(tmp_path / "reranker")
    decoder.write(
        folder / "config_sentence_transformers.json",
        {"model_type": "CrossEncoder", "prompts": {"web": "the files'"}, "default_prompt_name": "web"},
    )
    assert read(folder).template == pair_form("the files'")
    assert read(folder, prompts={name: "find cats"}).template == pair_form("find cats")
    with pytest.raises(CheckpointError, match="whose one prompt is called query; not sts"):
        read(folder, prompts={"sts": "x"})


@pytest.mark.parametrize("missing", ["yes", "no"])
def test_yes_and_no_must_be_one_token_each(missing: str, tmp_path: Path) -> None:
    words = [word for word in ("yes", "no", "Hello", "world!") if word != missing]
    folder = decoder.make(tmp_path / "reranker", words=words)
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json makes \[UNK\] of '{missing}'; such a reranker"):
        read(folder)


def test_logit_score_of_one_token_and_of_two(tmp_path: Path) -> None:
    folder = decoder.scored(decoder.make(tmp_path / "m"), chat=CHAT, true_token_id=9)
    found = read(folder)
    assert (found.yes_id, found.no_id, found.max_tokens) == (9, 7, 40960)
    assert found.template is not None
    assert (found.template.lead, found.template.suffix) == ("<|im_start|>query ", "<|im_end|>")
    decoder.write(folder / "1_LogitScore" / "config.json", {"true_token_id": 9, "false_token_id": None})
    assert (read(folder).yes_id, read(folder).no_id) == (9, None)


def test_the_default_prompt_is_what_the_system_says(tmp_path: Path) -> None:
    folder = decoder.scored(decoder.make(tmp_path / "m"), chat=CHAT)
    said = {"prompts": {"web": "judge!"}, "default_prompt_name": "web"}
    decoder.write(folder / "config_sentence_transformers.json", {"model_type": "CrossEncoder", **said})
    template = read(folder).template
    assert template is not None
    assert template.lead == "<|im_start|>system judge!<|im_end|><|im_start|>query "
    decoder.write(folder / "config_sentence_transformers.json", said)
    assert "system" not in str(read(folder).template)


def test_without_messages_a_pair_is_read_as_the_tokenizer_puts_it_after_the_prompt(tmp_path: Path) -> None:
    folder = decoder.scored(decoder.make(tmp_path / "m", single="<s> $A"), messages=False, chat=CHAT)
    decoder.write(
        folder / "config_sentence_transformers.json",
        {"model_type": "CrossEncoder", "prompts": {"p": "Hello "}, "default_prompt_name": "p"},
    )
    found = read(folder)
    assert (found.template, found.yes_id) == (None, 6)
    row = Tokenizer(found).encode_pairs("cat", ["dog"], 64, "end")[0]
    assert Tokenizer(found).decode([row.ids.tolist()], skip_specials=False) == ("<s> Hello cat dog",)


@pytest.mark.parametrize(
    ("score", "words"),
    [
        ({"true_token_id": None}, "1_LogitScore/config.json sets true_token_id to None, which is no token id"),
        ({"true_token_id": "yes"}, "sets true_token_id to 'yes'"),
        ({"false_token_id": True}, "sets false_token_id to True"),
        ({"true_token_id": 99}, "LogitScore names the token 99, and the vocabulary has 13"),
        ({"false_token_id": -1}, "names the token -1"),
        ({"module_input_name": "scores"}, "sets module_input_name to 'scores'; known: causal_logits"),
    ],
)
def test_a_wrong_logit_score_is_named(score: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = decoder.scored(decoder.make(tmp_path / "m"), chat=CHAT, **score)
    with pytest.raises(CheckpointError, match=words):
        read(folder)


def test_logit_score_needs_a_chat_template_and_the_right_task(tmp_path: Path) -> None:
    folder = decoder.scored(decoder.make(tmp_path / "m"))
    with pytest.raises(CheckpointError, match=r"asks for messages, but there is no chat_template\.jinja, nor a"):
        read(folder)
    decoder.write(folder / "sentence_bert_config.json", {"max_seq_length": 5})
    with pytest.raises(CheckpointError, match="must set transformer_task to 'text-generation'"):
        read(folder)
    decoder.write(folder / "sentence_bert_config.json", {"transformer_task": "fill-mask"})
    with pytest.raises(CheckpointError, match="sets transformer_task to 'fill-mask', which can't be followed"):
        read(folder)


def test_a_template_of_ones_own_that_speaks_of_pairs_wins_over_the_table(tmp_path: Path) -> None:
    found = judge(tmp_path / "a", tokenizer={"chat_template": PAIRS})
    assert found.template is not None
    assert (found.template.lead, found.template.middle) == ("", "<|im_end|>")
    assert judge(tmp_path / "b", tokenizer={"chat_template": CHATML}).template == pair_form(WEB_SEARCH)


def test_other_decoders_need_a_template_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a llama that is to rerank, and nothing says how it reads a pair"):
        judge(tmp_path / "a", family="llama", architectures=["LlamaForCausalLM"])
    head: dict[str, Any] = {"family": "llama", "architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
    assert judge(tmp_path / "b", **head).template is None
    with pytest.raises(CheckpointError, match="has no place for a query and a document, which LlamaForSeq"):
        judge(tmp_path / "c", tokenizer={"chat_template": CHATML}, **head)
    assert judge(tmp_path / "d", tokenizer={"chat_template": PAIRS}, **head).template is not None
