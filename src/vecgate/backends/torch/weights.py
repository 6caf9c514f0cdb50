"""From a checkpoint's files to a whole torch model in the chosen type, or one line that says what is wrong.

Knows transformers' classes and loading; runs nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_MAPPING,
)
from transformers.utils import logging as transformers_logging

from vecgate.backends.torch.devices import Device
from vecgate.core import Checkpoint, Dense
from vecgate.errors import CheckpointError, ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NO_FLOAT16 = ("gemma", "qwen3", "t5", "mt5", "umt5")
"""Families (by prefix) whose activations leave float16's range: EmbeddingGemma reaches 8e5, the limit is 65504."""

# Tensors a checkpoint may have beside an encoder: the head of its pre-training, and buffers that are computed.
SPARE = (
    "pooler.", "position_ids", "inv_freq", "cls.", "lm_head.", "mlm_head.", "head.", "decoder.", "classifier.", "score.",
    "vocab_transform.", "vocab_layer_norm.", "vocab_projector.", "discriminator_predictions.", "generator_",
    "lm_predictions.", "mask_predictions.", "qa_outputs.", "pre_classifier.", "predictions.", "sop_classifier.",
)  # fmt: skip


def dtype_for(name: str, checkpoint: Checkpoint, device: Device) -> torch.dtype:
    """What to compute in. auto: float32 on a CPU, else the stored type unless the family or the device can't."""
    no_float16 = checkpoint.family.startswith(NO_FLOAT16)
    if name == "auto":
        known = device.place.type != "cpu" and checkpoint.stored_dtype in DTYPES
        name = checkpoint.stored_dtype if known else "float32"
        if name == "float16" and no_float16:
            name = "bfloat16"
        if name == "bfloat16" and not device.bfloat16:
            name = "float32"
    if name not in DTYPES:
        raise ConfigError(f"DTYPE={name!r} is not known; use auto, {', '.join(DTYPES)}.")
    if name == "float16" and no_float16:
        raise ConfigError(f"DTYPE=float16 overflows in the family {checkpoint.family!r}; use bfloat16 or float32.")
    if name == "bfloat16" and not device.bfloat16:
        raise ConfigError(f"DTYPE=bfloat16 is not supported by {device.label}; use float32 or float16.")
    return DTYPES[name]


def batch_tokens(checkpoint: Checkpoint, config: PreTrainedConfig, dtype: torch.dtype, device: Device) -> int:
    """Tokens of one batch: what the device likes, halved until it fits; ConfigError where the longest row does not."""
    stored: torch.dtype = getattr(torch, checkpoint.stored_dtype)
    weights = checkpoint.weight_bytes * dtype.itemsize // stored.itemsize
    held = sum(device.held())
    tokens = max(device.batch_tokens, checkpoint.max_tokens)
    while (needed := weights + batch_bytes(config, tokens, checkpoint.max_tokens, dtype)) + held > device.limit_bytes:
        if tokens <= checkpoint.max_tokens:
            raise ConfigError(
                f"{checkpoint.name} needs {_gib(weights)} for its weights in {name_of(dtype)} and {_gib(needed - weights)} "
                f"for its longest input, and this process holds {_gib(held)}: more than DEVICE_MEMORY_FRACTION allows, "
                f"{device.limit_bytes / device.total_bytes:.2f} x {_gib(device.total_bytes)} on {device.label}."
            )
        tokens = max(tokens // 2, checkpoint.max_tokens)
    return min(tokens, device.batch_tokens)


def batch_bytes(config: PreTrainedConfig, tokens: int, longest: int, dtype: torch.dtype) -> int:
    """An upper estimate of what one batch holds at its fullest; 0.9 of it was measured on MiniLM (64 rows of 256).

    Per token: eight of the hidden width (input, residual, q, k, v, context, what sdpa lays out anew) and two of the
    feed-forward's in the compute type; its row of the mask; the last hidden state and its masked product in float32.
    """
    text: Any = config.get_text_config()
    hidden = int(text.hidden_size)
    inner = int(getattr(text, "intermediate_size", None) or 4 * hidden)
    return tokens * ((8 * hidden + 2 * inner + longest) * dtype.itemsize + 2 * 4 * hidden)


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def read_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    if checkpoint.quantization is not None:
        raise CheckpointError(
            f"{checkpoint.name}: its weights are quantised, which the torch backend can't read; "
            "use BACKEND=mlx or the unquantised model."
        )
    with _quiet(), _explained(checkpoint):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            checkpoint.folder, local_files_only=True, trust_remote_code=False
        )
    if checkpoint.task == "rerank" and config.num_labels != 1:
        raise CheckpointError(f"{checkpoint.name}: a reranker has 1 label, config.json has {config.num_labels}.")
    config.use_cache = False
    config.return_dict = True
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = checkpoint.pad_id
    return config


