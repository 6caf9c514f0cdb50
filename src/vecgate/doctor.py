"""`vecgate doctor`: one screen of what serving needs from this machine, and what to do where it is missing.

Loads no model and no compute library in this process: torch and MLX are asked in processes of their own.
"""

from __future__ import annotations

import json
import platform
import resource
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from vecgate import __version__
from vecgate.backends import APPLE_SILICON, choose
from vecgate.config import warnings
from vecgate.core import Checkpoint
from vecgate.engine import checkpoint, room
from vecgate.errors import CheckpointError, ConfigError, NoRoom
from vecgate.place import free_place, tls_files
from vecgate.ram import usable_bytes
from vecgate.settings import NO_MODEL, Settings

Level = Literal["fine", "note", "bad"]

HUB = "https://huggingface.co"
HUB_LIMIT_S = 3.0
DEVICE_LIMIT_S = 60.0
SPARE_FILES = 64
"""Beside a socket a request: the models' files, logs, the loop's own."""
LEAST_FREE_BYTES = 2**30
PACKAGES = ("numpy", "tokenizers", "torch", "transformers", "mlx", "mlx-lm", "granian", "sentence-transformers")
ASK = {
    "torch": (
        "import json, torch\n"
        "cuda = torch.cuda.is_available()\n"
        "names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []\n"
        "sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(len(names))]\n"
        "mps = torch.backends.mps\n"
        "print(json.dumps({'cuda': names, 'cuda_bytes': sizes, 'cuda_built': torch.version.cuda,\n"
        "                  'mps': mps.is_available(), 'mps_built': mps.is_built()}))\n"
    ),
    "mlx": (
        "import json, mlx.core as mx\n"
        "metal = mx.metal.is_available()\n"
        "info = mx.device_info(mx.Device(mx.gpu)) if metal else {}\n"
        "print(json.dumps({'metal': metal, 'name': info.get('device_name'),\n"
        "                  'bytes': info.get('max_recommended_working_set_size')}))\n"
    ),
}
"""Asked by `python -c`, so that what a driver does at an import stays there."""


@dataclass(frozen=True, slots=True)
class Finding:
    """remedy: what to do, "" where nothing is to be done. bad: vecgate serve would not serve well, or not at all."""

    name: str
    level: Level
    what: str
    remedy: str = ""


@cache
def _device(name: str) -> dict[str, Any] | str:
    try:
        ran = subprocess.run([sys.executable, "-c", ASK[name]], capture_output=True, timeout=DEVICE_LIMIT_S, text=True)
    except subprocess.TimeoutExpired:
        return f"{name} did not answer in {DEVICE_LIMIT_S:g} s"
    if ran.returncode:
        return f"importing {name} fails: {ran.stderr.strip().rpartition(chr(10))[2][:200]}"
    told: dict[str, Any] = json.loads(ran.stdout)
    return told


@dataclass(frozen=True, slots=True)
class Machine:
    """What is asked of the machine, each in its own way, so that a test can be one. device: a name of ASK -> its answer, or
    why there is none. environ: the process's."""

    environ: Mapping[str, str]
    system: tuple[str, str] = (platform.system(), platform.machine())
    python: tuple[int, ...] = sys.version_info[:3]
    installed: Callable[[str], bool] = lambda name: find_spec(name) is not None
    device: Callable[[str], dict[str, Any] | str] = lambda name: _device(name)
    memory_bytes: Callable[[], int] = usable_bytes
    files: Callable[[], tuple[int, int]] = lambda: resource.getrlimit(resource.RLIMIT_NOFILE)
    free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free


def examine(settings: Settings, machine: Machine) -> tuple[Finding, ...]:
    """Everything, in the order of the screen."""
    models = [(name, _model(name, settings)) for name in _served(settings)]
    here = [read for _, read in models if isinstance(read, Checkpoint)]
    each = [_about(name, read, settings) for name, read in models]
    return (
        _python(machine),
        _versions(),
        *_devices(settings, machine),
        *each,
        *([_memory(here, settings, machine)] if here else []),
        *(_together(settings) if all(one.level == "fine" for one in each) else ()),
        _hub(settings, machine, len(here) == len(models)),
        _cache(settings, machine),
        _files(settings, machine),
        _address(settings),
        _access(settings),
    )


