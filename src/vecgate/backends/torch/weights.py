"""From a checkpoint's files to a whole torch model in the chosen type, or one line that names the file and the tensor.

Knows tensors and their names; runs no model.
"""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from vecgate.backends.torch.families import Architecture, explained, first_line, quiet
from vecgate.core import Checkpoint, Dense
from vecgate.errors import CheckpointError

FLOATS = {"F64", "F32", "F16", "BF16", "torch.float64", "torch.float32", "torch.float16", "torch.bfloat16"}
COUNTS = ("position_ids", "token_type_ids", "num_batches_tracked")
"""Buffers that old files hold as integers; they are computed."""

# Tensors a checkpoint may have beside an encoder: the head of its pre-training, and buffers that are computed.
SPARE = (
    "pooler.", "position_ids", "inv_freq", "cls.", "lm_head.", "mlm_head.", "head.", "decoder.", "classifier.", "score.",
    "vocab_transform.", "vocab_layer_norm.", "vocab_projector.", "discriminator_predictions.", "generator_",
    "dense.", "lm_predictions.", "mask_predictions.", "qa_outputs.", "pre_classifier.", "predictions.", "sop_classifier.",
)  # fmt: skip
TABLES = ("embed_tokens.weight", "model.embed_tokens.weight")
"""Where a decoder keeps its input embeddings, which a tied head shares."""
NOMIC = (
    ("layers", "encoder.layers"),
    ("embeddings.LayerNorm", "emb_ln"),
    ("self_attn.o_proj", "attn.out_proj"),
    ("self_attn.q_proj", "attn.Wqkv"),
    ("self_attn.k_proj", "attn.Wqkv"),
    ("self_attn.v_proj", "attn.Wqkv"),
    ("up_proj", "fc11"),
    ("gate_proj", "fc12"),
    ("down_proj", "fc2"),
    ("post_attention_layernorm", "norm1"),
    ("post_mlp_layernorm", "norm2"),
)
"""transformers' names -> those in nomic_bert's files."""

BROKEN = "holds NaN or infinity; fetch the file again."

Held = Mapping[str, Any]
"""Tensor name -> a tensor, or safetensors' slice that reads it when asked."""


def read_model(checkpoint: Checkpoint, found: Architecture, dtype: torch.dtype) -> PreTrainedModel:
    """The whole model or an error: transformers fills a missing tensor with noise, which would be a wrong vector."""
    kind: Any = found.kind
    bare = not _has_head(checkpoint, found) and "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    with quiet(), _opened(checkpoint) as held:
        _refuse_odd(checkpoint, found, held)
        with explained(checkpoint):
            model, info = kind.from_pretrained(
                None,
                config=found.config,
                state_dict=dict(held),
                dtype=dtype,
                attn_implementation=found.attention,
                ignore_mismatched_sizes=True,  # reported here with its name
                output_loading_info=True,
                **({"add_pooling_layer": False} if bare else {}),
            )
        _refuse_holes(checkpoint, info, model.base_model_prefix)
        _refuse_broken(checkpoint, model, held)
    loaded: PreTrainedModel = model
    if dtype != torch.float32:
        _widen_head(loaded)
    return loaded


def _has_head(checkpoint: Checkpoint, found: Architecture) -> bool:
    return checkpoint.task == "rerank" and not found.last_token


def read_score(checkpoint: Checkpoint, model: PreTrainedModel) -> torch.nn.Sequential:
    """What scores a decoder's last hidden state, in float32.

    A causal language model scores by one row of its head less another; a classifier has the one row `score.weight`.
    """
    hidden = _hidden(model)
    with _opened(checkpoint) as held:
        for name in ("lm_head.bias", "score.bias"):
            if name in held:
                raise CheckpointError(f"{_where(checkpoint)}: the tensor {name!r} is not supported for a reranker.")
        if checkpoint.yes_id is None:
            row = _rows(checkpoint, held, "score.weight", (0,), hidden)
        else:
            ids = (checkpoint.yes_id,) if checkpoint.no_id is None else (checkpoint.yes_id, checkpoint.no_id)
            rows = _rows(checkpoint, held, _head_of(model, held), ids, hidden)
            row = rows[:1] - rows[1:].sum(0)
    linear = torch.nn.Linear(hidden, 1, bias=False)
    linear.load_state_dict({"weight": row})
    return torch.nn.Sequential(linear)