def read_model(checkpoint: Checkpoint, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The whole model or an error: transformers fills a missing tensor with noise, which would be a wrong vector."""
    kind: Any = _class(checkpoint, config)
    pooler = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    model: PreTrainedModel
    with _quiet(), _explained(checkpoint):
        model, info = kind.from_pretrained(
            checkpoint.folder,
            config=config,
            dtype=dtype,
            attn_implementation="sdpa" if getattr(kind, "_supports_sdpa", False) else "eager",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **({"add_pooling_layer": False} if pooler else {}),
        )
    _refuse_holes(checkpoint, info, model.base_model_prefix)
    if dtype != torch.float32:
        _widen_head(model)
    return model


def _class(checkpoint: Checkpoint, config: PreTrainedConfig) -> type[PreTrainedModel]:
    if checkpoint.task == "rerank":
        kind = _mapped(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, config)
    else:
        kind = _mapped(MODEL_FOR_TEXT_ENCODING_MAPPING, config)  # T5's encoder, say, without its decoder
        if kind is None and not config.is_encoder_decoder:
            kind = _mapped(MODEL_MAPPING, config)
    if kind is None:
        raise CheckpointError(
            f"{checkpoint.name}: transformers has no {checkpoint.task} model for the family {checkpoint.family!r}."
        )
    return kind


def _mapped(mapping: Any, config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    found = mapping.get(type(config), None)
    kind: type[PreTrainedModel] | None = found[0] if isinstance(found, tuple) else found
    return kind


def _refuse_holes(checkpoint: Checkpoint, info: dict[str, Any], prefix: str) -> None:
    missing = sorted(info["missing_keys"])
    extra = sorted(name for name in info["unexpected_keys"] if not _spare(name, prefix))
    for names, what in ((missing, "its safetensors files lack"), (extra, "config.json has no place for")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"{checkpoint.folder}: {what} the {checkpoint.family} tensor {names[0]!r}{more}.")


def _spare(tensor: str, prefix: str) -> bool:
    """Whether a tensor the model has no place for may be left out: a head or a buffer, never a layer of the encoder."""
    name = tensor.removeprefix(f"{prefix}.")
    return name.startswith(SPARE) or name.endswith((".position_ids", ".inv_freq"))


def _widen_head(model: PreTrainedModel) -> None:
    """A logit in bfloat16 has steps of 0.06 at 10: a reranker's head computes in float32 whatever the type."""
    for name in ("classifier", "score"):
        head = getattr(model, name, None)
        if isinstance(head, torch.nn.Module):
            head.float()
            head.register_forward_pre_hook(lambda _, args: tuple(value.float() for value in args))


@contextmanager
def _quiet() -> Iterator[None]:
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
def _explained(checkpoint: Checkpoint) -> Iterator[None]:
    """Whatever transformers says of unreadable files, as one line."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint.folder}: transformers can't open it: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__)


def read_dense(layer: Dense) -> torch.nn.Module:
    """sentence-transformers' Dense in float32; its activation is a class path of torch.nn without arguments."""
    try:
        tensors = load_file(layer.weights)
        weight, bias = tensors["linear.weight"].float(), tensors["linear.bias"].float() if layer.bias else None
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(f"{layer.weights}: it can't be read as a Dense layer: {first_line(error)}") from error
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return torch.nn.Sequential(linear, _activation(layer))


def _activation(layer: Dense) -> torch.nn.Module:
    module, _, name = layer.activation.rpartition(".")
    if module.split(".")[0] in ("", "torch") and name in ("Identity", *torch.nn.modules.activation.__all__):
        with suppress(TypeError):  # the few that take arguments
            made: torch.nn.Module = getattr(torch.nn, name)()
            return made
    raise CheckpointError(f"{layer.weights.parent}: the activation {layer.activation!r} is not one of torch.nn's.")
