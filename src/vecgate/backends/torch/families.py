"""From config.json to the transformers class that computes it, or one line that says why there is none.

Knows configurations and classes; reads no weights and runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_MAPPING,
)
from transformers.utils import logging as transformers_logging

from vecgate.backends import TORCH, not_on_torch
from vecgate.backends.torch import packed
from vecgate.core import Checkpoint, Pooling
from vecgate.errors import CheckpointError

NOMIC_SIZES = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
}
"""nomic_bert as its authors wrote it: their keys -> transformers' own."""
NOMIC_FIXED = {
    "activation_function": ("swiglu",),
    "rotary_emb_fraction": (1, None),
    "rotary_emb_interleaved": (False, None),
    "rotary_emb_scale_base": (None,),
    **dict.fromkeys(("prenorm", "causal", "parallel_block", "use_rms_norm"), (False, None)),
    **dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), (False,)),
    **dict.fromkeys(("num_experts", "moe_every_n_layers"), (0, None)),
}
"""What transformers' class takes for granted of them; an absent key counts as the first value."""
BY_LENGTH = ("dynamic", "longrope")
PADDED = ("deberta-v2", "mpnet", "t5")
"""Families whose scores depend on distances that they count over the whole batch: their rows can't stand side by side."""
HEADS = {
    **dict.fromkeys(("albert", "bert", "camembert", "electra", "ernie", "roberta", "xlm-roberta"), "encoder"),
    **dict.fromkeys(("distilbert", "eurobert", "modernbert"), ""),
    "gte": "layers.{last}",
}
"""Families of rerankers with a head of their own -> the module of the base model that every row may leave as one state."""
HEAD_POOLING: dict[str, Pooling] = {"cls": "cls", "bos": "cls", "mean": "mean"}
"""config.json's classifier_pooling -> that state."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """kind: the class to load. last_token: a decoder's reranker, scored here from the last real token's hidden state.

    packs: rows stand side by side without padding. narrows: then the module after which one state a row is enough for a
    reranker's head, and which one.
    """

    kind: type[PreTrainedModel]
    config: PreTrainedConfig
    last_token: bool = False
    packs: bool = False
    narrows: tuple[str, Pooling] | None = None

    @property
    def attention(self) -> str:
        """sdpa, but for the classes that have none and for scores capped before the softmax, which sdpa can't do."""
        capped = getattr(self.config, "attn_logit_softcapping", None)
        if not getattr(self.kind, "_supports_sdpa", False) or capped:
            return "eager"
        return packed.NAME if self.packs else "sdpa"


def find(checkpoint: Checkpoint, packs: bool = True) -> Architecture:
    """The class and its configuration, packed where it can be and `packs` allows it; raises CheckpointError for a family
    or a form that is not served."""
    found = _find(checkpoint)
    if not packs or checkpoint.family in PADDED or found.attention == "eager":
        return found
    if checkpoint.task == "embed" or found.last_token:
        return replace(found, packs=True)
    pooled = HEAD_POOLING.get(getattr(found.config, "classifier_pooling", "cls"))
    if pooled is None or checkpoint.family not in HEADS:
        return found
    module = HEADS[checkpoint.family].format(last=found.config.num_hidden_layers - 1)
    return replace(found, packs=True, narrows=(module, pooled))


def _find(checkpoint: Checkpoint) -> Architecture:
    _refuse_quantised(checkpoint)
    if checkpoint.task not in TORCH.get(checkpoint.family, ()):
        raise CheckpointError(not_on_torch(checkpoint.family, checkpoint.task))
    config = _read(checkpoint)
    if checkpoint.task == "rerank":
        return _reranker(checkpoint, config)
    kind = _mapped(MODEL_FOR_TEXT_ENCODING_MAPPING, config)  # T5's encoder, say, without its decoder
    return Architecture(kind or _base(checkpoint, config), config)


def _reranker(checkpoint: Checkpoint, config: PreTrainedConfig) -> Architecture:
    """An encoder with its head; of a decoder the backbone alone, since transformers looks for the last token by its id."""
    if checkpoint.yes_id is not None:
        if getattr(config, "final_logit_softcapping", None):
            raise CheckpointError(f"{_path(checkpoint)}: final_logit_softcapping is not supported for a reranker.")
        return Architecture(_base(checkpoint, config), config, last_token=True)
    if config.num_labels != 1:
        raise CheckpointError(f"{checkpoint.name}: a reranker has 1 label, config.json has {config.num_labels}.")
    kind = _mapped(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, config)
    if kind is None or issubclass(kind, GenericForSequenceClassification):
        return Architecture(_base(checkpoint, config), config, last_token=True)
    return Architecture(kind, config)


