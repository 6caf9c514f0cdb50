"""The workflows of .github: what they call exists, what they may do is little, and what they use is pinned.

Where they run is no machine of ours; GitHub's own schema and what can be run of them here is all that is tried.
"""

import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PINNED = re.compile(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
WRITES = {
    ("release.yml", "image"): {"packages"},
    ("release.yml", "images"): {"packages"},
    ("release.yml", "publish"): {"id-token"},
    ("release.yml", "release"): {"contents"},
}
"""Every job that may write, and what; all others read."""


def read(path: Path) -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load(path.read_text("utf-8"))
    return found


def jobs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path in FILES:
        yield from ((path.name, name, job) for name, job in read(path)["jobs"].items())


def scripts() -> Iterator[tuple[str, str, str]]:
    """File, the step's name or first line, and what it runs."""
    for name, _, job in jobs():
        for step in job.get("steps", []):
            if "run" in step:
                yield name, step.get("name", step["run"].splitlines()[0]), step["run"]


SCRIPTS = [*scripts()]


def test_they_are_there() -> None:
    assert [path.name for path in FILES] == ["linux.yml", "macos.yml", "nightly.yml", "release.yml"]


def test_they_follow_githubs_schema() -> None:
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.github-workflows",
        *map(str, FILES),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_reads_only_and_is_alone(path: Path) -> None:
    document = read(path)
    assert document["permissions"] == {"contents": "read"}
    assert document["defaults"] == {"run": {"shell": "bash"}}, "or a pipe's failure is nobody's"
    assert {"group", "cancel-in-progress"} == document["concurrency"].keys()


def test_a_job_that_writes_is_known() -> None:
    found = {
        (file, name): {what for what, how in job["permissions"].items() if how == "write"}
        for file, name, job in jobs()
        if "permissions" in job
    }
    assert found == WRITES


def test_nothing_leaves_before_the_checks_have_passed() -> None:
    release = read(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    assert [name for file, name in WRITES if file == "release.yml" and "check" not in release[name]["needs"]] == []


def test_no_job_runs_for_ever() -> None:
    assert [(file, name) for file, name, job in jobs() if "uses" not in job and "timeout-minutes" not in job] == []


def test_what_others_made_is_pinned_to_a_commit() -> None:
    used = [(path.name, one) for path in FILES for one in re.findall(r"uses: (.*)", path.read_text("utf-8"))]
    own = [one for _, one in used if one.startswith("./")]
    assert [(file, one) for file, one in used if one not in own and not PINNED.fullmatch(one)] == []
    assert [one for one in own if not (ROOT / one).is_file()] == []
    pins = {tuple(one.split("@")) for _, one in used if "@" in one}
    assert len({name for name, _ in pins}) == len(pins), "one action in two versions"


def test_no_address_is_written_down() -> None:
    text = "".join(path.read_text("utf-8") for path in FILES)
    assert set(re.findall(r"https?://[^/\s]+", text)) <= {"http://127.0.0.1:9000"}
    assert not re.search(r"pypi\.org|ghcr\.io|docker\.io|quay\.io", text)


@pytest.mark.parametrize(("file", "step", "script"), SCRIPTS, ids=lambda one: one[:40].replace(" ", "_"))
def test_what_a_step_calls_exists(file: str, step: str, script: str) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z][a-z0-9-]*)", script)) <= targets
    assert "${{" not in script, "what comes from outside comes by env"
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    called = [ROOT / one for one in re.findall(r"(?:^|\s)(\.ci/(?:run|install))\b", script)]
    assert [one for one in called if not one.stat().st_mode & stat.S_IXUSR] == []
    named = re.findall(r"(?:\s)(\.ci/[\w.]+|docs/[\w./]+)", script)
    assert [one for one in named if not (ROOT / one).exists()] == []
    modules = re.findall(r"-m (tests[\w.]*)", script)
    assert [one for one in modules if not (ROOT / (one.replace(".", "/") + ".py")).exists()] == []


def script_of(step: str) -> str:
    (found,) = (script for _, name, script in SCRIPTS if name == step)
    return found


def run(step: str, cwd: Path, **names: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environ = {"PATH": path, "HOME": str(cwd), **names}
    command = ["bash", "-eo", "pipefail", "-c", script_of(step)]  # as GitHub does
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("seconds", "made"),
    [("1800", True), ("0", False), ("", False), ("$(touch x)", False), ("1\n2", False), ("1;x", False)],
)
def test_a_soak_lasts_a_number_of_seconds(seconds: str, made: bool, tmp_path: Path) -> None:
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\necho "make $*"\n')
    make.chmod(0o755)
    told = run("Soak", tmp_path, LASTS=seconds, PATH=f"{tmp_path}:/usr/bin:/bin")
    assert (told.returncode == 0, f"make soak SECONDS={seconds}\n" in told.stdout) == (made, made)
    assert ("::error::" in told.stdout) != made


@pytest.mark.parametrize(("tag", "status"), [("v{}", 0), ("{}", 1), ("v{}.1", 1), ("v0.0.0", 1)])
def test_a_tag_must_be_the_version(tag: str, status: int) -> None:
    from vecgate import __version__

    told = run("The tag is the version", ROOT, TAG=tag.format(__version__))
    assert told.returncode == status, told.stderr
    assert ("::error::" in told.stdout) == bool(status)


CHANGES = """# Changelog

## [Unreleased]

## [0.2.0] - 2027-01-02

### Added

- More.

## [0.1.0] - 2026-11-22

- All.
"""


@pytest.mark.parametrize(
    ("tag", "notes"), [("v0.2.0", "### Added\n\n- More."), ("v0.1.0", "- All."), ("v0.3.0", None), ("v0.2", None)]
)
def test_a_release_says_what_the_changelog_says(tag: str, notes: str | None, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "CHANGELOG.md").write_text(CHANGES)
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "vecgate.whl").write_text("wheel")
    told = run("Write what the release says", tmp_path, TAG=tag)
    assert (told.returncode == 0) == (notes is not None), told.stderr
    assert (tmp_path / "notes.md").read_text().strip() == (notes or "")
    assert (tmp_path / "SHA256SUMS").exists() == (notes is not None)