def _head_of(model: PreTrainedModel, held: Held) -> str:
    """The name of the output embeddings: a head of its own where the files have one, else the tied input table."""
    tied = getattr(model.config, "tie_word_embeddings", False)
    return next((name for name in TABLES if tied and "lm_head.weight" not in held and name in held), "lm_head.weight")


def _rows(checkpoint: Checkpoint, held: Held, name: str, ids: tuple[int, ...], hidden: int) -> torch.Tensor:
    """(rows, H) float32 of a table in the files, none else of it read."""
    if name not in held:
        raise CheckpointError(f"{_where(checkpoint)} lacks the {checkpoint.family} tensor {name!r}.")
    height, width = shape = _shape(held[name]) if len(_shape(held[name])) == 2 else (0, 0)
    if width != hidden or not all(0 <= one < height for one in ids) or (name == "score.weight" and height != 1):
        raise CheckpointError(
            f"{_where(checkpoint)}: the {checkpoint.family} tensor {name!r} has the shape {list(shape)}, which has no "
            f"rows {list(ids)} of {hidden}."
        )
    rows = torch.stack([held[name][one].float() for one in ids])
    if not _finite(rows):
        raise CheckpointError(f"{_where(checkpoint)}: the {checkpoint.family} tensor {name!r} {BROKEN}")
    return rows


# the files


@contextmanager
def _opened(checkpoint: Checkpoint) -> Iterator[dict[str, Any]]:
    """Every tensor of the checkpoint's files by its name, read when asked; pickle only with weights_only."""
    held: dict[str, Any] = {}
    with ExitStack() as stack:
        for path in checkpoint.weights:
            for name, tensor in _tensors(path, stack).items():
                if name in held:
                    raise CheckpointError(f"{path} holds the tensor {name!r} again; fetch the model again.")
                held[name] = tensor
        yield held


def _tensors(path: Path, stack: ExitStack) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            file = stack.enter_context(safe_open(path, "pt"))
            return {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(loaded, dict) or not all(isinstance(one, torch.Tensor) for one in loaded.values()):
            raise ValueError("it is no table of tensors")
        return dict(loaded)
    except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise CheckpointError(f"{path} can't be read ({first_line(error)}); fetch it again.") from error


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.shape if isinstance(tensor, torch.Tensor) else tensor.get_shape())


def _type(tensor: Any) -> str:
    return str(tensor.dtype if isinstance(tensor, torch.Tensor) else tensor.get_dtype())


def _where(checkpoint: Checkpoint) -> Path:
    """The file to name, if there is but one."""
    return checkpoint.weights[0] if len(checkpoint.weights) == 1 else checkpoint.folder


# what is wrong with them


def _refuse_odd(checkpoint: Checkpoint, found: Architecture, held: Held) -> None:
    """What transformers would load in silence: integers as weights, and one tensor under two names."""
    prefix = found.kind.base_model_prefix + "."
    for name, tensor in held.items():
        if _type(tensor) not in FLOATS and not name.endswith(COUNTS):
            raise CheckpointError(
                f"{_where(checkpoint)}: the {checkpoint.family} tensor {name!r} holds {_type(tensor)}, which is no "
                "float type that can be computed with; use the original, unquantised repository."
            )
        if name.startswith(prefix) and name.removeprefix(prefix) in held and not _spare(name, prefix):
            raise CheckpointError(f"{_where(checkpoint)} holds {name!r} with and without {prefix!r}.")


def _refuse_holes(checkpoint: Checkpoint, info: dict[str, Any], prefix: str) -> None:
    where, family = _where(checkpoint), checkpoint.family
    missing = sorted({_told(checkpoint, name) for name in info["missing_keys"]})
    extra = sorted(name for name in info["unexpected_keys"] if not _spare(name, f"{prefix}."))
    for names, what in ((missing, "lacks"), (extra, "holds, and config.json has no place for,")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"{where} {what} the {family} tensor {names[0]!r}{more}.")
    for name, stored, wanted in sorted(info["mismatched_keys"]):
        raise CheckpointError(
            f"{where}: the {family} tensor {_told(checkpoint, name)!r} has the shape {list(stored)}, config.json asks "
            f"for {list(wanted)}."
        )


def _told(checkpoint: Checkpoint, name: str) -> str:
    """The tensor as the checkpoint's files call it."""
    if checkpoint.family == "nomic_bert":
        for ours, theirs in NOMIC:
            name = name.replace(ours, theirs, 1)
    return name