def _base(checkpoint: Checkpoint, config: PreTrainedConfig) -> type[PreTrainedModel]:
    kind = _mapped(MODEL_MAPPING, config)
    if kind is None or config.is_encoder_decoder:
        raise CheckpointError(
            f"{checkpoint.name}: transformers has no {checkpoint.task} model for the family {checkpoint.family!r}."
        )
    return kind


def _mapped(mapping: Any, config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    found = mapping.get(type(config), None)
    kind: type[PreTrainedModel] | None = found[0] if isinstance(found, tuple) else found
    return kind


def _path(checkpoint: Checkpoint) -> str:
    return str(checkpoint.folder / "config.json")


# config.json


def _refuse_quantised(checkpoint: Checkpoint) -> None:
    for held in (checkpoint.quantization, checkpoint.config.get("quantization_config")):
        method = held.get("quant_method") if isinstance(held, dict) else None
        if method is not None:
            raise CheckpointError(
                f"{checkpoint.name}: its weights are quantised by {method}, which no backend reads; "
                "use the original, unquantised repository."
            )
    if checkpoint.quantization is not None:
        raise CheckpointError(
            f"{checkpoint.name}: its weights are quantised for MLX, which the torch backend can't read; "
            "use BACKEND=mlx on Apple Silicon, or the original, unquantised repository."
        )


def _read(checkpoint: Checkpoint) -> PreTrainedConfig:
    config: PreTrainedConfig
    with quiet(), explained(checkpoint):
        if checkpoint.family == "nomic_bert" and "n_embd" in checkpoint.config:
            config = CONFIG_MAPPING["nomic_bert"].from_dict(_native_nomic(checkpoint))
        else:
            config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
    _refuse_shared_rope(checkpoint, config)
    config.use_cache = False
    config.return_dict = True
    if checkpoint.config.get("is_causal") is False:  # of gte-Qwen2, whose own code alone may say it
        config.is_causal = False
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = checkpoint.pad_id
    return config


def _refuse_shared_rope(checkpoint: Checkpoint, config: PreTrainedConfig) -> None:
    """Two kinds of rope choose their frequencies by the longest row of a batch, and so would change its neighbours."""
    rope = getattr(config, "rope_parameters", None) or {}
    for one in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if one.get("rope_type") in BY_LENGTH:
            limit = one.get("original_max_position_embeddings") or config.max_position_embeddings
            if checkpoint.max_tokens > limit:
                raise CheckpointError(
                    f"{_path(checkpoint)}: a row of more than {limit} tokens would change others of its batch by the rope_type "
                    f"{one['rope_type']!r}; set max_seq_length to {limit} or less in sentence_bert_config.json."
                )


def _native_nomic(checkpoint: Checkpoint) -> dict[str, Any]:
    """The authors' config.json in transformers' words; transformers reads theirs as its own defaults, without a word."""
    theirs = checkpoint.config
    for key, allowed in NOMIC_FIXED.items():
        if (value := theirs.get(key, allowed[0])) not in allowed:
            raise CheckpointError(f"{_path(checkpoint)}: {key} {value!r} is not supported for nomic_bert on torch.")
    trained = theirs.get("max_trained_positions") or theirs.get("n_positions") or 0
    if theirs.get("rotary_scaling_factor") is not None and checkpoint.max_tokens > trained:
        raise CheckpointError(
            f"{_path(checkpoint)}: rotary_scaling_factor is not supported for nomic_bert on torch; "
            f"set max_seq_length to {trained} or less in sentence_bert_config.json."
        )
    native = {ours: theirs[key] for key, ours in NOMIC_SIZES.items() if key in theirs}
    rope = {"rope_type": "default", "rope_theta": float(theirs.get("rotary_emb_base", 10000.0))}
    kept = {
        key: theirs[key] for key in ("vocab_size", "type_vocab_size", "pad_token_id") if theirs.get(key) is not None
    }
    return {**kept, **native, "hidden_act": "silu", "rope_parameters": rope}


# transformers' own words


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its bars and its loading report: what matters of the report becomes an error here."""
    talk: Any = transformers_logging
    level, bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    talk.set_verbosity_error()
    if bars:
        talk.disable_progress_bar()
    try:
        yield
    finally:
        talk.set_verbosity(level)
        if bars:
            talk.enable_progress_bar()


@contextmanager
def explained(checkpoint: Checkpoint) -> Iterator[None]:
    """Whatever transformers says of unreadable files, as one line."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError, StrictDataclassError) as error:
        raise CheckpointError(f"{checkpoint.folder}: transformers can't open it: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__)
