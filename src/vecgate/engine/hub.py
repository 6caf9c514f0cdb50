"""A hub repository -> a folder with the files that are needed; the only file that talks to the hub.

What is already in the local cache is used without a request. huggingface-hub reads HF_HOME, HF_TOKEN, HF_ENDPOINT and
HF_HUB_OFFLINE itself.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import cast

from vecgate.engine import modules, weights
from vecgate.errors import CheckpointError

REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
NEEDLESS = ["onnx/*", "openvino/*", "original/*", "coreml/*", "gguf/*", ".*"]
JSON = ["*.json"]

# what went wrong is told once, by our error; the library would tell each of its retries
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def fetch(repo: str, revision: str | None, *, offline: bool = False) -> Path:
    """The snapshot's folder, from the cache or downloaded; raises CheckpointError saying what to do.

    Only JSON and safetensors files are fetched, never pickle or code; an interrupted download is taken up again.
    """
    cached = _cached(repo, revision, offline)
    if cached is not None:
        return cached
    if offline:
        raise CheckpointError(f"{_shown(repo, revision)} is not in the local cache; start once without --offline.")
    # JSON first, weights last: where the weights are whole, nothing else is missing, however a download was broken off
    folder = _download(repo, revision, JSON)
    files = [str(path.relative_to(folder)) for path in _weights(folder)]
    folder = _download(repo, revision, [*JSON, *files])
    if not all(path.exists() for path in _weights(folder)):
        raise CheckpointError(
            f"{_shown(repo, revision)} has no safetensors weights ({files[0]}); pickle can run code and is never "
            "loaded: take another model, or a revision that has them."
        )
    return folder


def _cached(repo: str, revision: str | None, offline: bool) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                repo, revision=revision, local_files_only=True, allow_patterns=JSON, ignore_patterns=NEEDLESS
            )
        )
    except OSError:  # its LocalEntryNotFoundError: nothing there, or known to be incomplete
        return None
    try:
        return folder if all(path.exists() for path in _weights(folder)) else None
    except CheckpointError:
        if offline:
            raise
        return None  # said again, if it is still true once the file has been fetched anew


def _weights(folder: Path) -> list[Path]:
    """The files of weights that this snapshot must hold, read from its JSON files."""
    found = modules.chain(folder)
    root = found.root if found else folder
    modules.read_config(root)
    return [
        *(root / name for name in weights.names(root)),
        *(layer.weights for layer in (found.dense if found else ())),
    ]


def _download(repo: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import errors, snapshot_download

    shown = _shown(repo, revision)
    login = "log in with `hf auth login` or set HF_TOKEN"
    # the HTTP client's own error, whichever client this version of the library uses
    transport = cast("type[Exception]", errors.HfHubHTTPError.__bases__[0])
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, ignore_patterns=NEEDLESS))
    except errors.GatedRepoError as error:
        raise CheckpointError(f"{shown} is gated: accept its terms on its hub page, then {login}.") from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{repo} has no revision {revision!r}; its hub page lists them.") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repo} is not on the hub, or private: check the spelling, or {login}. A folder is given as ./{repo}."
        ) from error
    except (OSError, RuntimeError, transport) as error:
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            raise CheckpointError(f"The hub refused {shown}: {login} with a key that may read it.") from error
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{shown} could not be fetched from the hub ({reason}); check the connection and start again."
        ) from error


def _shown(repo: str, revision: str | None) -> str:
    return f"{repo}@{revision}" if revision else repo
