"""docs/models.md from the tables in the code: `python -m docs.models > docs/models.md`; needs mlx, torch and transformers.

Sizes are counted on the architectures of backends/mlx, from the configs below, with no weight read or made.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from tests.families import CASES
from vecgate.backends import TORCH
from vecgate.backends.mlx import FAMILIES as MLX
from vecgate.core import Checkpoint, Task
from vecgate.engine.families import FAMILIES, Family

GIB = 2**30
BATCH_TOKENS = 8192
"""One batch on Metal (backends/mlx/devices.py)."""
TIERS = {8: 2 / 3, 16: 2 / 3, 32: 2 / 3, 64: 3 / 4}
"""GB of a Mac -> the share of it that macOS recommends to a GPU, as it is commonly reported; device_info says the true one."""
FRACTION = 0.8
"""DEVICE_MEMORY_FRACTION's default."""
PRECISIONS = {"float32": 32.0, "16-bit": 16.0, "8-bit": 8.5, "4-bit": 4.5}
"""Bits a weight; a quantised one has a scale and a bias of 16 bits for each group of 64."""


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """A published model: what its config.json says, as far as it decides sizes. longest: tokens of its longest input."""

    name: str
    family: str
    longest: int
    config: dict[str, Any]
    task: Task = "embed"


def bert(hidden: int, layers: int, heads: int, vocabulary: int = 30522, positions: int = 512) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": 4 * hidden, "max_position_embeddings": positions, "type_vocab_size": 2,
    }  # fmt: skip


def xlmr(positions: int) -> dict[str, Any]:
    return bert(1024, 24, 16, 250002, positions) | {"type_vocab_size": 1}


def decoder(
    hidden: int, layers: int, heads: int, groups: int, inner: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": groups, "intermediate_size": inner, "max_position_embeddings": 32768, **more,
    }  # fmt: skip


QWEN = {"head_dim": 128, "rope_theta": 1e6}
GEMMA = {
    "vocab_size": 262144, "hidden_size": 768, "num_hidden_layers": 24, "num_attention_heads": 3,
    "num_key_value_heads": 1, "head_dim": 256, "intermediate_size": 1152, "max_position_embeddings": 2048,
    "query_pre_attn_scalar": 256, "sliding_window": 512, "use_bidirectional_attention": True,
    "_sliding_window_pattern": 6, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
}  # fmt: skip
MODERN = {
    "vocab_size": 50368, "hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12,
    "intermediate_size": 1152, "max_position_embeddings": 8192, "global_attn_every_n_layers": 3,
    "local_attention": 128, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "classifier_pooling": "mean",
}  # fmt: skip
NOMIC = {
    "vocab_size": 30528, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": 3072, "n_positions": 8192,
    "type_vocab_size": 2, "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "activation_function": "swiglu",
    "qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False, "layer_norm_epsilon": 1e-12,
}  # fmt: skip
MPNET = bert(768, 12, 12, 30527, 514) | {"relative_attention_num_buckets": 32}
KNOWN = (
    Known("all-MiniLM-L6-v2", "bert", 256, bert(384, 6, 12)),
    Known("bge-small-en-v1.5", "bert", 512, bert(384, 12, 12)),
    Known("multilingual-e5-small", "bert", 512, bert(384, 12, 12, 250037)),
    Known("bge-base-en-v1.5", "bert", 512, bert(768, 12, 12)),
    Known("all-mpnet-base-v2", "mpnet", 384, MPNET),
    Known("nomic-embed-text-v1.5", "nomic_bert", 8192, NOMIC),
    Known("gte-modernbert-base", "modernbert", 8192, MODERN),
    Known("embeddinggemma-300m", "gemma3_text", 2048, GEMMA),
    Known("mxbai-embed-large-v1", "bert", 512, bert(1024, 24, 16)),
    Known("multilingual-e5-large", "xlm-roberta", 512, xlmr(514)),
    Known("bge-m3", "xlm-roberta", 8192, xlmr(8194)),
    Known("Qwen3-Embedding-0.6B", "qwen3", 32768, decoder(1024, 28, 16, 8, 3072, 151669, **QWEN)),
    Known("gte-Qwen2-1.5B-instruct", "qwen2", 32768, decoder(1536, 28, 12, 2, 8960, 151646, is_causal=False)),
    Known("Qwen3-Embedding-4B", "qwen3", 32768, decoder(2560, 36, 32, 8, 9728, 151665, **QWEN)),
    Known("Qwen3-Embedding-8B", "qwen3", 32768, decoder(4096, 36, 32, 8, 12288, 151665, **QWEN)),
    Known("ms-marco-MiniLM-L6-v2", "bert", 512, bert(384, 6, 12), "rerank"),
    Known("gte-reranker-modernbert-base", "modernbert", 8192, MODERN, "rerank"),
    Known("bge-reranker-v2-m3", "xlm-roberta", 8192, xlmr(8194), "rerank"),
    Known("Qwen3-Reranker-0.6B", "qwen3", 8192, decoder(1024, 28, 16, 8, 3072, 151669, **QWEN), "rerank"),
    Known("Qwen3-Reranker-4B", "qwen3", 8192, decoder(2560, 36, 32, 8, 9728, 151669, **QWEN), "rerank"),
)
"""From their public configs as remembered; none was fetched here. A loaded model's own files decide, not this list."""