def healthy(findings: tuple[Finding, ...]) -> bool:
    return all(one.level != "bad" for one in findings)


def screen(findings: tuple[Finding, ...]) -> str:
    """A line a finding, with its remedy below it."""
    width = max(len(one.name) for one in findings)
    lines = []
    for one in findings:
        lines.append(f"  {one.level.upper() if one.level == 'bad' else one.level:<5} {one.name:<{width}}  {one.what}")
        lines += [f"  {'':<5} {'':<{width}}  -> {one.remedy}"] if one.remedy else []
    bad = [one.name for one in findings if one.level == "bad"]
    return "\n".join(
        [*lines, "", f"  {'To be mended: ' + ', '.join(bad) if bad else 'Nothing keeps vecgate from serving'}.", ""]
    )


def as_json(findings: tuple[Finding, ...]) -> str:
    return json.dumps({"healthy": healthy(findings), "findings": [asdict(one) for one in findings]}, indent=2) + "\n"


# the machine


def _python(machine: Machine) -> Finding:
    shown = f"{'.'.join(map(str, machine.python))} on {' '.join(machine.system)}"
    if machine.python < (3, 11):
        return Finding("python", "bad", shown, "vecgate needs Python 3.11 or later.")
    if machine.system == ("Darwin", "x86_64"):
        remedy = (
            "on Apple Silicon take a Python for arm64 (`file $(which python)` tells): under Rosetta there is no Metal."
        )
        return Finding("python", "note", shown, remedy)
    return Finding("python", "fine", shown)


def _versions() -> Finding:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return Finding("versions", "fine", ", ".join([f"vecgate {__version__}", *found]))


def _devices(settings: Settings, machine: Machine) -> Iterator[Finding]:
    """Metal by MLX, then MPS and CUDA by torch."""
    apple, wanted = machine.system == APPLE_SILICON, settings.backend
    yield _metal(apple, wanted == "mlx", machine)
    if not machine.installed("torch"):
        needed = wanted == "torch" or (wanted == "auto" and not (apple and machine.installed("mlx")))
        remedy = "pip install 'vecgate[torch]'" if needed else ""
        yield Finding("torch", "bad" if needed else "note", "not installed", remedy)
        return
    told = machine.device("torch")
    if isinstance(told, str):
        needed = wanted == "torch" or not apple
        yield Finding("torch", "bad" if needed else "note", told, "install torch and transformers anew.")
        return
    yield _cuda(told)
    if apple or told["mps"]:
        there = "there" if told["mps"] else "not there"
        remedy = "" if told["mps"] else "macOS 14 or later and a torch for arm64 have it."
        yield Finding("mps", "fine" if told["mps"] else "note", there, remedy)


def _metal(apple: bool, wanted: bool, machine: Machine) -> Finding:
    level: Level = "bad" if wanted else "note"
    if not machine.installed("mlx"):
        what = "not installed" if apple or wanted else "not installed; it is for Apple Silicon"
        return Finding(
            "mlx", level if apple or wanted else "fine", what, "pip install mlx mlx-lm" if apple or wanted else ""
        )
    told = machine.device("mlx")
    if isinstance(told, str):
        return Finding(
            "mlx", level if apple or wanted else "fine", told, "pip install --force-reinstall mlx" if apple else ""
        )
    if told["metal"]:
        return Finding("mlx", "fine", f"Metal on {told['name']}, {_size(int(told['bytes'] or 0))} for models")
    what = "without Metal: it computes on the CPU"
    return Finding(
        "mlx", "note" if apple else "fine", what, "run it outside containers and virtual machines." if apple else ""
    )


