"""What `vecgate models` shows and changes: the models on this machine, what each is, and which backend would serve it.

Knows the hub's cache, the built-in models and the token tables; prints nothing and asks nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vecgate.backends import choose
from vecgate.core import Checkpoint
from vecgate.engine import cached, checkpoint
from vecgate.engine.builtin import some
from vecgate.engine.cached import Cached
from vecgate.errors import CheckpointError, CommandError, ConfigError
from vecgate.protocols import token_ids
from vecgate.settings import Settings

HUB = "hub cache"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the list. names: what --model takes. place: what holds it, "" where it is not here. task, family,
    backend: None where `note` says why it can't be served, or where it is not here."""

    names: tuple[str, ...]
    place: str
    revision: str | None = None
    size_bytes: int | None = None
    task: str | None = None
    family: str | None = None
    backend: str | None = None
    note: str = ""


def entries(settings: Settings) -> list[Entry]:
    """The built-in models, here or not; then the hub's cache; then OpenAI's token tables."""
    shelf = cached.cached()
    built_in = [_built_in(one, settings) for one in checkpoint.BUILT_IN]
    known = {entry.revision for entry in built_in if entry.place == HUB}
    others = [_cached(one, settings) for one in shelf if one.revision not in known]
    return [*built_in, *others, *_tables(settings)]


def fetch(name: str, settings: Settings) -> Path:
    """The folder of the model, or the file of the table, fetched where it is not here yet; it can be served.

    Raises CheckpointError and ConfigError.
    """
    for table in token_ids.TABLES:
        if name == table:
            return token_ids.fetch(table, _tables_folder(settings))
    short = [one.short for one in checkpoint.BUILT_IN]
    if "/" not in name and name.casefold() not in (*short, *(one.name.casefold() for one in checkpoint.BUILT_IN)):
        raise ConfigError(
            f"{name!a} is nothing to fetch: allowed are a hub id (org/name[@revision]), a short name "
            f"({some(short)}), and a token table ({', '.join(token_ids.TABLES)})."
        )
    allow_pickle, ignore_code = settings.allow_pickle, settings.ignore_code
    found = checkpoint.resolve(name, cache=settings.cache_dir, allow_pickle=allow_pickle, ignore_code=ignore_code)
    checkpoint.read(
        found.folder,
        name=found.name,
        task=settings.task,
        allow_pickle=allow_pickle,
        ignore_code=ignore_code or found.ignore_code,
    )
    return found.folder


@dataclass(frozen=True, slots=True)
class Removal:
    """What would go: revisions in the hub's cache, or a file."""

    what: str
    size_bytes: int
    revisions: tuple[Cached, ...] = ()
    file: Path | None = None


def removal(name: str, settings: Settings) -> Removal:
    """What `name` (a short name, a hub id[@revision] or a table) stands for; raises CommandError where it is not here."""
    for table in token_ids.TABLES.items():
        if name == table[0]:
            file = _tables_folder(settings) / table[1].file_name
            if not file.is_file():
                raise CommandError(f"The table {name} is not here ({file.parent}): there is nothing to remove.")
            return Removal(f"the table {name} ({file})", file.stat().st_size, file=file)
    built_in = next((one for one in checkpoint.BUILT_IN if name.casefold() in (one.short, one.name.casefold())), None)
    repo, _, revision = (built_in.repo if built_in else name).partition("@")
    found = tuple(
        one for one in cached.cached() if one.repo.casefold() == repo.casefold() and one.revision.startswith(revision)
    )
    if not found:
        if built_in and (place := _place(built_in, settings)) is not None and place != HUB:
            raise CommandError(f"{built_in.name} is not in the hub's cache but in {place}: pip uninstall removes that.")
        raise CommandError(f"{name} is not in the hub's cache: `vecgate models` lists what is.")
    revisions = "" if len(found) == 1 else f" ({len(found)} revisions)"
    return Removal(f"{found[0].repo}{revisions}", sum(one.size_bytes for one in found), found)


