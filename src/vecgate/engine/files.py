"""The JSON files beside a checkpoint's weights, read once, and what they say together; knows no tokenizer and no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vecgate.engine.modules import activation_of, read_config, read_json
from vecgate.errors import CheckpointError

TRANSFORMER_FILES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
"""sentence_X_config.json: sentence-transformers once named the transformer's settings after the family."""
SHIFTED = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "xmod", "data2vec-text"}
"""Families whose positions start at pad_id + 1: that many rows of the position table are never reached."""
TYPED = {
    *("bert", "albert", "electra", "mobilebert", "convbert", "ernie", "roformer", "big_bird", "rembert"),
    *("squeezebert", "nomic_bert", "megatron-bert", "nystromformer", "deberta", "deberta-v2"),
}
"""Families that are given token types, provided that their config has more than one."""
ROTARY = ("rope_theta", "rope_parameters", "rope_scaling", "rotary_emb_base", "global_rope_theta")
"""Config keys of families without a table of positions: a declared length above max_position_embeddings works there."""
UNKNOWN_LENGTH = 512
NO_LIMIT = 1_000_000
"""tokenizer_config.json says 1e30 where it means "none"."""
TASKS = {"embed": ("feature-extraction",), "rerank": ("sequence-classification", "text-generation")}
"""sentence-transformers' transformer_task."""
MLX_KEYS = {"bits", "group_size", "mode"}
"""What mlx-lm writes for the whole model; the other ways to quantise name themselves, or once did not."""
PER_TASK = ("query_length", "document_length", "query_expansion")
"""Settings of the transformer that multi-vector models have."""


