"""The served models on their way onto the device and off it: loaded at the start in their order, unloaded once nobody has
asked for a while, loaded again for the next request.

A model that its own room can't be found for is left out by name, and the others serve. Knows models and the batcher's
jobs, no calls and no names but the true ones.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from math import ceil
from time import monotonic

from vecgate.core import State
from vecgate.engine.batcher import Batcher
from vecgate.engine.model import Model
from vecgate.errors import CheckpointError, NoRoom, NotReady
from vecgate.ram import collect, give_back, uncollected
from vecgate.traits import Backend

log = logging.getLogger("vecgate.engine")


class Residents:
    """open_queue: for a model that is loaded and warm; called on the device thread, and raises what keeps it from serving.

    idle_s: how long a model may go unasked before it is unloaded (0: for ever). on_ready: called on the device thread,
    whenever all of them are loaded for the first time.
    """

    def __init__(
        self,
        models: Sequence[Model],
        batcher: Batcher,
        open_queue: Callable[[Model, Backend], None],
        idle_s: float = 0.0,
    ) -> None:
        self._models = tuple(models)
        self._batcher = batcher
        self._open_queue = open_queue
        self._idle_s = idle_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loading: dict[Model, Future[None]] = {}
        self._users = dict.fromkeys(self._models, 0)
        self._alarms: dict[Model, asyncio.TimerHandle] = {}
        self._crowded_out: dict[Model, NoRoom] = {}
        self._closed = False
        self.on_ready: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Begin to load every model; returns at once. On the loop, where models may be unloaded."""
        if self._idle_s:
            self._loop = asyncio.get_running_loop()
        for model in self._models:
            self._begin(model)

    async def settled(self) -> None:
        """Until every model that is being loaded is ready or has failed."""
        await asyncio.gather(*map(asyncio.wrap_future, self._loading.values()), return_exceptions=True)

    @asynccontextmanager
    async def held(self, model: Model) -> AsyncIterator[Model]:
        """The model, loaded, and so until the end; it is loaded again first where it was unloaded. Raises NotReady."""
        if not model.served:
            model.check_ready()
        self._users[model] += 1
        if (alarm := self._alarms.pop(model, None)) is not None:
            alarm.cancel()
        try:
            if model.state != "ready":
                await self._again(model)
            yield model
        finally:
            self._users[model] -= 1
            self._watch(model)

    def close(self) -> bool:
        """Free the models; whether none is still being loaded, which can't be interrupted."""
        self._closed = True
        for alarm in self._alarms.values():
            alarm.cancel()
        for model in self._models:
            if model.backend is not None:
                self._batcher.run(model.backend.close)
        return all(future.done() for future in self._loading.values())

    @property
    def state(self) -> State:
        """Of the model that is furthest from ready; one that was ready once stays so, as its requests only wait."""
        states = {"ready" if model.served else model.state for model in self._models}
        return next((state for state in ("failed", "loading", "warming") if state in states), "ready")

    # on the loop

    async def _again(self, model: Model) -> None:
        """Until the model is loaded again, by this request or by one before it."""
        if model.state == "unloaded":
            if (left_s := model.rest_until_s - monotonic()) > 0:
                raise _not_again(model, ceil(left_s))
            log.info("%s is asked for and loaded again.", model.name)
            self._begin(model)
        (error,) = await asyncio.gather(asyncio.wrap_future(self._loading[model]), return_exceptions=True)
        if error is not None:
            raise error if isinstance(error, NotReady) else _not_again(model) from error

    def _watch(self, model: Model) -> None:
        """Unload it later, if nobody asks for it meanwhile."""
        if self._loop is None or self._closed or self._users[model] or model.state != "ready":
            return
        if (alarm := self._alarms.pop(model, None)) is not None:
            alarm.cancel()
        self._alarms[model] = self._loop.call_later(self._idle_s, self._unload, model)

    def _unload(self, model: Model) -> None:
        self._alarms.pop(model, None)
        if not self._closed and model.state == "ready":
            model.state = "unloaded"  # from now on a request asks for a load, which comes after this job
            self._batcher.run(partial(self._let_go, model))

    def _begin(self, model: Model) -> None:
        model.state = "loading"
        self._loading[model] = loading = self._batcher.run(partial(self._load, model))
        loading.add_done_callback(partial(self._loaded, model))

    # on the device thread

    def _load(self, model: Model) -> None:
        """Load, warm up, open the queue."""
        model.began_s = monotonic()
        if model in self._crowded_out:
            raise self._crowded_out.pop(model)
        if model.served and model.space.changed():
            raise CheckpointError(f"The files of {model.name} have changed since the start; restart to serve them.")
        log.info("Loading %s for %s.", model.name, model.backend_name)
        with uncollected():
            self._open_queue(model, self._loaded_beside_the_others(model))
        model.error, first = None, not all(one.served for one in self._models)
        model.served, model.state = True, "ready"
        if first and all(one.served for one in self._models):
            self.on_ready()

    def _loaded_beside_the_others(self, model: Model) -> Backend:
        """The model's backend, with room left for those that are not loaded now: where there is none for all, the last of
        them gets none."""
        others = [one for one in self._models if one is not model and self._counts(one, model)]
        left_out: dict[Model, NoRoom] = {}
        while True:
            try:
                backend = model.load([one.checkpoint for one in others])
            except NoRoom as error:
                out = next((one for one in reversed(others) if one.backend is None), None)
                if out is None:
                    raise
                others.remove(out)
                if not out.served:
                    left_out[out] = NoRoom(f"There is no room for {out.name} beside the others: {error}")
            else:
                self._crowded_out |= left_out
                return backend

    def _counts(self, one: Model, model: Model) -> bool:
        """Whether what another model takes is to be added to what the model's device says that the process holds."""
        if one in self._crowded_out or one.state == "failed":
            return False
        return one.backend is None or one.backend_name != model.backend_name

    def _loaded(self, model: Model, loading: Future[None]) -> None:
        error = loading.exception()
        if error is not None:
            if model.backend is not None:
                self._let_go(model)
            model.failed(error)
        elif self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._watch, model)

    def _let_go(self, model: Model) -> None:
        """Free the model, and hand what that leaves back to the system."""
        backend = model.backend
        assert backend is not None
        model.backend = None
        backend.close()
        collect()  # layers that point at each other
        backend.trim()
        give_back()
        self._batcher.memory = backend.memory()
        log.info("Unloaded %s.", model.name)


def _not_again(model: Model, retry_after_s: int = 5) -> NotReady:
    return NotReady(
        f"Model {model.name!r} was unloaded and could not be loaded again; the server's log says why. It is tried again.",
        retry_after_s,
    )
