"""Each environment of real clients is one lock of exact versions and one driver that no package shadows."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import pytest

from tests.compat import environments, fixtures
from tests.compat.environments import CLIENTS, Environment

ALL = environments.environments()
OF_PYTHON = [one for one in ALL if not one.of_node]
OF_NODE = [one for one in ALL if one.of_node]


def named(one: Environment) -> str:
    return one.name


@pytest.mark.parametrize("one", OF_PYTHON, ids=named)
def test_a_lock_for_pip_names_one_version_of_each_package(one: Environment) -> None:
    lines = one.lock.read_text("utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.+!-]+|#.*", line)] == []
    names = [line.partition("==")[0].lower() for line in lines]
    assert len(names) == len(set(names)) > 0


@pytest.mark.parametrize("one", OF_NODE, ids=named)
def test_a_lock_for_npm_names_exact_versions(one: Environment) -> None:
    wanted = json.loads(one.lock.read_text("utf-8"))["dependencies"]
    assert wanted
    assert [name for name, version in wanted.items() if not re.fullmatch(r"\d+\.\d+\.\d+[\w.-]*", version)] == []


def test_no_lock_names_an_address() -> None:
    files = [path for path in CLIENTS.iterdir() if path.suffix in {".txt", ".json"}]
    assert [path.name for path in files if '"resolved"' in path.read_text("utf-8")] == []
    assert [one.name for one in OF_PYTHON if "://" in one.lock.read_text("utf-8")] == []


@pytest.mark.parametrize("one", OF_PYTHON, ids=named)
def test_a_driver_shadows_no_package_and_imports_nothing_of_ours(one: Environment) -> None:
    assert "-" in one.name  # its folder is the first that Python looks in
    tree = ast.walk(ast.parse(one.driver.read_text("utf-8")))
    imported = {
        name.partition(".")[0]
        for node in tree
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert "driving" in imported
    assert not imported & {"vecgate", "tests"}


def test_a_lock_without_a_driver_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environments, "CLIENTS", tmp_path)
    (tmp_path / "some-client.txt").write_text("some==1.0\n")
    with pytest.raises(SystemExit, match=r"no driver: some-client\.py"):
        environments.environments()


def test_an_unknown_environment_is_refused() -> None:
    with pytest.raises(SystemExit, match="no environment nothing; there are: "):
        environments.chosen(["nothing"])


def test_a_driver_that_says_nothing_or_two_things_is_refused() -> None:
    one = ALL[0]
    assert environments._line(one, '{"client": "a", "case": "b", "version": "1", "skipped": "c"}')["skipped"] == "c"
    for line in ("Downloading", '{"client": "a"}', '{"client":"a","case":"b","version":"1","skipped":"c","error":{}}'):
        with pytest.raises(SystemExit, match="printed"):
            environments._line(one, line)


def test_a_difference_from_the_stored_fixture_is_shown() -> None:
    (first, *_) = fixtures.stored()
    assert fixtures.differences(fixtures.FOLDER, first) == []
    changed = fixtures.differences(fixtures.FOLDER, first | {"version": "0"})
    assert '+ "version": "0",' in changed
    assert fixtures.differences(fixtures.FOLDER, first | {"client": "a-new-one"}) != []


def driver(tmp_path: Path, body: str) -> Environment:
    """An environment of this interpreter, whose driver is the body."""
    (tmp_path / "made" / "bin").mkdir(parents=True)
    (tmp_path / "made" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "made.py").write_text(f"import json, os, sys, time\n{body}\n")
    return Environment("made", tmp_path / "made.txt", tmp_path / "made.py")


SAYS = 'told = {"client": "a", "case": "b", "version": "1"}\n'


def test_a_driver_gets_the_addresses_and_a_home_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environments, "INSTALLED", tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "of who runs it")
    one = driver(
        tmp_path, SAYS + 'print(json.dumps(told | {"skipped": [sys.argv[1:], dict(os.environ), os.getcwd()]}))'
    )
    (told,) = environments.drive(one, "BASE", "CONTROL", "KEY")
    arguments, variables, folder = told["skipped"]
    assert arguments == ["BASE", "CONTROL", "KEY"]
    assert variables["HOME"] == folder == str(tmp_path / "made" / "home")
    assert "OPENAI_API_KEY" not in variables


def test_a_driver_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environments, "INSTALLED", tmp_path)
    with pytest.raises(SystemExit, match=r"made\.py failed:[\s\S]*ZeroDivisionError"):
        list(environments.drive(driver(tmp_path, "1 / 0"), "BASE", "CONTROL", "KEY"))


def test_a_driver_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environments, "INSTALLED", tmp_path)
    monkeypatch.setattr(environments, "LIMIT_S", 0.2)
    with pytest.raises(SystemExit, match=r"made\.py failed"):
        list(environments.drive(driver(tmp_path, "time.sleep(600)"), "BASE", "CONTROL", "KEY"))