@dataclass(frozen=True, slots=True)
class Files:
    """What was read. config, tokenizer: config.json, tokenizer_config.json. settings: sentence_bert_config.json.
    shared: config_sentence_transformers.json, in `folder`, which the others need not be in."""

    folder: Path
    root: Path
    config: dict[str, Any]
    tokenizer: dict[str, Any]
    settings: dict[str, Any]
    shared: dict[str, Any]

    @property
    def family(self) -> str:
        return str(self.config["model_type"])

    @property
    def pad_id(self) -> int:
        """config.json's, else the tokenizer's, else the family's default."""
        if isinstance(self.config.get("pad_token_id"), int):
            return int(self.config["pad_token_id"])
        added = read_json(self.root / "tokenizer.json", dict).get("added_tokens") or []
        ids = {token.get("content"): token.get("id") for token in added if isinstance(token, dict)}
        return int(ids.get(self.special("pad_token")) or (1 if self.family in SHIFTED else 0))

    @property
    def dtype(self) -> str:
        """The stored type as config.json tells it, for weights that can't be looked into."""
        return str(self.config.get("dtype") or self.config.get("torch_dtype") or "float32").removeprefix("torch.")

    @property
    def token_types(self) -> bool:
        return self.family in TYPED and (self.config.get("type_vocab_size") or 0) > 1

    @property
    def says_length(self) -> bool:
        return self._declared_length() is not None

    @property
    def modalities(self) -> Mapping[str, Any]:
        """What sentence-transformers makes of an input; only text where nothing is said."""
        found = self.settings.get("modality_config")
        return found if isinstance(found, dict) else {"text": {}}

    def special(self, name: str) -> str | None:
        """The text of pad_token and its like, which the file gives as text or as an object."""
        named = self.tokenizer.get(name)
        text = named.get("content") if isinstance(named, dict) else named
        return text if isinstance(text, str) else None

    def max_tokens(self) -> int:
        """The declared length, else the tokenizer's; never more than there are positions.

        sentence-transformers would take 514 for an XLM-R whose files say nothing else, and fail on the 513th token.
        """
        positions = _count(self.config.get("max_position_embeddings")) or _count(self.config.get("n_positions"))
        if positions and self.family in SHIFTED:
            positions -= self.pad_id + 1
        declared = self._declared_length()
        if declared and any(key in self.config for key in ROTARY):
            return declared
        told = declared or _count(self.tokenizer.get("model_max_length"))
        return min((limit for limit in (told, positions) if limit), default=UNKNOWN_LENGTH)

    def _declared_length(self) -> int | None:
        options = self.settings.get("processor_kwargs") or self.settings.get("tokenizer_args") or {}
        return _count(self.settings.get("max_seq_length")) or _count(options.get("model_max_length"))

    def prompts(self) -> tuple[dict[str, str], str | None]:
        path = self.folder / "config_sentence_transformers.json"
        prompts, default = self.shared.get("prompts") or {}, self.shared.get("default_prompt_name")
        if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
            raise CheckpointError(f"{path} must hold prompts as names with texts; fetch it again.")
        if default is not None and default not in prompts:
            known = ", ".join(prompts) or "none"
            raise CheckpointError(f"{path} names the default prompt {default!r}; there are {known}.")
        return prompts, default

    def activation(self) -> str:
        """The activation sentence-transformers' CrossEncoder would apply to the one logit, as a bare class name."""
        own = self.config.get("sentence_transformers")
        paths = (
            self.shared.get("activation_fn"),
            own.get("activation_fn") if isinstance(own, dict) else None,
            self.config.get("sbert_ce_default_activation_function"),
        )
        return next((name for path in paths if path and (name := activation_of(str(path)))), "Sigmoid")

    def quantization(self) -> dict[str, Any] | None:
        """MLX's settings; raises CheckpointError for any other way to quantise."""
        found = self.config.get("quantization")
        key = "quantization" if found else "quantization_config"
        found = found or self.config.get(key)
        if not found:
            return None
        path = self.root / "config.json"
        if not isinstance(found, dict):
            raise CheckpointError(f"{path} must hold {key} as an object; fetch it again.")
        method = found.get("quant_method")
        if method is not None and key == "quantization_config":
            raise CheckpointError(
                f"{path} sets quant_method to {str(method)[:60]!r}, which no backend reads; take the model unquantised, "
                "or a conversion to MLX."
            )
        if not found.keys() & MLX_KEYS:
            raise CheckpointError(
                f"{path} says {key}, but neither bits nor a mode of MLX's; take the model unquantised, or a conversion to MLX."
            )
        return found

    def check(self, task: str) -> None:
        """Raises CheckpointError for settings of the transformer that can't be followed exactly."""
        for key in PER_TASK:
            if self.settings.get(key) is not None:
                raise self._unfollowed(key, "vecgate serves one vector a text")
        if task == "embed" and "message" in self.modalities:
            raise self._unfollowed("modality_config", "only a reranker is shown messages, an embedding model texts")
        named = self.settings.get("transformer_task")
        if named not in (None, *TASKS[task]):
            raise self._unfollowed("transformer_task", f"to {task} it is {' or '.join(TASKS[task])}")
        given = self.settings.get("processing_kwargs") or {}
        for key, options in given.items() if isinstance(given, dict) else ():
            if options and key != "chat_template":
                raise self._unfollowed("processing_kwargs", "only chat_template is followed")

    def _unfollowed(self, key: str, why: str) -> CheckpointError:
        path = next(iter(self.root.glob("sentence_*_config.json")), self.root)
        return CheckpointError(
            f"{path} sets {key} to {str(self.settings[key])[:60]!r}, which can't be followed: {why}."
        )


def read(folder: Path, root: Path, *, ignore_code: bool = False) -> Files:
    """Raises CheckpointError for a file that is missing or broken, or asks for code."""
    config = read_config(root, ignore_code=ignore_code)
    if not (root / "tokenizer.json").exists():
        raise CheckpointError(
            f"{root} has no tokenizer.json; make it with "
            "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)."
        )
    named = (optional(root / f"sentence_{family}_config.json") for family in TRANSFORMER_FILES)
    return Files(
        folder=folder,
        root=root,
        config=config,
        tokenizer=optional(root / "tokenizer_config.json"),
        settings=next((one for one in named if one), {}),
        shared=optional(folder / "config_sentence_transformers.json"),
    )


def optional(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = read_json(path, dict) if path.exists() else {}
    return value


def _count(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and 0 < value <= NO_LIMIT else None
