"""The deliberate mistakes: what is left out or done wrong of a family's recipe, each applied by hand to one kind.

tests/test_mistakes.py asserts that the comparison with the reference notices every one of them on both backends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface
from transformers.models.qwen3 import modeling_qwen3

from vecgate.backends.torch import packed
from vecgate.backends.torch.packed import Layout
from vecgate.core import Batch, Checkpoint, Dense, Tokens, Vectors
from vecgate.engine import local, template, tokenizer
from vecgate.engine.checkpoint import read
from vecgate.engine.template import Template
from vecgate.engine.tokenizer import Tokenizer

mlx_backend: Any = import_module("vecgate.backends.mlx.backend")
torch_backend: Any = import_module("vecgate.backends.torch")
Change = Callable[["Bench"], None]
BOTH = ("torch", "mlx")
TORCH = ("torch",)
PACKED = ("bert", "modernbert", "distilbert", "nomic_bert", "qwen2", "gemma3", "xlmr-reranker", "modernbert-reranker")


class Bench:
    """One checkpoint in a folder of its own, which a mistake may change; the code, which it may patch."""

    def __init__(self, folder: Path, name: str | None, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.patch = patch
        self._name = name
        self._fields: dict[str, Any] = {}

    def checkpoint(self) -> Checkpoint:
        return replace(read(self.folder, self._name), **self._fields)

    def fields(self, **changes: Any) -> None:
        self._fields |= changes

    def config(self, **changes: Any) -> None:
        path = self.folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def weights(self, part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Of every tensor whose name has this part; there must be one."""
        path = self.folder / "model.safetensors"
        held = load_file(path)
        assert any(part in name for name in held), sorted(held)
        save_file({name: change(one).contiguous() if part in name else one for name, one in held.items()}, path)


@dataclass(frozen=True, slots=True)
class Mistake:
    """name: what is wrong. kind: of tests/tiny, where it must show."""

    name: str
    kind: str
    make: Change
    backends: tuple[str, ...] = BOTH


# what the files say, taken otherwise


def fields(**changes: Any) -> Change:
    return lambda bench: bench.fields(**changes)


def config(**changes: Any) -> Change:
    return lambda bench: bench.config(**changes)


