"""Conversions to MLX as mlx_lm.convert writes them: packed weights, config.json and the tokenizer, nothing else.

Each has a twin that any reader understands: the whole original repository with the weights that the packed ones stand
for, in float32. Needs mlx, imported only here and only when one is built.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.tiny import decoders, encoders, files, rerankers

KEPT = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
Packing = dict[str, Any]
FOUR: Packing = {"group_size": 64, "bits": 4, "mode": "affine"}
EIGHT: Packing = {"group_size": 64, "bits": 8, "mode": "affine"}
MIXED: dict[str, Packing | bool] = {
    "model.embed_tokens": {"group_size": 32, "bits": 6},
    "model.layers.0.self_attn.v_proj": {"group_size": 64, "bits": 8},
    "model.layers.0.mlp.down_proj": {"group_size": 128, "bits": 3},
    "model.layers.1.self_attn.k_proj": {"group_size": 32, "bits": 2, "mode": "affine"},
    "model.layers.1.mlp.gate_proj": {"group_size": 32, "bits": 5},
    "model.layers.1.self_attn.o_proj": False,
}
"""Of each width one layer, and one that config.json leaves as it was."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """packing: of every matrix (None: none is packed). single: what config.json says of single paths. silent: paths left
    as they were of which it says nothing. prefix: what mlx_lm's classes call the backbone. dtype: of what is not packed.
    The Dense layers of a chain become dense.0, dense.1 ... among the weights, as EmbeddingGemma's conversions have them."""

    source: Callable[[Path], None]
    packing: Packing | None
    single: dict[str, Packing | bool] = field(default_factory=dict)
    silent: tuple[str, ...] = ()
    prefix: str = ""
    dtype: str = "bfloat16"

    def of(self, path: str) -> Packing | None:
        said = self.single.get(path, self.packing)
        return said if isinstance(said, dict) and path not in self.silent else None


def convert(recipe: Recipe, folder: Path) -> None:
    """What mlx_lm.convert makes of the source."""
    import mlx.core as mx

    with TemporaryDirectory() as whole:
        recipe.source(Path(whole))
        held: dict[str, Any] = {}
        for name, tensor in _tensors(recipe, Path(whole)).items():
            held |= _packed(recipe, name, tensor)
        mx.save_safetensors(str(folder / "model.safetensors"), held, {"format": "mlx"})
        for name in KEPT:
            if (Path(whole) / name).exists():
                shutil.copyfile(Path(whole) / name, folder / name)
        config = json.loads((Path(whole) / "config.json").read_text())
    if recipe.packing:
        said = recipe.packing | recipe.single
        config |= {"quantization": said, "quantization_config": said}
    files.write(folder / "config.json", dict(sorted(config.items())))
    index = {"metadata": {"total_size": sum(array.nbytes for array in held.values())}}
    files.write(
        folder / "model.safetensors.index.json", index | {"weight_map": dict.fromkeys(held, "model.safetensors")}
    )


def twin(recipe: Recipe, folder: Path) -> None:
    """The source with the weights that the packed ones stand for, and without a limit of its own: a conversion has none."""
    import mlx.core as mx

    recipe.source(folder)
    plain: dict[str, Any] = {}
    for name, tensor in _tensors(recipe, folder).items():
        packing = recipe.of(name.removesuffix(".weight"))
        parts = _packed(recipe, name, tensor)
        if f"{name.removesuffix('.weight')}.scales" in parts:
            assert packing is not None
            weight, *rest = (part if part.dtype == mx.uint32 else _wide(part) for part in parts.values())
            plain[name] = mx.dequantize(weight, *rest, dtype=mx.float32, **packing)  # type: ignore[misc]
        else:
            plain[name] = parts[name].astype(mx.float32)
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    for at, layer in enumerate(_dense(folder)):
        mx.save_safetensors(str(layer), {"linear.weight": plain.pop(f"dense.{at}.weight")}, {"format": "pt"})
    mx.save_safetensors(str(folder / "model.safetensors"), plain, {"format": "pt"})
    (folder / "sentence_bert_config.json").unlink(missing_ok=True)


def _tensors(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The source's floats by mlx_lm's names."""
    import mlx.core as mx

    held: dict[str, Any] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        loaded: Any = mx.load(str(path))
        held |= {f"{recipe.prefix}{name}": tensor for name, tensor in loaded.items()}
    for at, layer in enumerate(_dense(folder)):
        loaded = mx.load(str(layer))
        held[f"dense.{at}.weight"] = loaded["linear.weight"]
    mx.eval(held)
    return {name: tensor for name, tensor in sorted(held.items()) if mx.issubdtype(tensor.dtype, mx.floating)}


def _dense(folder: Path) -> list[Path]:
    return sorted(folder.glob("*_Dense/model.safetensors"))


def _packed(recipe: Recipe, name: str, tensor: Any) -> dict[str, Any]:
    import mlx.core as mx

    path = name.removesuffix(".weight")
    packing = recipe.of(path)
    tensor = tensor.astype(getattr(mx, recipe.dtype))
    if packing is None or tensor.ndim != 2:
        return {name: tensor}
    with mx.stream(mx.cpu):
        parts = mx.quantize(tensor, **packing)
    return dict(zip((name, f"{path}.scales", f"{path}.biases"), parts))


def _wide(scales: Any) -> Any:
    """Scales of 16 bits as float32; those of 8 bits are exponents."""
    import mlx.core as mx

    return scales.astype(mx.float32) if mx.issubdtype(scales.dtype, mx.floating) else scales


RECIPES = {
    "qwen3-4bit": Recipe(decoders.qwen3, FOUR, prefix="model."),
    "qwen3-mixed": Recipe(decoders.qwen3, FOUR, MIXED, silent=("model.layers.2.mlp.up_proj",), prefix="model."),
    "qwen3-mxfp4": Recipe(decoders.qwen3_untied, {"group_size": 32, "bits": 4, "mode": "mxfp4"}, prefix="model."),
    "qwen3-bf16": Recipe(decoders.qwen3, None, prefix="model."),
    "qwen3-reranker-4bit": Recipe(rerankers.qwen3, FOUR),
    "gemma3-8bit": Recipe(decoders.gemma3, EIGHT | {"group_size": 32}, prefix="model."),
    "bert-8bit": Recipe(encoders.bert, EIGHT, dtype="float32"),
    "xlmr-8bit": Recipe(encoders.xlmr, EIGHT, dtype="float16"),
}
KINDS: dict[str, Callable[[Path], None]] = {
    **{kind: partial(convert, recipe) for kind, recipe in RECIPES.items()},
    **{f"{kind}-twin": partial(twin, recipe) for kind, recipe in RECIPES.items()},
}