HEAD = """\
# Models

Written by `python -m docs.models > docs/models.md` from the tables in the code; a test holds that it still says what they say.
What decides a row is read from the model's own files. What they ask for and vecgate does not do is refused at start, in one
sentence that names the file and the key: nothing is served approximately."""

SERVED = """\
## What is served

A family is a `model_type` of config.json. `rerank` is a sequence classifier with one label, or a causal language model that
answers yes or no (`qwen3`). An MLX-quantised folder (2, 3, 4, 6 or 8 bits, mixed, DWQ, mxfp4 and its kin) is served by MLX only;
torch refuses it and says so, as both refuse GPTQ, AWQ, bitsandbytes and their like.

Held against the reference means: random weights in the layout of the real repository, rows from sentence-transformers in a
process that does not know vecgate, in float32: unit rows within 5e-6 and logits within 1e-4, alone, in mixed batches, shuffled
and from concurrent calls (`tests/test_families.py`). Against transformers means: the same bounds from token ids
(`tests/backends`). The default model is held with its real weights, to 1e-6, on both backends."""

RECIPES = """\
## What the table supplies

A conversion to MLX carries weights, config.json and a tokenizer; pooling, prompts and the rest then come from this table, by the
model's name or by what its files show. The model's own files win where they speak, `--task`, `--pooling` and
`--prompt NAME=TEXT` win over both. A row with * is as its model card is remembered: no file of it was fetched here."""

MEMORY = """\
## What a model takes

GiB of weights by precision, counted on the architecture; a full batch of 8,192 tokens (what Metal gets at once) and one input of
the greatest length, both estimated in 16 bits as the load does that refuses what does not fit. Quantised weights: groups of 64
with a scale and a bias of 16 bits. Configs as remembered from the public repositories; `GET /health` says what a loaded
model really holds."""

CHOICE = """\
## What to choose

The largest embedder of that list whose weights and longest input fit the default DEVICE_MEMORY_FRACTION (0.8) of what macOS
recommends to a GPU, commonly two thirds of a Mac's memory, three quarters from 36 GB up. It is the bound, not the advice: a Mac
that also runs other things is better off one size smaller. For English and speed take all-MiniLM-L6-v2 (the default) or
bge-small-en-v1.5; for many languages multilingual-e5-small, bge-m3 or Qwen3-Embedding-0.6B; for quality at length
Qwen3-Embedding-4B in 4 bits (mlx-community/Qwen3-Embedding-4B-4bit-DWQ) from 16 GB up. Beside it, a reranker:
ms-marco-MiniLM-L6-v2 for English and speed, bge-reranker-v2-m3 or Qwen3-Reranker-0.6B for many languages."""

OPEN = """\
## What only a Mac or real weights can confirm

- Metal's kernels, in 16 bits and quantised, their speed and their memory: here MLX ran on its CPU build. Nothing of it is claimed.
- torch on MPS and CUDA: their lines ran against fakes.
- Real weights of every family but the default model: random ones show the arithmetic, the layout of files and the token ids, not
  that a repository's files are what its card says. Rows with * above, most of all.
- float16 in families whose activations may leave its range: refused where that is known (Gemma), not measured elsewhere."""

OF_KIND = {
    "bge": "bert", "xlmr": "xlm-roberta", "gemma3": "gemma3_text", "zerank": "qwen3", "distiluse": "distilbert",
    "pooled": "bert", "instructor": "bert",
}  # fmt: skip
"""A kind of tests/tiny whose name does not begin with its model_type -> that."""


def document() -> str:
    return "\n\n".join([HEAD, *_served(), *_recipes(), *_memory(), *_choice(), OPEN]) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# what is served


def _served() -> Iterator[str]:
    yield SERVED
    head = ["`model_type`", "torch", "MLX", "MLX quantised", "held against"]
    yield table(head, [_row(family) for family in sorted({*TORCH, *MLX})])


