"""The house rules as tests: who may import whom, which package has which door, what start-up must not load."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src"

GROUND = {"core", "errors", "traits"}
ROOMS: dict[str, set[str]] = {  # room -> the other rooms it may import; what is not named here is not allowed
    "": set(),  # vecgate itself: the version
    "__main__": {"cli"},
    "cli": {
        "",
        "app",
        "ask",
        "banner",
        "bench",
        "config",
        "connect",
        "core",
        "deploy",
        "doctor",
        "errors",
        "flags",
        "inout",
        "logs",
        "metrics",
        "place",
        "ram",
        "ray_serve",
        "server",
        "service",
        "settings",
        "shelf",
        "traces",
        "traits",
        "verify",
    },
    "flags": {"", "amounts", "config", "deploy", "errors", "examples", "service", "settings"},
    "amounts": set(),
    "examples": set(),
    "connect": {"client", "errors"},
    "service": {"backends", "config", "engine", "errors", "place", "settings"},
    "deploy": {"", "errors"},
    "banner": {"", "settings"} | GROUND,
    "shelf": {"backends", "engine", "protocols", "settings"} | GROUND,
    "ask": {"app", "bulk", "client", "engine", "settings", "texts"} | GROUND,
    "inout": {"ask", "errors", "texts"},
    "bulk": {"texts"} | GROUND,
    "client": GROUND,
    "bench": {"", "settings"} | GROUND,
    "forward": {"app", "engine", "settings"} | GROUND,
    "texts": {"errors"},
    "verify": {"app", "backends", "engine", "settings"} | GROUND,
    "doctor": {"", "app", "backends", "config", "engine", "place", "ram", "settings"} | GROUND,
    "turns": set(),
    "ray_serve": {"app", "config", "engine", "guard", "logs", "metrics", "settings"} | GROUND,
    "app": {"", "access", "backends", "engine", "guard", "metrics", "protocols", "server", "settings", "traces"}
    | GROUND,
    "server": {"place", "turns"} | GROUND,
    "place": GROUND,
    "keys": GROUND,
    "rates": GROUND,
    "guard": {"access", "flight", "keys", "logs", "rates", "turns"} | GROUND,
    "access": GROUND,
    "flight": GROUND,
    "metrics": {"footprint"} | GROUND,
    "footprint": set(),
    "traces": {"metrics"} | GROUND,
    "logs": GROUND,
    "config": {"kinds", "settings"} | GROUND,
    "settings": {"kinds"},
    "kinds": {"errors"},
    "protocols": {"", "ram"} | GROUND,
    "engine": {"backends", "ram"} | GROUND,
    "backends": {"ram"} | GROUND,
    "ram": set(),
    "traits": {"core"},
    "core": set(),
    "errors": set(),
}
DOORS: dict[str, tuple[str, ...]] = {  # package -> the only modules (and what lies under them) that may import it
    "dotenv": ("vecgate.config",),
    "granian": ("vecgate.server", "vecgate.cli"),
    "httpx": ("vecgate.client", "vecgate.connect"),
    "huggingface_hub": ("vecgate.backends.torch.families", "vecgate.engine.cached", "vecgate.engine.hub"),
    "jinja2": ("vecgate.engine.chat",),
    "litestar": ("vecgate.app", "vecgate.guard", "vecgate.protocols"),
    "mlx": ("vecgate.backends.mlx", "vecgate.bench.ceilings"),
    "mlx_lm": ("vecgate.backends.mlx.decoder",),
    "opentelemetry": ("vecgate.traces",),
    "prometheus_client": ("vecgate.metrics",),
    "ray": ("vecgate.ray_serve",),
    "sentence_transformers": ("vecgate.engine.reference",),
    "shtab": ("vecgate.flags",),
    "tiktoken": ("vecgate.protocols.openai", "vecgate.protocols.token_ids"),
    "tokenizers": ("vecgate.engine",),
    "torch": ("vecgate.backends.torch", "vecgate.bench.ceilings", "vecgate.engine.reference"),
    "tqdm": ("vecgate.ask", "vecgate.bench.command", "vecgate.verify.command"),
    "transformers": ("vecgate.backends.torch", "vecgate.engine.reference"),
}
SHARED_BY_PROTOCOLS = {f"vecgate.protocols{name}" for name in ("", ".gather", ".plain", ".token_ids", ".vectors")}
OVER_PROTOCOLS = {"vecgate.protocols.mounting", "vecgate.protocols.openapi"}
"""These answer for all routes and describe them, from their table; no protocol imports them."""
SHARED_BY_FAMILIES = {
    f"vecgate.backends.mlx.{name}" for name in ("causal", "layers", "packed", "pooling", "settings", "weights")
}
RUN_AS_SCRIPT = {"vecgate.bench.ceilings", "vecgate.bench.null", "vecgate.engine.reference", "vecgate.forward"}
SLOW = {"torch", "transformers", "mlx", "mlx_lm", "sentence_transformers", "ray"}


def module_name(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SRC.rglob("*.py"))}


def imports(source: str) -> Iterator[str]:
    """Every module an import statement names, wherever it stands (type-only and in functions too); literals given to
    import_module count. `from a import b` names a.b where that is a module of ours."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in MODULES else base
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", None))
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value)


