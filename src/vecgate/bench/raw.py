"""The same texts through this machine's own model, in a process of its own (vecgate.forward), a window at a time."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec

from vecgate.bench.result import Raw
from vecgate.errors import CommandError

T = TypeVar("T")

LINE_BYTES = 64 * 2**20
"""Of one answer or list of texts; asyncio's own limit is 64 KiB."""


class Pass(msgspec.Struct, frozen=True):
    """One run over some calls. flops: None where the weights do not tell. p50_s: of one call's forwards."""

    texts: int
    tokens: int
    tokenize_s: float
    forward_s: float
    flops: float | None
    p50_s: float


class _Failed(msgspec.Struct):
    error: str


class Offline:
    """`card` says what is loaded."""

    def __init__(self, process: Process, card: Raw) -> None:
        self._process = process
        self.card = card

    async def run(self, calls: Sequence[Sequence[str]]) -> Pass:
        """The forwards of these calls, one after another; raises CommandError."""
        return await _asked(self._process, msgspec.json.encode(calls), Pass)


@asynccontextmanager
async def offline(settings: bytes) -> AsyncIterator[Offline]:
    """settings: Settings as JSON; raises CommandError where the model can't be loaded."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "vecgate.forward", stdin=PIPE, stdout=PIPE, limit=LINE_BYTES
    )
    try:
        yield Offline(process, await _asked(process, settings, Raw))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _asked(process: Process, line: bytes, kind: type[T]) -> T:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + b"\n")
    await process.stdin.drain()
    said = await process.stdout.readline()
    try:
        return msgspec.json.decode(said, type=kind)
    except msgspec.DecodeError:
        pass
    try:
        raise CommandError(f"--raw: {msgspec.json.decode(said, type=_Failed).error}")
    except msgspec.DecodeError:
        raise CommandError("--raw: the model's process ended without a word; --debug shows what it said.") from None