def _row(family: str) -> list[str]:
    torch = ", ".join(TORCH.get(family, ())) or "-"
    mlx = ", ".join(tasks) if (tasks := _mlx_tasks(family)) else "-"
    whole = sorted(case.kind for case in CASES if _family(case.kind) == family)
    proof = f"the reference, from text to row: {', '.join(whole)}" if whole else "transformers, from ids to row"
    return [f"`{family}`", torch, mlx, "yes" if tasks else "-", proof]


def _mlx_tasks(family: str) -> tuple[Task, ...]:
    """embed, and rerank where its Model has a head."""
    if family not in MLX:
        return ()
    return getattr(import_module(MLX[family]), "TASKS", ("embed", "rerank"))


def _family(kind: str) -> str:
    first = kind.partition("-")[0]
    return OF_KIND.get(first, first)


# what the table supplies


def _recipes() -> Iterator[str]:
    yield RECIPES
    head = ["family", "`model_type`", "task", "pooling", "unit rows", "prompts", "tokens", "ends with", "source"]
    yield table(head, [_recipe(row) for row in FAMILIES])


def _recipe(row: Family) -> list[str]:
    prompts = ", ".join(row.prompts) or "none"
    return [
        row.name + ("" if row.verified else " *"),
        ", ".join(f"`{one}`" for one in row.types),
        row.task,
        "-" if row.task == "rerank" else row.pooling,
        "-" if row.task == "rerank" else "yes" if row.normalize else "no",
        prompts + (f" (default: {row.default_prompt})" if row.default_prompt else ""),
        f"{row.max_tokens:,}" if row.max_tokens else "as its files say",
        f"`{row.ending}`".replace("|", "\\|") if row.ending else "as its files say",
        row.source,
    ]


# memory


def _memory() -> Iterator[str]:
    yield MEMORY
    head = ["model", "task", "parameters", *PRECISIONS, "one batch", "one longest input"]
    yield table(head, [_need(known) for known in KNOWN])


def _need(known: Known) -> list[str]:
    count = parameters(known)
    sizes = [f"{count * bits / 8 / GIB:.2f}" for bits in PRECISIONS.values()]
    return [known.name, known.task, f"{count / 1e6:,.0f} M", *sizes, f"{batch(known):.2f}", f"{longest(known):.2f}"]


@cache
def parameters(known: Known) -> int:
    """Lazily: an array that is never evaluated takes no memory."""
    family = import_module(MLX[known.family])
    model = family.Model(family.Config.read(_checkpoint(known)))
    arrays: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    return sum(array.size for array in arrays.values())


def batch(known: Known) -> float:
    """GiB of one full batch in 16 bits, beside the weights."""
    return BATCH_TOKENS * _token_bytes(known, min(known.longest, BATCH_TOKENS)) / GIB


@cache
def longest(known: Known) -> float:
    return known.longest * _token_bytes(known, known.longest) / GIB


def _token_bytes(known: Known, length: int) -> int:
    family = import_module(MLX[known.family])
    bytes_: int = family.Config.read(_checkpoint(known)).token_bytes(length, mx.bfloat16.size)
    return bytes_


def _checkpoint(known: Known) -> Checkpoint:
    return Checkpoint(
        name=known.name,
        folder=Path(known.name),
        family=known.family,
        task=known.task,
        config={"model_type": known.family, **known.config},
        weights=(),
        max_tokens=known.longest,
        pad_id=1 if known.family in ("xlm-roberta", "mpnet") else 0,
        stored_dtype="bfloat16",
        weight_bytes=0,
        yes_id=0 if known.task == "rerank" and known.family == "qwen3" else None,
        no_id=1 if known.task == "rerank" and known.family == "qwen3" else None,
    )


# what to choose


def _choice() -> Iterator[str]:
    yield CHOICE
    head = ["Mac", "for models", *PRECISIONS]
    yield table(head, [_tier(gb, share) for gb, share in TIERS.items()])


def _tier(gb: int, share: float) -> list[str]:
    room = gb * 1e9 * share * FRACTION / GIB
    return [f"{gb} GB", f"{room:.1f} GiB", *(_largest(bits, room) for bits in PRECISIONS.values())]


def _largest(bits: float, room: float) -> str:
    """The largest embedder whose weights and longest input fit."""
    fit = [known for known in KNOWN if known.task == "embed" and _fits(known, bits, room)]
    return max(fit, key=parameters).name if fit else "-"


def _fits(known: Known, bits: float, room: float) -> bool:
    return parameters(known) * bits / 8 / GIB + longest(known) <= room


if __name__ == "__main__":
    sys.stdout.write(document())
