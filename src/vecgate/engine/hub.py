"""A hub repository -> a folder with the files that are needed; the only file that talks to the hub.

What is already in the local cache is used without a request. huggingface-hub reads HF_HOME, HF_TOKEN, HF_ENDPOINT and
HF_HUB_OFFLINE itself.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from vecgate.engine import modules, weights
from vecgate.errors import CheckpointError

REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
NEEDLESS = ["onnx/*", "openvino/*", "original/*", "coreml/*", "gguf/*", ".*"]
JSON = ["*.json", "chat_template.jinja"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A repository; what its user allows is as for checkpoint.read."""

    repo: str
    revision: str | None = None
    allow_pickle: bool = False
    ignore_code: bool = False

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


def fetch(wanted: Wanted, *, offline: bool = False) -> Path:
    """The snapshot's folder, from the cache or downloaded; raises CheckpointError saying what to do.

    Only JSON and safetensors files are fetched, pickle where it is allowed and there is nothing else, never code; an
    interrupted download is taken up again.
    """
    cached = _cached(wanted, offline)
    if cached is not None:
        return cached
    if offline:
        raise CheckpointError(f"{wanted} is not in the local cache; start once without --offline.")
    # JSON first, weights last: where the weights are whole, nothing else is missing, however a download was broken off
    folder = _download(wanted, JSON)
    files = [_within(folder, path) for path in _weights(folder, wanted)]
    folder = _download(wanted, [*JSON, *files])
    missing = [path for path in _weights(folder, wanted) if not path.exists()]
    if missing and wanted.allow_pickle:
        files = [_within(folder, path) for path in _weights(folder, wanted, pickle=True)]
        folder = _download(wanted, [*JSON, *files])
        missing = [path for path in _weights(folder, wanted, pickle=True) if not path.exists()]
    if missing:
        raise CheckpointError(
            f"{wanted} has no safetensors weights ({_within(folder, missing[0])}); pickle can run code and is not loaded: "
            "take another model, or a revision that has them, or trust it with --allow-pickle."
        )
    return folder


def _cached(wanted: Wanted, offline: bool) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                wanted.repo,
                revision=wanted.revision,
                local_files_only=True,
                allow_patterns=JSON,
                ignore_patterns=NEEDLESS,
            )
        )
    except OSError:  # its LocalEntryNotFoundError: nothing there, or known to be incomplete
        return None
    try:
        whole = all(path.exists() for path in _weights(folder, wanted))
        if not whole and wanted.allow_pickle:
            whole = all(path.exists() for path in _weights(folder, wanted, pickle=True))
    except CheckpointError:
        if offline:
            raise
        return None  # said again, if it is still true once the file has been fetched anew
    return folder if whole else None


def _weights(folder: Path, wanted: Wanted, *, pickle: bool = False) -> list[Path]:
    """The files of weights that this snapshot must hold, read from its JSON files."""
    found = modules.chain(folder, ignore_code=wanted.ignore_code)
    root = found.root if found else folder
    modules.read_config(root, ignore_code=wanted.ignore_code)
    own = [root / name for name in weights.names(root)]
    layers = [layer.weights for layer in (found.dense if found else ())]
    if pickle and not all(path.exists() for path in own):
        own = [root / name for name in weights.names(root, weights.PICKLE)]
    if pickle:
        layers = [path if path.exists() else path.with_name(weights.PICKLE) for path in layers]
    return [*own, *layers]


def _within(folder: Path, path: Path) -> str:
    return str(path.relative_to(folder))


def _download(wanted: Wanted, patterns: list[str]) -> Path:
    from huggingface_hub import errors, snapshot_download

    # what went wrong is told once, by our error; the library, which sets its level when imported, would tell each retry
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    repo, revision, shown = wanted.repo, wanted.revision, str(wanted)
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
