"""A name, a folder or a hub repository -> core.Checkpoint; knows files, neither devices nor requests.

Everything that decides a row comes from the files; where they are silent, from the user or the table of families; what
can't be followed exactly is refused.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vecgate.core import Checkpoint, Pooling, Task
from vecgate.engine import families, files, hashes, hub, scoring, weights
from vecgate.engine.builtin import BUILT_IN as BUILT_IN
from vecgate.engine.builtin import BuiltIn as BuiltIn
from vecgate.engine.builtin import some
from vecgate.engine.families import Family
from vecgate.engine.files import Files
from vecgate.engine.modules import Chain, chain
from vecgate.engine.task import check_head, declared, generates, guessed, signs_of, speaks_last
from vecgate.engine.words import Words
from vecgate.errors import CheckpointError

log = logging.getLogger("vecgate.engine")

SNAPSHOT = re.compile(r"models--([^/]+)--([^/]+)/snapshots/([^/]+)$")


@dataclass(frozen=True, slots=True)
class Found:
    """Where a model lies, and the names it is to be served under. ignore_code: we know that it needs none of its own."""

    folder: Path
    name: str
    aliases: tuple[str, ...] = ()
    revision: str | None = None
    ignore_code: bool = False


def resolve(
    name: str,
    *,
    cache: Path | None = None,
    offline: bool = False,
    allow_pickle: bool = False,
    ignore_code: bool = False,
) -> Found:
    """The folder behind a built-in short name, a folder path or a hub id "org/name[@revision]".

    cache: where checked hashes are remembered (None: a built-in's weights are hashed each time). offline: use the hub's
    local cache only. The others as for `read`. Raises CheckpointError with the next step.
    """
    for one in BUILT_IN:
        if name.casefold() in {one.short, one.name.casefold(), one.repo.casefold()}:
            return _built_in(one, cache, offline)
    folder = Path(name).expanduser()
    if name.strip() and folder.is_dir():
        return _folder(folder.resolve())
    repo, _, revision = name.partition("@")
    if hub.REPO.fullmatch(repo) and not name.startswith("."):
        wanted = hub.Wanted(repo, revision or None, allow_pickle=allow_pickle, ignore_code=ignore_code)
        snapshot = hub.fetch(wanted, offline=offline)
        return Found(snapshot, repo, (), snapshot.name)
    known = some([one.short for one in BUILT_IN])
    raise CheckpointError(
        f"Model {name!r} is no folder here, no hub id (org/name[@revision]), and no short name ({known})."
    )


def read(
    folder: Path,
    name: str | None = None,
    task: Task | None = None,
    aliases: tuple[str, ...] = (),
    revision: str | None = None,
    *,
    pooling: Pooling | None = None,
    prompts: Mapping[str, str] | None = None,
    allow_pickle: bool = False,
    ignore_code: bool = False,
) -> Checkpoint:
    """The checkpoint in this folder; `name` defaults to the folder's, the rest to what its files say, or the table of
    families where they are silent.

    prompts: beside its own, or instead of those of the same names. allow_pickle: PyTorch's own files will do.
    ignore_code: a repository that brings code is served without it. Reads JSON and the headers of the weights, never
    the weights. Raises CheckpointError naming the file and the remedy.
    """
    found = chain(folder, ignore_code=ignore_code, allow_pickle=allow_pickle)
    root = found.root if found else folder
    name = name or folder.name
    said = files.read(folder, root, ignore_code=ignore_code)
    quantization = said.quantization()
    stored = weights.find(root, allow_pickle=allow_pickle)
    words = Words(root) if speaks_last(said.config) else None
    ending = words.ending if words else None
    called = families.called(said.config, name)
    known = (called.task, called.name) if called else None
    signs = signs_of(name, stored.tensors, ending, known) if generates(said.config) and found is None else []
    for other, why in signs:
        if task not in (None, other):
            log.warning("%s is to %s, but its files look as if it were to %s: %s.", name, task, other, why)
    task = task or declared(said.config, found)
    if task is None:
        task, why = guessed(root, signs)
        log.info("%s is taken for a model that %ss: %s.", name, task, why)
    row = families.find(said.config, name, task, ending)
    own, default = said.prompts()
    made = Checkpoint(
        name=name,
        folder=root,
        family=said.family,
        task=task,
        config=said.config,
        weights=stored.files,
        max_tokens=_max_tokens(said, None if found else row),
        pad_id=said.pad_id,
        stored_dtype=stored.dtype or said.dtype,
        weight_bytes=stored.size_bytes,
        aliases=aliases,
        revision=revision,
        prompts=own,
        default_prompt=default,
        lower_case=bool(said.settings.get("do_lower_case")),
        similarity=str(said.shared.get("similarity_fn_name") or "cosine"),
        token_types=said.token_types,
        quantization=quantization,
    )
    if task == "rerank":
        if pooling is not None:
            raise CheckpointError(
                f"{name} is a reranker, which pools nothing; a pooling ({pooling}) means nothing to it."
            )
        return _reranker(made, said, found, row, words, prompts or {})
    return _embedder(made, said, found, row, words, pooling, prompts or {})


# where a model lies


def _built_in(one: BuiltIn, cache: Path | None, offline: bool) -> Found:
    """From its package, found without importing it, else from the hub; the weights' hash guards both."""
    aliases = (one.short, one.repo)
    spec = importlib.util.find_spec(one.package) if one.package else None
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location) / one.subfolder
        if folder.is_dir():
            _check_hash(folder / "model.safetensors", one, cache)
            return Found(folder, one.name, aliases, ignore_code=one.ignore_code)
    try:
        folder = hub.fetch(hub.Wanted(one.repo, one.revision, ignore_code=one.ignore_code), offline=offline)
    except CheckpointError as error:
        if one.package is None:
            raise
        raise CheckpointError(f"{one.name} is not on this machine: {one.remedy}; {error}") from error
    _check_hash(folder / "model.safetensors", one, cache)
    return Found(folder, one.name, aliases, one.revision or folder.name, one.ignore_code)


