"""What is built: a wheel and an sdist of everything in the package, of one version, that bring no backend by themselves."""

from __future__ import annotations

import re
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from contextlib import chdir
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from flit_core import buildapi  # type: ignore[import-untyped]

from vecgate import __version__
from vecgate.metrics import Metrics
from vecgate.protocols import openapi, routes

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "vecgate"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
NEEDED = (
    "deploy/Containerfile",
    "engine/golden/all-MiniLM-L6-v2.json",
    "py.typed",
    "web/docs/LICENSE",
    "web/docs/swagger-ui-bundle.js",
    "web/index.html",
)
"""One of each kind of file that is no Python: a package without it would still import."""
TEXT = {"", ".cfg", ".conf", ".css", ".html", ".js", ".json", ".py", ".rb", ".yaml"}


def build(folder: Path, of: Path = ROOT) -> None:
    """A wheel and an sdist of a project, into the folder."""
    with chdir(of):
        buildapi.build_wheel(str(folder))
        buildapi.build_sdist(str(folder))


@pytest.fixture(scope="module")
def dist(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    return made_once("dist", build)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(dist: Path) -> dict[str, bytes]:
    (path,) = dist.glob("*.whl")
    assert path.name == f"vecgate-{__version__}-py3-none-any.whl"
    return contents(path)


@pytest.fixture(scope="module")
def metadata(wheel: dict[str, bytes]) -> Message:
    return Parser().parsestr(wheel[f"vecgate-{__version__}.dist-info/METADATA"].decode())


def test_the_wheel_holds_the_package_and_nothing_else(wheel: dict[str, bytes]) -> None:
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    own = {f"vecgate/{path.relative_to(PACKAGE).as_posix()}": path.read_bytes() for path in files}
    assert {name: content for name, content in wheel.items() if ".dist-info/" not in name} == own
    assert {f"vecgate/{name}" for name in NEEDED} <= own.keys()


def test_the_wheel_says_what_it_is(wheel: dict[str, bytes], metadata: Message) -> None:
    assert (metadata["Name"], metadata["Version"], metadata["License-Expression"]) == ("vecgate", __version__, "MIT")
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    info = f"vecgate-{__version__}.dist-info"
    assert wheel[f"{info}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert wheel[f"{info}/entry_points.txt"].decode().split() == ["[console_scripts]", "vecgate=vecgate.cli:main"]
    assert str(metadata.get_payload()).strip() == (ROOT / "README.md").read_text("utf-8").strip()


def test_no_backend_comes_by_itself_but_mlx_on_apple_silicon(metadata: Message) -> None:
    needs = metadata.get_all("Requires-Dist") or []
    heavy = [one for one in needs if re.match(r"(torch|transformers|mlx|mlx-lm|ray|sentence-transformers)\b", one)]
    assert heavy != []
    assert [one for one in heavy if "extra ==" not in one and "platform_machine == 'arm64'" not in one] == []
    assert set(PROJECT["optional-dependencies"]) == set(metadata.get_all("Provides-Extra") or [])


def test_the_sdist_makes_the_same_wheel(dist: Path, wheel: dict[str, bytes], tmp_path: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        files = {member.name: stream.read() for member in archive if (stream := archive.extractfile(member))}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (top,) = tmp_path.iterdir()
    assert top.name == f"vecgate-{__version__}"
    assert (top / "docs" / "CHANGELOG.md").is_file()
    build(tmp_path, top)
    (again,) = tmp_path.glob("*.whl")
    assert contents(again) == wheel


# one version


def test_the_version_is_written_once() -> None:
    assert "version" in PROJECT["dynamic"]
    number = re.escape(__version__)
    said = re.compile(rf"(?<![=\w.]){number}(?![\w.])|\bvecgate\W{{1,3}}{number}")  # others' pins are theirs
    files = (
        path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix in TEXT and path.parent.name != "docs"
    )
    found = [path.relative_to(PACKAGE).as_posix() for path in files if said.search(path.read_text("utf-8"))]
    assert found == ["__init__.py"]


def test_what_tells_the_version_tells_this_one() -> None:
    assert openapi.document(routes(), __version__)["info"]["version"] == __version__
    (info,) = (one for one in Metrics(__version__).registry.collect() if one.name == "vecgate_build_info")
    assert info.samples[0].labels["version"] == __version__


# the changelog

RELEASE = re.compile(r"\[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}")
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def headings(level: int) -> list[str]:
    text = (ROOT / "docs" / "CHANGELOG.md").read_text("utf-8")
    return re.findall(rf"^#{{{level}}} (.+)$", text, re.MULTILINE)


def test_the_changelog_has_the_form_it_names() -> None:
    assert headings(1) == ["Changelog"]
    unreleased, *releases = headings(2)
    assert unreleased == "[Unreleased]"
    assert [one for one in releases if not RELEASE.fullmatch(one)] == []
    assert set(headings(3)) <= KINDS


def test_the_changelog_ends_with_this_version() -> None:
    numbers = [tuple(map(int, found[1].split("."))) for found in map(RELEASE.fullmatch, headings(2)[1:]) if found]
    assert numbers == sorted(set(numbers), reverse=True)
    assert headings(2)[1].startswith(f"[{__version__}] - ")