def remove(what: Removal) -> int:
    """The bytes freed; raises CommandError."""
    if what.file is None:
        return cached.remove(what.revisions)
    try:
        what.file.unlink()
    except OSError as error:
        raise CommandError(f"{what.file} can't be removed ({error.strerror}): see who may write there.") from error
    return what.size_bytes


def _built_in(one: checkpoint.BuiltIn, settings: Settings) -> Entry:
    names = (one.short, one.name, one.repo)
    try:
        found = checkpoint.resolve(one.short, cache=settings.cache_dir, offline=True)
        read = checkpoint.read(found.folder, name=found.name, ignore_code=found.ignore_code)
    except CheckpointError:
        unpinned = "" if one.revision else " (what the hub calls main: we know no revision of it)"
        return Entry(names, "", one.revision, note=f"vecgate models fetch {one.short}{unpinned}")
    place = HUB if found.revision else f"the package {one.package}"
    return _served(read, names, place, one.revision or found.revision, read.weight_bytes, settings)


def _place(one: checkpoint.BuiltIn, settings: Settings) -> str | None:
    return _built_in(one, settings).place or None


def _cached(one: Cached, settings: Settings) -> Entry:
    try:
        read = checkpoint.read(
            one.folder, name=one.repo, allow_pickle=settings.allow_pickle, ignore_code=settings.ignore_code
        )
    except CheckpointError as error:
        return Entry((one.repo,), HUB, one.revision, one.size_bytes, note=_reason(error, one.folder))
    return _served(read, (one.repo,), HUB, one.revision, one.size_bytes, settings)


def _served(
    read: Checkpoint, names: tuple[str, ...], place: str, revision: str | None, size_bytes: int, settings: Settings
) -> Entry:
    try:
        backend, note = choose(settings.backend, read.family, read.task)
    except ConfigError as error:
        return Entry(names, place, revision, size_bytes, read.task, read.family, None, str(error))
    return Entry(names, place, revision, size_bytes, read.task, read.family, backend, note)


def _reason(error: CheckpointError, folder: Path) -> str:
    """What is wrong, without the long path of a snapshot."""
    return str(error).replace(f"{folder}/", "").replace(str(folder), "its folder")


def _tables(settings: Settings) -> Sequence[Entry]:
    folder = _tables_folder(settings)
    found = []
    for name, table in token_ids.TABLES.items():
        file = folder / table.file_name
        if file.is_file():
            found.append(Entry((name,), str(folder), size_bytes=file.stat().st_size, task="token ids"))
        else:
            found.append(Entry((name,), "", task="token ids", note=f"vecgate models fetch {name}"))
    return found


def _tables_folder(settings: Settings) -> Path:
    assert settings.tiktoken_dir is not None  # load fills it in
    return settings.tiktoken_dir


# how it reads


def as_table(found: Sequence[Entry], settings: Settings) -> str:
    """Columns for a terminal; the default model has a star."""
    rows = [("NAME (* the default)", "TASK", "FAMILY", "SIZE", "BACKEND", "WHERE")]
    for entry in found:
        star = "*" if settings.models[0].casefold() in map(str.casefold, entry.names) else ""
        revision = f"@{entry.revision[:8]}" if entry.revision and entry.place == HUB else ""
        where = f"{entry.place}{revision}" if entry.place else f"not here: {entry.note}"
        if entry.place and entry.note and entry.backend is None:
            where = f"{where}; can't be served: {entry.note}"
        shown = size(entry.size_bytes) if entry.size_bytes is not None else "-"
        rows.append(
            (
                entry.names[0] + star,
                entry.task or "-",
                entry.family or "-",
                shown,
                entry.backend or "-",
                where,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[-1]]) for row in rows)


def as_json(found: Sequence[Entry]) -> str:
    return msgspec.json.format(msgspec.json.encode(found)).decode()


def size(size_bytes: int) -> str:
    """1536 -> 1.5 kB: three digits are enough to choose by."""
    amount, units = float(size_bytes), ["B", "kB", "MB", "GB", "TB"]
    while amount >= 999.5 and len(units) > 1:
        amount, units = amount / 1000.0, units[1:]
    return f"{amount:.3g} {units[0]}"