def room(module: str) -> str:
    return f"{module}.".split(".")[1]


def within(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(place + ".") for place in places)


def broken_rules(module: str, source: str) -> list[str]:
    """One sentence for each import of `source` that the house forbids to `module`."""
    found = []
    for name in imports(source):
        top = name.partition(".")[0]
        if name.startswith("."):
            found.append(f"{module}: a relative import ({name}) hides which room it enters")
        elif top in DOORS and not within(module, DOORS[top]):
            found.append(f"{module} imports {name}; the door to {top} is {' and '.join(DOORS[top])}")
        elif top == "vecgate" and room(name) != room(module) and room(name) not in ROOMS.get(room(module), set()):
            found.append(
                f"{module} imports {name}; {room(module)!r} may import {sorted(ROOMS.get(room(module), set()))}"
            )
        elif between_siblings(module, name):
            found.append(f"{module} imports its neighbour {name}; deleting one file must delete one thing")
        elif name in RUN_AS_SCRIPT:
            found.append(f"{module} imports {name}, which runs in a process of its own")
    return found


def between_siblings(module: str, name: str) -> bool:
    """A protocol that imports another one, a backend that imports another one, a family that imports another one."""
    if module == name or module in OVER_PROTOCOLS:
        return False
    if within(module, ("vecgate.protocols",)) and within(name, ("vecgate.protocols",)):
        # native_bodies.py and native_batch.py are parts of native.py
        own = name.startswith(f"{module.partition('_')[0]}_")
        return not own and name not in SHARED_BY_PROTOCOLS and module != "vecgate.protocols"
    wing = "vecgate.backends."
    if module.startswith(wing) and name.startswith(wing) and module.split(".")[2] != name.split(".")[2]:
        return True
    comb = "vecgate.backends.mlx."
    if not (module.startswith(comb) and name.startswith(comb)):
        return False
    return name not in SHARED_BY_FAMILIES and module not in {comb + "backend", comb + "decoder"}


@pytest.mark.parametrize("module", MODULES)
def test_every_import_enters_a_room_that_is_open_to_it(module: str) -> None:
    assert broken_rules(module, MODULES[module].read_text("utf-8")) == []


def test_every_file_lies_in_a_known_room() -> None:
    assert {room(module) for module in MODULES} <= ROOMS.keys()