def _folder(folder: Path) -> Found:
    """A folder is called by its name, one of the hub's cache by the repository's."""
    cached = SNAPSHOT.search(folder.as_posix())
    if cached:
        return Found(folder, f"{cached[1]}/{cached[2]}", (), cached[3])
    return Found(folder, folder.name)


def _check_hash(path: Path, one: BuiltIn, cache: Path | None) -> None:
    """Raises CheckpointError unless the file has the expected sha256."""
    if one.sha256 is None:
        return
    try:
        digest = hashes.sha256(path, cache)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read ({error.strerror}); {one.remedy}.") from error
    if digest != one.sha256:
        hashes.forget(path, cache)
        raise CheckpointError(f"{path} has sha256 {digest}, {one.name} has {one.sha256}; {one.remedy} anew.")


# what it is for


def _embedder(
    made: Checkpoint,
    said: Files,
    found: Chain | None,
    row: Family | None,
    words: Words | None,
    pooling: Pooling | None,
    asked: Mapping[str, str],
) -> Checkpoint:
    """pooling, asked: the user's, the latter its prompts."""
    said.check("embed")
    if found is None and row is not None:
        if row.dense and not _holds_dense(made.weights):
            raise CheckpointError(
                f"{said.root} lacks the Dense layers that {row.name} ends in; take the original, whose modules.json lists "
                "them, or a conversion that has kept them."
            )
        log.info("%s: its files say nothing of pooling, so it is that of %s: %s.", made.name, row.name, row.pooling)
    declares = found is not None and found.pooling
    if found is not None and not found.pooling and pooling is None:
        raise CheckpointError(f"{said.folder / 'modules.json'} has no Pooling, so nothing makes one row of a text.")
    for layer in found.dense if found else ():
        _check_dense(layer.weights)
    prompts = made.prompts if made.prompts or row is None else row.prompts
    return replace(
        made,
        config={**row.implied, **made.config} if row else made.config,
        pooling=(pooling,) if pooling else found.pooling if found and declares else (_pooling(said, row),),
        include_prompt=found.include_prompt if found else True,
        normalize=found.normalize if found else row is not None and row.normalize,
        dense=found.dense if found else (),
        prompts={**prompts, **asked},
        tail=_tail(said, row, words),
    )


