"""Rerankers: cross-encoders with a head, and decoders that say yes or no."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer

from tests.tiny import files, words
from tests.tiny.decoders import QWEN3_HUB, QWEN3_LATER, qwen3_config
from tests.tiny.encoders import IDENTITY, MODERN_HUB, MODERN_LATER, bert_config, modern_config, xlmr_config
from tests.tiny.weights import vary

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided."
    ' Note that the answer can only be "yes" or "no".'
)
PREFIX = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
JUDGE = (
    "{%- set ns = namespace(instruct='" + INSTRUCTION + "', query='', document='') -%}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'system' -%}{%- set ns.instruct = message.content -%}{%- endif -%}"
    "{%- if message.role == 'query' -%}{%- set ns.query = message.content -%}{%- endif -%}"
    "{%- if message.role == 'document' -%}{%- set ns.document = message.content -%}{%- endif -%}"
    "{%- endfor -%}"
    "{{ '<|im_start|>system\\n" + SYSTEM + "<|im_end|>\\n<|im_start|>user\\n' }}"
    "{{ '<Instruct>: ' + ns.instruct + '\\n<Query>: ' + ns.query + '\\n<Document>: ' + ns.document }}"
    "{{ '<|im_end|>\\n<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}"
)
"""Qwen3-Reranker's prompt as a chat template with the roles that sentence-transformers gives a pair."""
ASKER = (
    "{%- for message in messages -%}"
    "{%- if message.role in ['query', 'system'] -%}{{ '<|im_start|>system\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- elif message.role in ['document', 'user'] -%}{{ '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endif -%}{%- endfor -%}{{ '<|im_start|>assistant\\n' }}"
)
"""zerank's: the query is the system's text."""


def bert(folder: Path) -> None:
    """ms-marco-MiniLM: one logit, token types 0 and 1, no activation."""
    tokenizer = words.wordpiece()
    config = bert_config(tokenizer, num_labels=1)
    config.sentence_transformers = {"activation_fn": IDENTITY, "version": "4.0.1"}
    model = transformers.BertForSequenceClassification(config)
    _finish(model, model.classifier)
    files.save(model, folder)
    files.save_tokenizer(
        tokenizer, folder, words.BERT_NAMES, types=True, kind="BertTokenizer", do_lower_case=True, model_max_length=96
    )


def xlmr(folder: Path) -> None:
    """bge-reranker: one logit, no token types, nothing said of an activation."""
    tokenizer = words.unigram()
    model = transformers.XLMRobertaForSequenceClassification(xlmr_config(tokenizer, num_labels=1))
    _finish(model, model.classifier.out_proj)
    files.save(model, folder)
    files.save_tokenizer(tokenizer, folder, words.XLMR_NAMES, model_max_length=96)


def modernbert(folder: Path) -> None:
    """gte-reranker-modernbert: the mean by classifier_pooling, then head and classifier; float16 on disk."""
    _modernbert(folder, "mean", torch.float16)


def modernbert_cls(folder: Path) -> None:
    """One that pools at [CLS]."""
    _modernbert(folder, "cls", torch.float32)


def _modernbert(folder: Path, pooling: Any, dtype: torch.dtype) -> None:
    tokenizer = words.modern()
    config = modern_config(tokenizer, classifier_pooling=pooling, num_labels=1)
    model = transformers.ModernBertForSequenceClassification(config)
    _finish(model, model.classifier)
    files.save(model, folder, dtype=dtype, config=MODERN_HUB, without=MODERN_LATER)
    files.save_tokenizer(tokenizer, folder, words.BERT_NAMES, model_max_length=128)


def qwen3(folder: Path) -> None:
    """Qwen3-Reranker as it is published: a causal language model, tied, bfloat16, nothing put after a text."""
    tokenizer, model = words.qwen(end=False), _judge()
    _save_qwen3(model, folder, torch_dtype="bfloat16")
    _qwen3_tokenizer(folder, tokenizer)


def qwen3_logit(folder: Path) -> None:
    """The same as sentence-transformers 5.4 and later save it: Transformer and LogitScore, a chat template, a prompt."""
    qwen3(folder)
    tokenizer = words.qwen(end=False)
    _logit_score(folder, words.id_of(tokenizer, "yes"), words.id_of(tokenizer, "no"))
    (folder / "chat_template.jinja").write_text(JUDGE)
    prompts = {"web": "Given a web search query, find the passages that answer it"}
    files.shared(folder, prompts, default_prompt_name="web", model_type="CrossEncoder", activation_fn=IDENTITY)


def zerank(folder: Path) -> None:
    """zerank: the logit of one token, nothing taken away; the query stands where the system speaks."""
    qwen3(folder)
    _logit_score(folder, words.id_of(words.qwen(end=False), "Yes"), None)
    (folder / "chat_template.jinja").write_text(ASKER)
    files.shared(folder, {}, model_type="CrossEncoder", activation_fn="torch.nn.modules.activation.Sigmoid")


def qwen3_classifier(folder: Path) -> None:
    """A Qwen3ForSequenceClassification conversion: its one row is yes' less no's, its logits are the same."""
    tokenizer, judge = words.qwen(end=False), _judge()
    config = qwen3_config(tokenizer, num_labels=1, pad_token_id=words.id_of(tokenizer, "<|endoftext|>"))
    model = transformers.Qwen3ForSequenceClassification(config)
    model.model.load_state_dict(judge.model.state_dict())
    yes, no = words.id_of(tokenizer, "yes"), words.id_of(tokenizer, "no")
    table = judge.model.embed_tokens.weight
    with torch.no_grad():
        model.score.weight.copy_(table[yes : yes + 1] - table[no : no + 1])
    files.save(
        model, folder, config={**QWEN3_HUB, "torch_dtype": "float32"}, without=set(QWEN3_LATER) - {"pad_token_id"}
    )
    _qwen3_tokenizer(folder, tokenizer)


def _judge() -> Any:
    """The causal model behind all of them; the rows of yes and no made wide apart, so that scores differ."""
    model: Any = transformers.Qwen3ForCausalLM(qwen3_config(words.qwen(end=False)))
    vary_tied(model)
    return model


def vary_tied(model: Any) -> None:
    """`vary`, but the head of a tied model is its table of embeddings, which stays wide."""
    table = model.model.embed_tokens.weight.detach().clone()
    vary(model)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(table)


def _save_qwen3(model: Any, folder: Path, **config: Any) -> None:
    hub = {**QWEN3_HUB, **config}
    files.save(model, folder, "Qwen3ForCausalLM", dtype=torch.bfloat16, config=hub, without=QWEN3_LATER)


def _qwen3_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    files.save_tokenizer(tokenizer, folder, words.QWEN_NAMES, kind="Qwen2Tokenizer", model_max_length=256)


def _logit_score(folder: Path, true: int | None, false: int | None) -> None:
    files.chain(folder, "Transformer", "LogitScore", new=True)
    told = {"true_token_id": true, "false_token_id": false, "module_input_name": "causal_logits"}
    files.write(folder / "1_LogitScore" / "config.json", told)
    form = {"method": "forward", "method_output_name": "logits"}
    files.write(
        folder / "sentence_bert_config.json",
        {
            "transformer_task": "text-generation",
            "modality_config": {"text": form, "message": {**form, "format": "flat"}},
            "module_output_name": "causal_logits",
        },
    )


def _finish(model: Any, classifier: torch.nn.Linear) -> None:
    vary(model)
    with torch.no_grad():
        classifier.weight.mul_(3)