def test_no_room_reaches_itself_through_others() -> None:
    left = {name: set(open_to) for name, open_to in ROOMS.items()}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vecgate.protocols.openai", "import vecgate.engine.local"),
        ("vecgate.protocols.openai", "from vecgate.protocols import native"),
        ("vecgate.protocols.openai", "from vecgate import config"),
        ("vecgate.protocols.vectors", "from .native import ROUTES"),
        ("vecgate.engine.local", "if TYPE_CHECKING:\n    from litestar import Litestar"),
        ("vecgate.engine.batcher", "from vecgate.metrics import Metrics"),
        ("vecgate.backends.fake", "from vecgate.engine import names"),
        ("vecgate.backends.fake", "from vecgate.backends.torch import load"),
        ("vecgate.backends.fake", "def f():\n    import torch.nn"),
        ("vecgate.backends.mlx.bert", "from vecgate.backends.mlx.qwen3 import Model"),
        ("vecgate.engine.verify", "import_module('transformers')"),
        ("vecgate.core", "from vecgate.errors import VecgateError"),
        ("vecgate.app", "import prometheus_client"),
        ("vecgate.guard", "from vecgate.app import create_app"),
    ],
)
def test_a_forbidden_import_is_seen(module: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("engine.names", "protocols.native"):
        monkeypatch.setitem(MODULES, f"vecgate.{name}", SRC)
    assert len(broken_rules(module, source)) == 1


def loaded_by(statement: str) -> set[str]:
    """The top-level names that a fresh interpreter has imported after the statement and had not before it."""
    script = f"import sys; had = set(sys.modules); {statement}; print(*(set(sys.modules) - had))"
    path = f"import sys; sys.path.insert(0, {str(SRC)!r}); "
    run = subprocess.run([sys.executable, "-c", path + script], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in run.stdout.split()}


def test_importing_vecgate_imports_no_third_party() -> None:
    assert loaded_by("import vecgate") - sys.stdlib_module_names == {"vecgate"}


@pytest.mark.parametrize("module", ["cli", "config", "app", "engine.local", "protocols", "backends"])
def test_importing_a_room_loads_no_compute_library(module: str) -> None:
    loaded = loaded_by(f"import vecgate.{module}")
    assert "vecgate" in loaded
    assert loaded & SLOW == set()


def test_the_command_line_imports_no_server_for_its_help() -> None:
    assert loaded_by("import vecgate.cli") & {"litestar", "granian", "numpy"} == set()


def test_the_framework_looks_for_no_library_of_types() -> None:
    loaded = loaded_by("from vecgate.app import Bare; Bare(openapi_config=None, logging_config=None)")
    assert "litestar" in loaded
    assert loaded & {"attrs", "pydantic"} == set()


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def normal(distribution: str) -> str:
    """A distribution's name out of a requirement, as PEP 503 spells it."""
    name = re.match(r"[A-Za-z0-9._-]+", distribution)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def declared(*extras: str) -> set[str]:
    lists = [PROJECT["optional-dependencies"][extra] for extra in extras] or [PROJECT["dependencies"]]
    return {normal(requirement) for requirements in lists for requirement in requirements}


def third_parties() -> list[set[str]]:
    """For each package that src imports, the distributions that hold it, by their normal names."""
    tops = {name.partition(".")[0] for path in MODULES.values() for name in imports(path.read_text("utf-8"))}
    owners = packages_distributions()
    return [{normal(name) for name in owners.get(top, [top])} for top in tops - sys.stdlib_module_names - {"vecgate"}]


def test_every_package_imported_is_declared() -> None:
    allowed = declared() | declared("torch", "dev", "reload", "otel", "verify", "ray")
    assert [names for names in third_parties() if not names & allowed] == []


def test_every_package_declared_is_imported() -> None:
    on_apple_silicon = {"mlx", "mlx-lm"}
    assert declared() - on_apple_silicon <= set().union(*third_parties())


def test_every_package_declared_is_pinned_for_ci() -> None:
    lines = (ROOT / ".ci" / "constraints.txt").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert declared() | declared("torch", "reload", "dev", "verify") <= {normal(name) for name in pins}
    assert pins["torch"] == "2.13.0"


def test_no_neighbour_of_the_reference_hides_a_module_of_python() -> None:
    """A script that is run by path finds its neighbours first: with a queue.py there, torch can't be imported."""
    neighbours = {path.stem for path in (SRC / "vecgate" / "engine").iterdir()}
    assert neighbours & sys.stdlib_module_names == set()


def test_names_of_the_field_only() -> None:
    banned = re.compile(r"Manager|Factory|Service|Helper|Util|^Base|Impl$|^Handler")
    classes = {
        node.name
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    assert {name for name in classes if banned.search(name)} == set()


BLANKET = {
    "vecgate/cli.py": 1,  # a command's last line: one sentence instead of a traceback, which --debug shows
    "vecgate/engine/attempt.py": 1,  # around forward
    "vecgate/engine/batcher.py": 2,  # a job's error to its caller, the device thread's to all of them
    "vecgate/engine/remote.py": 1,  # around a look at the replicas, which the next one may find well
    "vecgate/guard.py": 1,  # renders what nobody foresaw
}


def test_blanket_excepts_stand_where_they_have_a_reason() -> None:
    places = Counter(
        path.relative_to(SRC).as_posix()
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ExceptHandler) and (node.type is None or catches_all(node.type))
    )
    assert places <= Counter(BLANKET)


def catches_all(caught: ast.expr) -> bool:
    names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(isinstance(name, ast.Name) and name.id in ("Exception", "BaseException") for name in names)