def _holds_dense(files: Iterable[Path]) -> bool:
    """Whether the Dense layers lie among the weights, where conversions to MLX put them."""
    names = (name for file in files if file.suffix == ".safetensors" for name in weights.header(file))
    return any(name.removeprefix("model.").startswith("dense.0.") for name in names)


def _pooling(said: Files, row: Family | None) -> Pooling:
    """Without a modules.json: the table's, else sentence-transformers': mean, or the last token of a causal model."""
    if row is not None:
        return row.pooling
    pooling: Pooling = "last" if generates(said.config) and said.config.get("is_causal", True) else "mean"
    log.warning(
        "%s has no modules.json and no family of ours fits its name, so its pooling is %s, as sentence-transformers would "
        "take it; --pooling says another.",
        said.folder,
        pooling,
    )
    return pooling


def _reranker(
    made: Checkpoint,
    said: Files,
    found: Chain | None,
    row: Family | None,
    words: Words | None,
    asked: Mapping[str, str],
) -> Checkpoint:
    """asked: the user's prompts; a reranker has but one, which stands before the query or is what a template is about."""
    check_head(said.root, said.config)
    said.check("rerank")
    if found is not None and found.pooling and generates(said.config):
        raise CheckpointError(f"{said.folder / 'modules.json'} pools tokens, so {made.name} embeds; it can't rerank.")
    # only what sentence-transformers saved as a CrossEncoder has a default that it would apply
    default = made.default_prompt if said.shared.get("model_type") == "CrossEncoder" else None
    default = default or ("query" if asked else None)
    if asked and [*asked] not in (["query"], [default]):
        raise CheckpointError(f"{made.name} is a reranker, whose one prompt is called query; not {', '.join(asked)}.")
    made = replace(made, prompts={**made.prompts, **{str(default): text for text in asked.values()}})
    how = scoring.read(said, found, row, words, made.prompts[default] if default else "")
    if how.instruction and default is None:
        default, made = "query", replace(made, prompts={**made.prompts, "query": how.instruction})
    return replace(
        made,
        pooling=("last",) if words else ("cls",),
        default_prompt=default,
        activation=said.activation(),
        template=how.template,
        yes_id=how.yes_id,
        no_id=how.no_id,
    )


def _max_tokens(said: Files, row: Family | None) -> int:
    most = said.max_tokens()
    return most if row is None or row.max_tokens is None or said.says_length else min(most, row.max_tokens)


def _tail(said: Files, row: Family | None, words: Words | None) -> tuple[int, ...]:
    """The end of each text that its tokenizer should put there and does not.

    transformers 5 no longer heeds add_eos_token, and some tokenizers add theirs in code of their own.
    """
    expected = said.special("eos_token") if said.tokenizer.get("add_eos_token") is True else None
    if row is not None and row.ending is not None:
        expected = row.ending
    if words is None or words.ending is not None or expected is None:
        return ()
    return (words.id_of(expected),)


def _check_dense(path: Path) -> None:
    if not path.exists():
        raise CheckpointError(
            f"{path} is missing; fetch the model again (pickle is not loaded without --allow-pickle)."
        )
    if path.suffix == ".safetensors" and "linear.weight" not in weights.header(path):
        raise CheckpointError(f"{path} has no linear.weight; fetch the file again.")
