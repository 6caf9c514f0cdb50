"""The hub's local cache as a shelf: which models lie in it, and their removal. Asks nobody but the disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vecgate.errors import CommandError


@dataclass(frozen=True, slots=True)
class Cached:
    """One revision of a repository. folder: its snapshot. size_bytes: of its files, which others may share."""

    repo: str
    revision: str
    folder: Path
    size_bytes: int


def cached() -> tuple[Cached, ...]:
    """Every revision of every model, by name; repositories of other kinds are left out."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        found = scan_cache_dir()
    except CacheNotFound:
        return ()
    models = [
        Cached(repo.repo_id, revision.commit_hash, revision.snapshot_path, revision.size_on_disk)
        for repo in found.repos
        if repo.repo_type == "model"
        for revision in repo.revisions
    ]
    return tuple(sorted(models, key=lambda one: (one.repo.casefold(), one.revision)))


def remove(models: Sequence[Cached]) -> int:
    """Delete these revisions and the files that no other one shares; the bytes freed. Raises CommandError."""
    from huggingface_hub import scan_cache_dir

    plan = scan_cache_dir().delete_revisions(*(one.revision for one in models))
    plan.execute()  # says nothing of what it could not delete
    left = next((one.folder for one in models if one.folder.exists()), None)
    if left is not None:
        raise CommandError(f"{left} could not be removed: see who may write there.")
    return plan.expected_freed_size
