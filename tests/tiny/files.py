"""What lies beside the weights of a hub repository, and the weights as such a repository stores them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

OLD = "sentence_transformers.models"
NEW = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    "LogitScore": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",
}
"""Class paths of sentence-transformers 5.4 and later; before, all lay in OLD."""
MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
VERSIONS = {"sentence_transformers": "2.7.0", "transformers": "4.41.2", "pytorch": "2.3.0"}


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))


def save(
    model: Any,
    folder: Path,
    architecture: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    config: dict[str, Any] | None = None,
    without: Iterable[str] = (),
    rename: Callable[[str], str] = str,
    more: dict[str, torch.Tensor] | None = None,
    shard: str = "1GB",
) -> None:
    """Weights and config.json; `config` and `without` change keys of the config as transformers 5 writes it to what the
    hub's file says, `rename` and `more` the tensors."""
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    path = folder / "config.json"
    found = json.loads(path.read_text())
    found["architectures"] = [architecture or type(model).__name__]
    found |= config or {}
    write(path, {key: value for key, value in found.items() if key not in {*without}})
    if more is not None or rename is not str:
        held = load_file(folder / "model.safetensors")
        changed = {rename(name): tensor for name, tensor in held.items()} | (more or {})
        save_file(changed, folder / "model.safetensors", {"format": "pt"})


def save_tokenizer(
    tokenizer: Tokenizer,
    folder: Path,
    named: dict[str, str],
    *,
    types: bool = False,
    kind: str = "PreTrainedTokenizerFast",
    **more: Any,
) -> None:
    """`kind`: the class that transformers opens it with; the default one takes the file as it stands."""
    tokenizer.save(str(folder / "tokenizer.json"))
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if types else ["input_ids", "attention_mask"]
    settings = {"tokenizer_class": kind, "model_input_names": inputs}
    write(folder / "tokenizer_config.json", settings | named | more)


def chain(folder: Path, *kinds: str, new: bool = False) -> None:
    """modules.json; each module but the first in a folder of its place and name."""
    paths = ["" if at == 0 else f"{at}_{kind}" for at, kind in enumerate(kinds)]
    where = [NEW[kind] if new else f"{OLD}.{kind}" for kind in kinds]
    write(
        folder / "modules.json",
        [{"idx": at, "name": str(at), "path": path, "type": one} for at, (path, one) in enumerate(zip(paths, where))],
    )


def pooling(folder: Path, *modes: str, width: int = 64, include_prompt: bool | None = True) -> None:
    """1_Pooling in the spelling of before 5.4: a boolean a mode; the oldest files know no include_prompt."""
    flags = {f"pooling_mode_{mode}": mode in modes for mode in MODES}
    prompt = {} if include_prompt is None else {"include_prompt": include_prompt}
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **flags, **prompt})


def new_pooling(folder: Path, mode: str | list[str], width: int = 64) -> None:
    write(
        folder / "1_Pooling" / "config.json",
        {"embedding_dimension": width, "pooling_mode": mode, "include_prompt": True},
    )


def limit(folder: Path, max_seq_length: int | None, *, lower: bool = False, name: str = "bert") -> None:
    write(folder / f"sentence_{name}_config.json", {"max_seq_length": max_seq_length, "do_lower_case": lower})


def shared(folder: Path, prompts: dict[str, str] | None = None, **more: Any) -> None:
    """config_sentence_transformers.json; the oldest hold the versions alone."""
    told = {} if prompts is None else {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write(folder / "config_sentence_transformers.json", {"__version__": VERSIONS, **told, **more})


def dense(folder: Path, name: str, wide: int, narrow: int, activation: str, *, bias: bool) -> None:
    """A Dense folder; its weights are random, as wide as keeps the row's scale."""
    path = folder / name
    told = {"in_features": wide, "out_features": narrow, "bias": bias, "activation_function": activation}
    write(path / "config.json", told)
    held = {"linear.weight": torch.randn(narrow, wide) * wide**-0.5}
    if bias:
        held["linear.bias"] = torch.randn(narrow) * 0.1
    save_file(held, path / "model.safetensors", {"format": "pt"})
