"""One served model: its checkpoint and tokenizer from the start, its backend once it is loaded, and what it refuses.

Knows one model; queues and calls are the engine's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic, perf_counter, time

from vecgate.core import BackendCard, Checkpoint, ModelCard, ModelState, Tokens, Verification
from vecgate.engine.names import Named, names_of
from vecgate.engine.space import Space
from vecgate.engine.tokenizer import Tokenizer
from vecgate.engine.warmup import warm
from vecgate.errors import InvalidRequest, NotReady, SpaceMismatch
from vecgate.traits import Backend

log = logging.getLogger("vecgate.engine")

FOLDERS = re.compile(r"(?<![\w.~/])~?/(?:[^/\s:;'\"]*/)*")
"""An absolute path's folders: the file's own name says enough to a client."""
SYNONYMS = {"document": ("document", "passage", "corpus"), "query": ("query",)}
"""Prompt names that mean one of the two roles every model has; sentence-transformers' encode_document tries the same."""


@dataclass(slots=True, eq=False)
class Model:
    """One served model: what is known before it is loaded, and what loading adds.

    open: loads it, told `others`: the checkpoints of models that need room beside it, if any; called on the device
    thread. backend_name, why: the backend it gets, and for what reason. served: it has been ready before. began_s,
    rest_until_s: on the monotonic clock, when its load began, and until when another is not tried. loaded: what the
    backend told of itself, also once it is unloaded. tokens_per_s: what the warm-up measured, of one row at a time.
    """

    checkpoint: Checkpoint
    open: Callable[..., Backend]
    backend_name: str
    why: str = ""
    state: ModelState = "loading"
    served: bool = False
    began_s: float = 0.0
    rest_until_s: float = 0.0
    error: str | None = None
    space: Space = field(init=False)
    tokenizer: Tokenizer = field(init=False)
    backend: Backend | None = None
    loaded: BackendCard | None = None
    load_s: float | None = None
    warmup_s: float | None = None
    tokens_per_s: float | None = None
    verification: Verification | None = None
    replaced: tuple[str, ...] = ()
    created: int = field(default_factory=lambda: int(time()))

    def __post_init__(self) -> None:
        self.space = Space(self.checkpoint)
        self.tokenizer = Tokenizer(self.checkpoint)

    @property
    def name(self) -> str:
        return self.checkpoint.name

    def load(self, others: Sequence[Checkpoint] = ()) -> Backend:
        """Open and warm up, on the device thread; the state stays "warming" until the engine opens its queue."""
        start_s = perf_counter()
        self.backend = backend = self.open(others=others) if others else self.open()
        self.loaded = backend.card
        self.load_s = perf_counter() - start_s
        self.space.loaded(backend.card.dtype)
        self.state = "warming"
        least, most = self.tokenizer.least_tokens, self.checkpoint.max_tokens
        self.tokens_per_s = warm(backend, self._sample, least, most)
        self.warmup_s = perf_counter() - start_s - self.load_s
        return backend

    def _sample(self, length: int) -> list[Tokens]:
        text = "warm " * length
        if self.checkpoint.task == "rerank":
            return self.tokenizer.encode_pairs("warm", [text], length, "end")
        return self.tokenizer.encode([text], "", length, "end")

    def failed(self, error: BaseException) -> None:
        """It could not be loaded and says why: in the log, and without the machine's paths in /health. It stays failed, or
        where it was served before, unloaded, until the next request, or for as long as this took: a load that always fails
        may not keep the device from the other models."""
        why = str(error) or type(error).__name__
        self.error = FOLDERS.sub("", why.replace(f"{self.checkpoint.folder}/", ""))
        self.state = "unloaded" if self.served else "failed"
        if self.served:
            self.rest_until_s = 2 * monotonic() - self.began_s
        else:
            self.space.loaded(None)
        log.critical("Model %s failed to load: %s", self.name, why, exc_info=error)

    def check_ready(self) -> None:
        """Raises NotReady while it loads, and without a retry once it failed."""
        if self.state == "failed":
            raise NotReady(f"Model {self.name!r} failed to load; the server's log says why.", None)
        if self.state != "ready":
            raise NotReady(f"Model {self.name!r} is {self.state}; try again in a few seconds.")

    async def check_space(self, expected: str | None) -> None:
        """Wait until its vector space is known; raises SpaceMismatch with both."""
        if expected is not None and expected != (have := await self.space.known()):
            raise SpaceMismatch(
                f"vector_space_mismatch: the request expects the vector space {expected[:100]!r}, and {self.name!r} is of "
                f"{have!r}.",
                "space",
            )

    def check_dimensions(self, dimensions: int | None) -> None:
        assert self.loaded is not None
        width = self.loaded.dimensions
        if dimensions is not None and not 1 <= dimensions <= width:
            raise InvalidRequest(f"dimensions is {dimensions}; {self.name!r} allows 1 to {width}.", "dimensions")

    def card(self) -> ModelCard:
        """What may be told of it now."""
        checkpoint = self.checkpoint
        card = ModelCard(
            name=checkpoint.name,
            aliases=names_of(checkpoint)[1:],
            task=checkpoint.task,
            family=checkpoint.family,
            state=self.state,
            max_tokens=checkpoint.max_tokens,
            pooling=checkpoint.pooling,
            normalize=checkpoint.normalize,
            prompts=checkpoint.prompts,
            default_prompt=checkpoint.default_prompt,
            created=self.created,
            weight_bytes=checkpoint.weight_bytes,
            revision=checkpoint.revision,
            space=self.space.text,
            backend=self.backend_name,
            why=self.why or None,
            load_s=self.load_s,
            warmup_s=self.warmup_s,
            verification=self.verification,
        )
        loaded = self.loaded
        if loaded is None:
            return card
        return replace(
            card,
            device=loaded.device,
            dtype=loaded.dtype,
            dimensions=loaded.dimensions if checkpoint.task == "embed" else None,
            batch_tokens=loaded.batch_tokens,
            weight_bytes=loaded.weight_bytes,
        )


def prompt_of(model: Named, role: str | None) -> tuple[str | None, str]:
    """The role applied and its prompt: none asked for means the checkpoint's default; query and document always exist.
    A name's case is the client's affair.

    Raises InvalidRequest with the roles there are.
    """
    role = role or model.default_prompt
    if role is None:
        return None, ""
    names = (*model.prompts, *SYNONYMS)
    if role not in names:
        role = next((name for name in names if name.casefold() == role.casefold()), role)
    for name in SYNONYMS.get(role, (role,)):
        if name in model.prompts:
            return role, model.prompts[name]
    if role in SYNONYMS:
        return role, ""
    known = ", ".join(sorted({*SYNONYMS, *model.prompts}))
    raise InvalidRequest(f"Role {role[:100]!r} does not exist for {model.name!r}; these do: {known}.", "role")
