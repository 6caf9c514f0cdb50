"""A decoder of no weights: the JSON of a folder, a tokenizer of words, and safetensors that name tensors of no size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors

SPECIALS = ("<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "[UNK]")
WORDS = ("yes", "no", "a", "cat", "dog", "Hello", "world!")


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def make(
    path: Path,
    family: str = "qwen3",
    *,
    single: str = "$A",
    tensors: Sequence[str] = ("model.norm.weight",),
    tokenizer: dict[str, Any] | None = None,
    words: Sequence[str] = WORDS,
    **config: Any,
) -> Path:
    """single: what the post-processor makes of a text. tokenizer: tokenizer_config.json."""
    vocabulary = {word: at for at, word in enumerate((*SPECIALS, *words))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(list(SPECIALS))
    ids = [(token, vocabulary[token]) for token in SPECIALS]
    made.post_processor = processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=ids)
    path.mkdir(parents=True, exist_ok=True)
    made.save(str(path / "tokenizer.json"))
    said = {
        "model_type": family,
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": len(vocabulary),
        "pad_token_id": 2,
    }
    write(path / "config.json", {**said, "max_position_embeddings": 40960, "rope_theta": 1e6, **config})
    write(path / "tokenizer_config.json", {"eos_token": "</s>", "model_max_length": 131072, **(tokenizer or {})})
    header = json.dumps({name: {"dtype": "BF16", "shape": [0], "data_offsets": [0, 0]} for name in tensors}).encode()
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return path


def scored(path: Path, *, messages: bool = True, chat: str | None = None, **score: Any) -> Path:
    """The folder as sentence-transformers saves a reranker that ends in LogitScore."""
    form = {"method": "forward", "method_output_name": "logits"}
    names = ("base.modules.transformer.Transformer", "cross_encoder.modules.logit_score.LogitScore")
    listed = [
        {"idx": at, "path": where, "type": f"sentence_transformers.{name}"}
        for at, (where, name) in enumerate(zip(("", "1_LogitScore"), names))
    ]
    write(path / "modules.json", listed)
    write(path / "1_LogitScore" / "config.json", {"true_token_id": 6, "false_token_id": 7, **score})
    modalities = {"text": form, **({"message": {**form, "format": "flat"}} if messages else {})}
    write(path / "sentence_bert_config.json", {"transformer_task": "text-generation", "modality_config": modalities})
    if chat is not None:
        (path / "chat_template.jinja").write_text(chat)
    return path