def _cuda(told: Mapping[str, Any]) -> Finding:
    if told["cuda"]:
        cards = ", ".join(f"{name} ({_size(size)})" for name, size in zip(told["cuda"], told["cuda_bytes"]))
        return Finding("cuda", "fine", cards)
    if told["cuda_built"]:
        return Finding(
            "cuda", "note", "torch has it and sees no card", "see whether `nvidia-smi` does; a container needs --gpus."
        )
    return Finding("cuda", "fine", "torch is built without it")


# models


def _served(settings: Settings) -> list[str]:
    return [name for name in (*settings.models, *settings.rerankers) if name.casefold() != NO_MODEL]


def _model(name: str, settings: Settings) -> Checkpoint | CheckpointError | None:
    """Its files, what is wrong with them, or None where it is still to be fetched."""
    pickle, ignore = settings.allow_pickle, settings.ignore_code
    kept = settings.cache_dir.expanduser()
    try:
        found = checkpoint.resolve(name, cache=kept, offline=True, allow_pickle=pickle, ignore_code=ignore)
    except CheckpointError as error:
        built_in = {known for one in checkpoint.BUILT_IN for known in (one.short, one.name.casefold())}
        fetched = name.casefold() in built_in or (name.count("/") == 1 and name[0] not in "./~")
        return None if fetched else error
    try:
        ignore = ignore or found.ignore_code
        return checkpoint.read(found.folder, found.name, allow_pickle=pickle, ignore_code=ignore)
    except CheckpointError as error:
        return error


def _together(settings: Settings) -> Iterator[Finding]:
    """What each model alone does not show: names that two would have, settings that are about one, aliases of none."""
    from vecgate.app import build_engine  # here, as only this finding needs it

    try:
        build_engine(replace(settings, offline=True), aliases=settings.aliases).close()
    except NoRoom:  # told by their memory
        return
    except (CheckpointError, ConfigError) as error:
        yield Finding("settings", "bad", str(error), "`vecgate serve --help` shows them all.")


def _about(name: str, read: Checkpoint | CheckpointError | None, settings: Settings) -> Finding:
    """Whether it is here, and what computes it."""
    label = f"model {name}"
    if read is None:
        remedy = f"vecgate models fetch {name}"
        if settings.offline:
            return Finding(label, "bad", "not on this machine, and VECGATE_OFFLINE keeps it from being fetched", remedy)
        return Finding(label, "note", "not on this machine: the first start fetches it", f"{remedy} does it now.")
    if isinstance(read, CheckpointError):
        return Finding(label, "bad", str(read), "`vecgate models` lists what is here.")
    try:
        backend, why = choose(settings.backend, read.family, read.task)
    except ConfigError as error:
        return Finding(label, "bad", str(error), "see BACKEND.")
    return Finding(label, "fine", f"{read.family}, {_size(read.weight_bytes)}, by {backend} ({why})")


def _memory(models: Sequence[Checkpoint], settings: Settings, machine: Machine) -> Finding:
    """Their weights together against what may be used where they go: the machine's memory, or a card's."""
    card = _card_bytes(settings, machine)
    need = sum(room.weight_bytes(read, settings.dtype, as_stored=card is not None) for read in models)
    have = int(settings.device_memory_fraction * (card or machine.memory_bytes()))
    share = f"{settings.device_memory_fraction:g} of {'the card' if card else 'the memory'}"
    shown = f"{_size(need)} of weights; {_size(have)} may be used ({share})"
    if need > have:
        remedy = "a smaller or quantised model, --dtype bfloat16, or a larger DEVICE_MEMORY_FRACTION."
        return Finding("memory", "bad", shown, remedy)
    tight = need > have // 2
    return Finding("memory", "note" if tight else "fine", shown, "long batches are cut small." if tight else "")


