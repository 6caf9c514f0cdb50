"""This machine: what it is, the most it can compute, and what the client itself costs on it."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import sys
from pathlib import Path

import msgspec
import psutil

from vecgate.bench import load, plan
from vecgate.bench.figures import percentile
from vecgate.bench.result import Ceiling, Floor, Machine, Raw
from vecgate.bench.wire import Connection, Place
from vecgate.errors import CommandError

CEILINGS, NULL = (str(Path(__file__).with_name(name)) for name in ("ceilings.py", "null.py"))
"""Scripts, each run in a process of its own."""
CEILING_LIMIT_S = 300.0
FLOOR_S = 1.0


def machine() -> Machine:
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        python=platform.python_version(),
        load_average=round(os.getloadavg()[0], 2),
    )


def _processor() -> str:
    """The name that the system knows; platform.processor() is empty or an architecture on most."""
    table = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", table.read_text()) if table.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


async def ceiling(raw: Raw | None) -> Ceiling:
    """Of the library, type and device that serve, else of numpy's float32; raises CommandError."""
    wanted = (
        (raw.backend, raw.dtype, raw.device) if raw and raw.backend in ("torch", "mlx") else ("numpy", "float32", "cpu")
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", CEILINGS, *wanted, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(CEILING_LIMIT_S):
            said, errors = await process.communicate()
        return msgspec.json.decode(said, type=Ceiling)
    except (TimeoutError, msgspec.DecodeError):
        last = errors.decode(errors="replace").strip().rpartition("\n")[2] if process.returncode else "no answer"
        raise CommandError(f"The ceilings of {' '.join(wanted)} can't be measured: {last}.") from None
    finally:
        if process.returncode is None:
            process.kill()


async def floor() -> Floor:
    """One client on a server that does nothing."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        NULL,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        place = Place.of(f"http://127.0.0.1:{int(await process.stdout.readline())}")
        ask = plan.asks(plan.MIXES["queries"], 0, 1)[0]
        request = place.request("POST", "/v1/embeddings", plan.body(ask, "null", "base64"))
        window = await load.closed(
            lambda: Connection(place, 10.0),
            [request],
            plan.in_turn([ask], 0),
            1,
            warm_s=FLOOR_S / 4,
            until=lambda: asyncio.sleep(FLOOR_S),
        )
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    latencies = sorted(shot.end_s - shot.begin_s for shot in window.shots if shot.kind is None)
    inside = sum(window.begin_s <= shot.end_s <= window.end_s for shot in window.shots)
    return Floor(1e3 * percentile(latencies, 0.5), 1e3 * window.client_cpu_s / max(1, inside))
