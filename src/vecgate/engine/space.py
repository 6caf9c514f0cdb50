"""The fingerprint of a vector space: a short text that is the same where rows may be compared, and another where not.

It is over what decides a row: weights, tokenizer, configuration, revision, quantisation, prompts, pooling, layers after
it, normalisation, limits, and the class of the number type; not over backend and device. docs/spaces.md tells users.
Knows files and checkpoints, neither requests nor devices.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path

from vecgate.core import Checkpoint
from vecgate.engine import hashes
from vecgate.errors import NotReady

log = logging.getLogger("vecgate.engine")

RECIPE = "vs1"
"""Stands before the digits; another one whenever the same model would get others."""
DIGITS = 24
CLOSE_S = 1.0
"""How long the end waits for the thread: it looks up after every part of a file."""
SILENT = frozenset(
    (
        "_name_or_path",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "use_cache",
        "quantization",
        "quantization_config",
    )
)
"""Fields of config.json that decide no row, or that the fingerprint says in other words."""


def fingerprint(checkpoint: Checkpoint, digests: Mapping[Path, str], dtype: str) -> str:
    """digests: of `files_of(checkpoint)`. dtype: the loaded model's, of which the class counts."""
    said = {
        "weights": [digests[path] for path in sorted(checkpoint.weights)],
        "tokenizer": digests[_tokenizer(checkpoint)],
        "dense": [[digests[layer.weights], layer.activation, layer.bias] for layer in checkpoint.dense],
        "config": {name: value for name, value in checkpoint.config.items() if name not in SILENT},
        "dtype": _class_of(checkpoint, dtype),
        "template": checkpoint.template and asdict(checkpoint.template),
    }
    plain = (
        "family",
        "task",
        "revision",
        "quantization",
        "pooling",
        "prompts",
        "default_prompt",
        "include_prompt",
        "normalize",
        "max_tokens",
        "tail",
        "lower_case",
        "token_types",
        "pad_id",
        "yes_id",
        "no_id",
    )
    said |= {name: getattr(checkpoint, name) for name in plain}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return f"{RECIPE}-{hashlib.sha256(text.encode()).hexdigest()[:DIGITS]}"


def files_of(checkpoint: Checkpoint) -> tuple[Path, ...]:
    """What is hashed: weights, tokenizer, and the layers after pooling."""
    return (*checkpoint.weights, _tokenizer(checkpoint), *(layer.weights for layer in checkpoint.dense))


def _tokenizer(checkpoint: Checkpoint) -> Path:
    return checkpoint.folder / "tokenizer.json"


def _class_of(checkpoint: Checkpoint, dtype: str) -> str:
    if checkpoint.quantization is not None:
        return "quantised"
    return "float32" if dtype in ("float32", "float64") else "16-bit"


class Space:
    """One served model's space; known once its files are hashed and the model is loaded.

    A file that changes in between leaves it unknown: nobody can say then which of the two was loaded.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._before = _marks(checkpoint)
        self._dtype: str | None = None
        self._loaded = threading.Event()
        self._digests: dict[Path, str] | None = None
        self._found: Future[tuple[str | None, str]] = Future()
        self._found.set_running_or_notify_cancel()  # so that a request that leaves takes it from no other

    @property
    def text(self) -> str | None:
        """The fingerprint; None until it is known."""
        return self._found.result()[0] if self._found.done() else None

    async def known(self) -> str:
        """The fingerprint, waited for; raises NotReady where it will not be known."""
        text, why = await asyncio.wrap_future(self._found)
        if text is None:
            raise NotReady(f"The vector space of {self._checkpoint.name!r} is not known: {why}", None)
        return text

    def changed(self) -> bool:
        """Whether its files are others than at first: what is loaded from them now may give other rows."""
        return self._before is not None and _marks(self._checkpoint) != self._before

    def loaded(self, dtype: str | None) -> None:
        """The number type it was loaded in; None: it failed to load."""
        self._dtype = dtype
        self._loaded.set()

    def read(self, digests: dict[Path, str], cache: Path | None, stopped: threading.Event) -> None:
        """Hash what `digests` does not hold yet; raises hashes.Stopped."""
        try:
            for path in files_of(self._checkpoint):
                if path not in digests:
                    digests[path] = hashes.named(path) or hashes.sha256(path, cache, lambda: not stopped.is_set())
        except OSError as error:
            self._end(f"{Path(error.filename or '').name} can't be read ({error.strerror}).")
        else:
            self._digests = digests

    def settle(self, stopped: threading.Event) -> None:
        """Say what it is, once the model is loaded or has failed."""
        self._loaded.wait()
        if self._digests is None or stopped.is_set():
            return
        if self._dtype is None:
            self._end("it failed to load.")
        elif self._before is None or _marks(self._checkpoint) != self._before:
            self._end("its files changed while it was loaded; restart the server.")
        else:
            text = fingerprint(self._checkpoint, self._digests, self._dtype)
            self._found.set_result((text, ""))
            log.info("The vector space of %s is %s.", self._checkpoint.name, text)

    def release(self) -> None:
        """Let `settle` end, loaded or not."""
        self._loaded.set()

    def _end(self, why: str) -> None:
        log.warning("The vector space of %s is not known: %s", self._checkpoint.name, why)
        self._found.set_result((None, why))


class Search:
    """Finds the spaces of all models on a thread of its own, which the end of the process does not wait for.

    cache: where hashes are remembered.
    """

    def __init__(self, spaces: Sequence[Space], cache: Path | None) -> None:
        self._spaces = spaces
        self._cache = cache
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vecgate-space", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            for space in self._spaces:
                space.release()
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        digests: dict[Path, str] = {}
        try:
            for space in self._spaces:
                space.read(digests, self._cache, self._stopped)
            for space in self._spaces:
                space.settle(self._stopped)
        except hashes.Stopped:
            return


def _marks(checkpoint: Checkpoint) -> Sequence[hashes.Mark] | None:
    """None where a file is missing."""
    try:
        return [hashes.mark(path) for path in files_of(checkpoint)]
    except OSError:
        return None