def _card_bytes(settings: Settings, machine: Machine) -> int | None:
    """Of Metal or of the first CUDA card; None where a CPU computes, or a GPU that shares the machine's memory."""
    if settings.backend in ("auto", "mlx") and machine.system == APPLE_SILICON and machine.installed("mlx"):
        told = machine.device("mlx")
        if not isinstance(told, str) and told["metal"]:
            return int(told["bytes"] or 0) or None
    if settings.backend in ("auto", "torch") and machine.installed("torch"):
        told = machine.device("torch")
        if not isinstance(told, str) and told["cuda"]:
            return int(told["cuda_bytes"][0])
    return None


# around it


def _hub(settings: Settings, machine: Machine, all_here: bool) -> Finding:
    endpoint = machine.environ.get("HF_ENDPOINT", HUB)
    if settings.offline or machine.environ.get("HF_HUB_OFFLINE", "0").casefold() not in ("0", "", "false"):
        return Finding("hub", "fine", "not asked: VECGATE_OFFLINE or HF_HUB_OFFLINE is set")
    try:
        with closing(urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=HUB_LIMIT_S)):
            return Finding("hub", "fine", f"{endpoint} answers")
    except urllib.error.HTTPError as error:
        return Finding("hub", "fine", f"{endpoint} answers ({error.code})")
    except (OSError, ValueError) as error:
        what = f"{endpoint} is not reachable ({getattr(error, 'reason', error)})"
        if all_here:
            return Finding("hub", "note", f"{what}; every model is here", "VECGATE_OFFLINE=true asks for nothing.")
        return Finding("hub", "bad", what, "set HTTPS_PROXY or HF_ENDPOINT, or bring the model as a folder.")


def _cache(settings: Settings, machine: Machine) -> Finding:
    folder = settings.cache_dir.expanduser()
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        probe = above / f".vecgate-doctor-{id(settings):x}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return Finding(
            "cache", "bad", f"{folder}: {error.strerror}", "let VECGATE_CACHE_DIR name a folder you may write to."
        )
    free = machine.free_bytes(above)
    if free < LEAST_FREE_BYTES:
        return Finding("cache", "note", f"{folder}, {_size(free)} free", "`vecgate models` lists what may go.")
    return Finding("cache", "fine", f"{folder}, {_size(free)} free")


def _files(settings: Settings, machine: Machine) -> Finding:
    """vecgate raises the soft limit to the hard one by itself."""
    _, hard = machine.files()
    need = settings.max_in_flight + SPARE_FILES
    if hard in (-1, resource.RLIM_INFINITY) or hard >= need:
        return Finding(
            "open files", "fine", "no limit" if hard < 0 or hard == resource.RLIM_INFINITY else f"{hard} allowed"
        )
    remedy = f"raise the hard limit (`ulimit -Hn {need}`, LimitNOFILE=), or lower VECGATE_MAX_IN_FLIGHT."
    return Finding(
        "open files", "note", f"{hard} allowed, {settings.max_in_flight} requests at once take {need}", remedy
    )


def _address(settings: Settings) -> Finding:
    if settings.uds is not None:
        there = settings.uds.absolute().parent.is_dir()
        remedy = "" if there else "make the folder first."
        return Finding("address", "fine" if there else "bad", f"unix:{settings.uds}", remedy)
    try:
        place = free_place(settings.host, settings.port)
        place.vacate()
    except ConfigError as error:
        return Finding("address", "bad", str(error), "stop what listens there, or choose another HOST or PORT.")
    return Finding("address", "fine", f"{settings.host} port {settings.port} is free")


def _access(settings: Settings) -> Finding:
    """Keys, TLS, and who can reach them."""
    keys = f"{len(settings.api_key)} keys" if settings.api_key else "no key"
    try:
        tls = tls_files(settings.tls_cert, settings.tls_key)
    except ConfigError as error:
        return Finding("access", "bad", str(error), "see VECGATE_TLS_CERT and VECGATE_TLS_KEY.")
    what = f"{keys}, {'https' if tls else 'http'}, on {settings.uds or settings.host}"
    if told := warnings(settings):
        return Finding("access", "note", what, " ".join(told))
    return Finding("access", "fine", what)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