def weights(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda bench: bench.weights(part, change)


def changed(name: str, change: Callable[[Any], Any]) -> Change:
    """A field of the checkpoint, made from what it was."""
    return lambda bench: bench.fields(**{name: change(getattr(bench.checkpoint(), name))})


def halves_swapped(matrix: torch.Tensor) -> torch.Tensor:
    return torch.cat(matrix.chunk(2)[::-1])


def gate_and_value_swapped(bench: Bench) -> None:
    path = bench.folder / "model.safetensors"
    other = {"fc11": "fc12", "fc12": "fc11"}
    held = load_file(path)
    assert any("fc11" in name for name in held)
    found = {name: next((part for part in other if part in name), "") for name in held}
    save_file({name.replace(part, other[part]) if part else name: held[name] for name, part in found.items()}, path)


def other_activation(layers: tuple[Dense, ...]) -> tuple[Dense, ...]:
    return tuple(replace(layer, activation="Identity" if layer.activation == "Tanh" else "Tanh") for layer in layers)


def no_bias(layers: tuple[Dense, ...]) -> tuple[Dense, ...]:
    return tuple(replace(layer, bias=False) for layer in layers)


# tokens


def specials(change: Callable[[Template], Template]) -> Change:
    """Around a text and around a pair."""

    def make(bench: Bench) -> None:
        for name in ("single_template", "pair_template"):
            found = getattr(tokenizer, name)
            bench.patch.setattr(tokenizer, name, lambda *given, found=found: change(found(*given)))

    return make


def doubled(found: Template) -> Template:
    return Template(found.head * 2, found.middle, found.tail * 2)


def other_ending(found: Template) -> Template:
    """<|im_end|>, which config.json calls eos, for <|endoftext|>."""
    return replace(found, tail=tuple(token + 2 for token in found.tail))


def opened(change: Callable[[tokenizers.Tokenizer], None]) -> Change:
    """tokenizer.json, once it is read."""

    def make(bench: Bench) -> None:
        found = template.open_file

        def open_file(path: Path) -> tokenizers.Tokenizer:
            inner = found(path)
            change(inner)
            return inner

        bench.patch.setattr(template, "open_file", open_file)

    return make


def specials_as_text(inner: tokenizers.Tokenizer) -> None:
    inner.encode_special_tokens = True


def no_normalizer(inner: tokenizers.Tokenizer) -> None:
    inner.normalizer = tokenizers.normalizers.Sequence([])


def baked_truncation(bench: Bench) -> None:
    """As tokenizer.json would have it."""

    def open_file(path: Path) -> tokenizers.Tokenizer:
        inner = tokenizers.Tokenizer.from_file(str(path))
        inner.no_padding()
        return inner

    bench.patch.setattr(template, "open_file", open_file)


Steps = Callable[..., Iterator[list[Tokens]]]


def steps(name: str, change: Callable[[Steps], Steps]) -> Change:
    """One of the Tokenizer's two ways to rows."""
    return lambda bench: bench.patch.setattr(Tokenizer, name, change(getattr(Tokenizer, name)))


def from_the_start(found: Steps) -> Steps:
    return lambda own, inputs, prompt, most, cut, *more: found(own, inputs, prompt, most, "start", *more)


def prompt_apart(found: Steps) -> Steps:
    """Tokenised on its own, and put before the text's ids."""

    def encode(own: Tokenizer, inputs: Any, prompt: str, most: int, cut: Any, *more: Any) -> Iterator[list[Tokens]]:
        def ids(text: str) -> list[int]:
            made: list[int] = own._inner.encode(text, add_special_tokens=False).ids
            return made

        apart = [ids(prompt) + ids(text) for text in inputs] if prompt else inputs
        yield from found(own, apart, "", most, cut, *more)

    return encode


def ends_cut_off(found: Steps) -> Steps:
    """The row cut as a whole: what stands after the text is lost where the text is long."""

    def encode(own: Tokenizer, first: Any, second: Any, most: int, *more: Any) -> Iterator[list[Tokens]]:
        for rows in found(own, first, second, 10_000, *more):
            yield [replace(row, ids=row.ids[:most]) for row in rows]

    return encode


def swapped(found: Steps) -> Steps:
    """The document where the query belongs."""

    def encode(own: Tokenizer, query: str, documents: Sequence[str], *more: Any) -> Iterator[list[Tokens]]:
        for document in documents:
            yield from found(own, document, [query], *more)

    return encode


def only_second(first: int, second: int, room: int) -> tuple[int, int]:
    return min(first, room), max(min(second, room - first), 0)


def no_prompt(bench: Bench) -> None:
    bench.patch.setattr(local, "prompt_of", lambda checkpoint, role: (role, ""))


# layout


def padded(bench: Bench) -> None:
    """torch on a device that packs no rows."""
    devices = torch_backend.devices
    cpu = devices.cpu
    bench.patch.setattr(devices, "cpu", lambda fraction: replace(cpu(fraction), packs=False))


def rows_seen(bench: Bench) -> None:
    """By the rows beside them."""

    def attend(*given: Any, layout: Layout, **told: Any) -> Any:
        one = packed.Group(0, 1, sum(map(len, layout.rows)))
        return packed.attend(*given, layout=replace(layout, groups=(one,)), **told)

    bench.patch.setitem(AttentionInterface._global_mapping, packed.NAME, attend)


def positions_run_on(bench: Bench) -> None:
    """From one row to the next."""
    found = Layout.indices
    bench.patch.setattr(Layout, "indices", lambda own: np.arange(len(found(own))) % 48)


def no_windows(bench: Bench) -> None:
    bench.patch.setattr(Layout, "mask", lambda own, *given: None)


def no_shift(bench: Bench) -> None:
    """RoBERTa's positions begin behind its pad's id."""
    bench.patch.setattr(packed, "unplaced", lambda model: None)


def pads_count(bench: Bench) -> None:
    """For pooling: in the mean, and as the last token."""
    padded(bench)
    torch_pool, mlx_pool = torch_backend.pool, mlx_backend.pool

    def on_torch(hidden: Any, real: Any, after: Any, modes: Any) -> Any:
        return torch_pool(hidden, torch.ones_like(real), after, modes)

    def on_mlx(hidden: Any, rows: Any, modes: Any, **more: Any) -> Any:
        return mlx_pool(hidden, replace(rows, lengths=mx.full(rows.lengths.shape, rows.ids.shape[1])), modes, **more)

    bench.patch.setattr(torch_backend, "pool", on_torch)
    bench.patch.setattr(mlx_backend, "pool", on_mlx)


def pads_seen(bench: Bench) -> None:
    """By attention."""
    padded(bench)
    found, rows = torch_backend.weights.read_model, mlx_backend.Rows

    def read_model(*given: Any) -> Any:
        model = found(*given)

        def unmasked(_: Any, args: Any, told: dict[str, Any]) -> Any:
            return args, told | {"attention_mask": torch.ones_like(told["attention_mask"])}

        model.register_forward_pre_hook(unmasked, with_kwargs=True)
        return model

    bench.patch.setattr(torch_backend.weights, "read_model", read_model)
    bench.patch.setattr(mlx_backend, "Rows", lambda **told: rows(**told | {"mask": None}))


def pads_on_the_left(bench: Bench) -> None:
    """Where everything else believes them on the right."""
    padded(bench)
    torch_matrix, mlx_laid_out = torch_backend.TorchBackend._matrix, mlx_backend.MLXBackend._laid_out

    def on_torch(own: Any, rows: Any) -> Any:
        ids, spans = torch_matrix(own, rows)
        for at, row in enumerate(rows):
            ids[at] = ids[at].roll(ids.shape[1] - len(row))
        return ids, spans

    def on_mlx(own: Any, rows: Any) -> Any:
        laid = mlx_laid_out(own, rows)
        turned = [mx.roll(laid.ids[at], laid.ids.shape[1] - len(row)) for at, row in enumerate(rows)]
        return replace(laid, ids=mx.stack(turned))

    bench.patch.setattr(torch_backend.TorchBackend, "_matrix", on_torch)
    bench.patch.setattr(mlx_backend.MLXBackend, "_laid_out", on_mlx)


def order_lost(bench: Bench) -> None:
    """Rows come back the other way round."""
    for kind in (torch_backend.TorchBackend, mlx_backend.MLXBackend):
        found = kind.forward

        def forward(own: Any, batch: Batch, found: Any = found) -> Vectors:
            rows: Vectors = found(own, Batch(batch.rows[::-1]))
            return rows

        bench.patch.setattr(kind, "forward", forward)


def no_head_norms(bench: Bench) -> None:
    """Qwen3's, of each head's queries and keys."""

    def only_wide(found: Any) -> Any:
        return lambda own, x: x if x.shape[-1] == 16 else found(own, x)

    for kind, name in ((modeling_qwen3.Qwen3RMSNorm, "forward"), (nn.RMSNorm, "__call__")):
        bench.patch.setattr(kind, name, only_wide(getattr(kind, name)))


zero = torch.zeros_like
shifted = partial(torch.roll, shifts=2, dims=0)

MISTAKES = (
    # pooling
    Mistake("cls for mean", "bert", fields(pooling=("cls",))),
    Mistake("mean for cls", "bge", fields(pooling=("mean",))),
    Mistake("mean for cls", "modernbert", fields(pooling=("mean",))),
    Mistake("mean for last", "qwen3", fields(pooling=("mean",))),
    Mistake("cls for last", "qwen2", fields(pooling=("cls",))),
    Mistake("last for mean", "llama", fields(pooling=("last",))),
    Mistake("last for mean", "gemma3", fields(pooling=("last",))),
    Mistake("poolings in another order", "pooled", changed("pooling", lambda modes: modes[::-1])),
    Mistake("the mean over the root for the mean", "pooled-old", fields(pooling=("cls", "mean", "mean"))),
    Mistake("weights that do not rise", "pooled", fields(pooling=("cls", "max", "mean", "last"))),
    Mistake("the prompt in the mean", "instructor", fields(include_prompt=True)),
    Mistake("the prompt out of the mean", "xlmr", fields(include_prompt=False, pooling=("cls",))),
    Mistake("no Dense", "gemma3", fields(dense=())),
    Mistake("no Dense", "instructor", fields(dense=())),
    Mistake("Identity for Tanh", "distiluse", changed("dense", other_activation)),
    Mistake("Tanh for Identity", "instructor", changed("dense", other_activation)),
    Mistake("a Dense without its bias", "distiluse", changed("dense", no_bias)),
    Mistake("cls for classifier_pooling mean", "modernbert-reranker", config(classifier_pooling="cls")),
    Mistake("mean for classifier_pooling cls", "modernbert-reranker-cls", config(classifier_pooling="mean")),
    # layout
    Mistake("pads in the mean", "bert", pads_count),
    Mistake("pads in the mean", "mpnet", pads_count),
    Mistake("the last column for the last token", "qwen3", pads_count),
    Mistake("pads seen by attention", "bert", pads_seen),
    Mistake("pads seen by attention", "modernbert", pads_seen),
    Mistake("pads seen by attention", "distilbert", pads_seen),
    Mistake("pads seen by attention", "nomic_bert", pads_seen),
    Mistake("pads seen by attention", "qwen2", pads_seen),
    Mistake("pads seen by attention", "xlmr-reranker", pads_seen),
    Mistake("padding on the other side", "bert", pads_on_the_left),
    Mistake("padding on the other side", "qwen3", pads_on_the_left),
    Mistake("padding on the other side", "qwen3-reranker", pads_on_the_left),
    Mistake("rows in another order", "mistral", order_lost),
    *(Mistake("rows seen by attention", kind, rows_seen, TORCH) for kind in PACKED),
    Mistake("positions that run on", "bert", positions_run_on, TORCH),
    Mistake("positions without their shift", "xlmr", no_shift, TORCH),
    Mistake("positions without their shift", "roberta", no_shift, TORCH),
    Mistake("no local windows", "modernbert", no_windows, TORCH),
    Mistake("no local windows", "gemma3", no_windows, TORCH),
    # prompts
    Mistake("the role's prompt dropped", "xlmr", no_prompt),
    Mistake("the role's prompt dropped", "gemma3", no_prompt),
    Mistake("the default prompt dropped", "roberta", fields(default_prompt=None)),
    Mistake(
        "the query's prompt for documents",
        "nomic_bert",
        changed("prompts", lambda own: own | {"document": own["query"]}),
    ),
    Mistake("a space after the prompt", "qwen3", changed("prompts", lambda own: own | {"query": own["query"] + " "})),
    Mistake("no space after the prompt", "bge", fields(prompts={"query": "Represent this sentence:"})),
    Mistake("the prompt tokenised apart", "gemma3", steps("encode_steps", prompt_apart)),
    # tokens
    Mistake("no EOS", "mistral", fields(tail=())),
    Mistake("no EOS", "qwen3-untied", specials(lambda found: replace(found, tail=()))),
    Mistake("config.json's eos for the tokenizer's", "qwen3", specials(other_ending)),
    Mistake("no EOS", "gemma3", specials(lambda found: replace(found, tail=()))),
    Mistake("no [CLS]", "modernbert", specials(lambda found: replace(found, head=()))),
    Mistake(
        "no second </s> in a pair", "xlmr-reranker", specials(lambda found: replace(found, middle=found.middle[1:]))
    ),
    Mistake("specials twice", "modernbert", specials(doubled)),
    Mistake("specials twice", "qwen2", specials(doubled)),
    Mistake("specials twice", "xlmr-reranker", specials(doubled)),
    Mistake("literal specials as text", "bert", opened(specials_as_text)),
    Mistake("literal specials as text", "qwen3", opened(specials_as_text)),
    Mistake("no normalizer", "xlmr", opened(no_normalizer)),
    Mistake("no lower case", "roberta", fields(lower_case=False)),
    Mistake("no max_seq_length", "bert", fields(max_tokens=128)),
    Mistake("one token fewer", "modernbert", changed("max_tokens", lambda most: most - 1)),
    Mistake("tokenizer.json's own truncation", "mpnet", baked_truncation),
    Mistake("the start cut off", "qwen3", steps("encode_steps", from_the_start)),
    Mistake("the specials cut off", "mistral", steps("encode_steps", ends_cut_off)),
    Mistake("the specials cut off", "bert", steps("encode_steps", ends_cut_off)),
    # pairs
    Mistake("query and document swapped", "bert-reranker", steps("encode_pairs_steps", swapped)),
    Mistake("query and document swapped", "modernbert-reranker", steps("encode_pairs_steps", swapped)),
    Mistake("query and document swapped", "qwen3-reranker", steps("encode_pairs_steps", swapped)),
    Mistake("no token types", "bert-reranker", fields(token_types=False)),
    Mistake(
        "only the document cut",
        "bert-reranker",
        lambda bench: bench.patch.setattr(tokenizer, "longest_first", only_second),
    ),
    Mistake("no template", "qwen3-reranker", fields(template=None)),
    Mistake("no template", "qwen3-classifier", fields(template=None)),
    Mistake("no suffix", "qwen3-reranker", changed("template", lambda own: replace(own, suffix=""))),
    Mistake("the suffix cut off", "qwen3-reranker", steps("encode_pairs_steps", ends_cut_off)),
    Mistake("the suffix cut off", "qwen3-logit", steps("encode_pairs_steps", ends_cut_off)),
    Mistake(
        "blank lines in the template",
        "qwen3-classifier",
        changed("template", lambda own: replace(own, middle=f"\n{own.middle}")),
    ),
    Mistake("another instruction", "qwen3-logit", changed("template", lambda own: replace(own, lead=own.lead + " "))),
    Mistake("yes alone", "qwen3-reranker", fields(no_id=None)),
    Mistake(
        "no for yes",
        "qwen3-reranker",
        lambda bench: bench.fields(yes_id=bench.checkpoint().no_id, no_id=bench.checkpoint().yes_id),
    ),
    Mistake("another token's logit", "zerank", changed("yes_id", lambda own: own + 1)),
    # attention and positions
    Mistake("no window", "modernbert", config(local_attention=1024)),
    Mistake("a window one wider", "modernbert-mean", config(local_attention=18)),
    Mistake("no window", "gemma3", config(sliding_window=1024)),
    Mistake("the window not halved", "gemma3", config(sliding_window=32)),
    Mistake("a window one wider", "gemma3", config(sliding_window=18)),
    Mistake(
        "windows on the last layer",
        "gemma3",
        config(layer_types=["full_attention", "sliding_attention", "sliding_attention"]),
    ),
    Mistake("windows on other layers", "modernbert", config(global_attn_every_n_layers=3)),
    Mistake("causal", "gemma3", config(use_bidirectional_attention=False)),
    Mistake("causal", "qwen2", config(is_causal=True)),
    Mistake("both ways", "qwen3", config(is_causal=False)),
    Mistake("one base for both kinds of layers", "gemma3", config(rope_local_base_freq=1e6)),
    Mistake("one base for both kinds of layers", "modernbert", config(local_rope_theta=160000.0)),
    Mistake("another base", "qwen3", config(rope_theta=10000)),
    Mistake("another base", "nomic_bert", config(rotary_emb_base=10000)),
    Mistake("positions not scaled", "llama", config(rope_scaling=None)),
    Mistake("positions from 0", "xlmr", weights("position_embeddings", shifted)),
    Mistake("positions from 0", "roberta", weights("position_embeddings", shifted)),
    Mistake("positions from 0", "mpnet", weights("position_embeddings", shifted)),
    Mistake("no relative positions", "mpnet", weights("relative_attention_bias", zero)),
    Mistake("the hidden width for the scores' scale", "gemma3", config(query_pre_attn_scalar=24)),
    # layers
    Mistake("no norm of queries and keys", "qwen3", no_head_norms),
    Mistake("no scale of the embeddings", "gemma3", weights("embed_tokens", lambda table: table / 8)),
    Mistake("w for 1 + w", "gemma3", weights("norm.weight", lambda weight: weight - 1)),
    Mistake("no bias of queries", "qwen2", weights("q_proj.bias", zero)),
    Mistake("token type 0 not added", "bert", weights("token_type_embeddings", zero)),
    Mistake("token type 0 not added", "nomic_bert", weights("token_type_embeddings", zero)),
    Mistake("gelu by tanh", "bert", config(hidden_act="gelu_new")),
    Mistake("gelu by tanh", "distilbert", config(activation="gelu_new")),
    Mistake("gate and value swapped", "nomic_bert", gate_and_value_swapped),
    Mistake("gate and value swapped", "modernbert", weights("Wi", halves_swapped)),
    Mistake("the norms' eps", "mpnet", config(layer_norm_eps=1e-2)),
    Mistake("no pooler", "bert-reranker", weights("pooler.dense.weight", lambda matrix: torch.eye(len(matrix)))),
    # packed weights
    Mistake("scales without their biases", "qwen3-4bit", weights(".biases", zero), ("mlx",)),
    Mistake("scales of another layer", "qwen3-mxfp4", weights("layers.1.mlp.up_proj.scales", shifted), ("mlx",)),
)