def _spare(tensor: str, prefix: str) -> bool:
    """Whether a tensor the model has no place for may be left out: a head or a buffer, never a layer of the encoder."""
    name = tensor.removeprefix(prefix)
    return name.startswith(SPARE) or name.endswith((".position_ids", ".inv_freq"))


def _refuse_broken(checkpoint: Checkpoint, model: PreTrainedModel, held: Held) -> None:
    """One pass over the loaded weights; only where it finds something are the files searched for the name."""
    broken = next((name for name, tensor in model.named_parameters() if not _finite(tensor)), None)
    if broken is None:
        return
    name = next((name for name, tensor in held.items() if _type(tensor) in FLOATS and not _finite(tensor[...])), None)
    if name is None:
        raise CheckpointError(
            f"{_where(checkpoint)}: the {checkpoint.family} tensor {_told(checkpoint, broken)!r} overflows in "
            f"{str(model.dtype).removeprefix('torch.')}; use DTYPE=float32."
        )
    raise CheckpointError(f"{_where(checkpoint)}: the {checkpoint.family} tensor {name!r} {BROKEN}")


def _finite(tensor: torch.Tensor) -> bool:
    """Without a copy: the extremes carry NaN and infinity along."""
    return tensor.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


def _widen_head(model: PreTrainedModel) -> None:
    """A logit in bfloat16 has steps of 0.06 at 10: a reranker's head computes in float32 whatever the type."""
    head = getattr(model, "classifier", None)
    if isinstance(head, torch.nn.Module):
        head.float()
        head.register_forward_pre_hook(lambda _, args: tuple(value.float() for value in args))


# dense layers


def read_dense(checkpoint: Checkpoint, model: PreTrainedModel) -> torch.nn.Sequential:
    """sentence-transformers' Dense layers in float32; an activation is a class path of torch.nn without arguments."""
    after = torch.nn.Sequential()
    for layer in checkpoint.dense if checkpoint.task == "embed" else ():
        wide, linear = width(checkpoint, model, after), _linear(layer)
        if linear.in_features != wide:
            raise CheckpointError(
                f"{layer.weights}: a Dense layer's tensor 'linear.weight' takes {linear.in_features} numbers, what is "
                f"before it gives {wide}."
            )
        after.append(torch.nn.Sequential(linear, _activation(layer)))
    return after


def width(checkpoint: Checkpoint, model: PreTrainedModel, after: torch.nn.Sequential) -> int:
    """How many numbers a row has once it went through `after`."""
    linears = [module for module in after.modules() if isinstance(module, torch.nn.Linear)]
    return linears[-1].out_features if linears else _hidden(model) * len(checkpoint.pooling)


def _hidden(model: PreTrainedModel) -> int:
    text: Any = model.config.get_text_config()
    return int(text.hidden_size)


def _linear(layer: Dense) -> torch.nn.Linear:
    with ExitStack() as stack:
        held = {name: one[...].float() for name, one in _tensors(layer.weights, stack).items()}
    weight, bias = held.get("linear.weight"), held.get("linear.bias") if layer.bias else None
    if weight is None or (layer.bias and bias is None):
        lost = "linear.weight" if weight is None else "linear.bias"
        raise CheckpointError(f"{layer.weights}: the Dense layer's tensor {lost!r} is missing; fetch the file again.")
    if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        shapes = " and ".join(str(list(one.shape)) for one in (weight, bias) if one is not None)
        raise CheckpointError(f"{layer.weights}: 'linear.weight' and 'linear.bias' can't have the shapes {shapes}.")
    for name, tensor in (("linear.weight", weight), ("linear.bias", bias)):
        if tensor is not None and not _finite(tensor):
            raise CheckpointError(f"{layer.weights}: the Dense layer's tensor {name!r} {BROKEN}")
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return linear


def _activation(layer: Dense) -> torch.nn.Module:
    module, _, name = layer.activation.rpartition(".")
    if module.split(".")[0] in ("", "torch") and name in ("Identity", *torch.nn.modules.activation.__all__):
        with suppress(TypeError):  # the few that take arguments
            made: torch.nn.Module = getattr(torch.nn, name)()
            return made
    raise CheckpointError(f"{layer.weights.parent}: the activation {layer.activation!r} is not one of torch.nn's.")
