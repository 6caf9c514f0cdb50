"""The container file carried out without a container engine: its RUN lines in a fresh folder, then ENTRYPOINT and CMD.

Needs root, to become the image's user. Where root may mount here, the server runs as `docker run --read-only --cap-drop ALL
--security-opt no-new-privileges` would run it, as process 1 of its own namespace. FROM's own image is not tried: Debian's
Python stands for it. `make test-deploy` runs this; it installs torch.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.deploy import containerfile
from tests.live import free_port
from vecgate import __version__, deploy
from vecgate.settings import Settings

ROOT = Path(__file__).parent.parent.parent
OWN = re.compile(r"(?<![\w.])/(opt/venv|build|cache|models)\b")
"""The paths that the image has and a machine does not."""
USER = int(containerfile.value("USER").partition(":")[0])
START_LIMIT_S = 180.0
CONTAINED = """\
set -e
mount --bind "$1/cache" "$1/cache"
mount --bind "$1/models" "$1/models"
mount --bind "$1/tmp" /tmp
mount -o remount,ro,bind /
shift
exec setpriv --reuid "$0" --regid "$0" --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs "$@"
"""
NAMESPACES = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can become the image's user: sudo make test-deploy"
)


@dataclass(frozen=True, slots=True)
class Image:
    """What the image's root folder holds, under `root`."""

    root: Path

    def here(self, text: str) -> str:
        """With the image's own paths as they are here."""
        return OWN.sub(rf"{self.root}/\1", text)

    def environment(self, names: Mapping[str, str]) -> dict[str, str]:
        return {name: self.here(text) for name, text in names.items()}

    def run(self, run: containerfile.Run, **others: str) -> subprocess.CompletedProcess[str]:
        who: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": []} if run.user else {}
        base = {"PATH": f"{self.root}/base:/usr/bin:/bin", "HOME": str(self.root / "tmp")}
        return subprocess.run(
            ["/bin/sh", "-c", self.here(run.command)],
            env=base | machines() | self.environment(run.environment) | others,
            cwd=self.root,
            capture_output=True,
            text=True,
            **who,
        )


def machines() -> dict[str, str]:
    """How this machine reaches packages; the builder's would come from its own daemon."""
    return {name: text for name, text in os.environ.items() if name.startswith("PIP_") or name.endswith("_proxy")}


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Every RUN carried out, after the commands that the file's first lines give."""
    root = Path(tempfile.mkdtemp(prefix="vecgate-image-", dir="/var/tmp"))  # /tmp is the container's own
    try:
        made = Image(root)
        for name in ("base", "build", "opt", "tmp"):
            (root / name).mkdir()
        root.chmod(0o755)
        (root / "tmp").chmod(0o1777)
        (root / "base" / "python").write_text(f'#!/bin/sh\nexec {base_python()} "$@"\n')
        (root / "base" / "python").chmod(0o755)
        subprocess.run(["/bin/sh", "-c", prepared()], cwd=root / "build", check=True)
        for run in containerfile.runs():
            done = made.run(run)
            assert done.returncode == 0, (run.command, done.stdout[-3000:], done.stderr[-3000:])
        yield made
    finally:
        shutil.rmtree(root)


def base_python() -> str:
    """One that makes environments and that the image's user may run, which one below /root is not."""
    who: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": []}
    for path in (os.path.realpath(sys.executable), "/usr/bin/python3", "/usr/local/bin/python3"):
        with suppress(OSError):
            if subprocess.run([path, "-c", "import ensurepip, venv"], **who, stderr=subprocess.DEVNULL).returncode == 0:
                return path
    raise AssertionError(f"user {USER} may run no Python here that can make a venv")


def prepared() -> str:
    """The first way that the file tells to make what COPY takes."""
    told = next(line for line in deploy.read("container").splitlines() if line.startswith("#   pip wheel"))
    return (
        told.removeprefix("#")
        .replace("pip wheel", f"{sys.executable} -m pip wheel --quiet")
        .replace("CHECKOUT", str(ROOT))
    )


@contextmanager
def container(image: Image, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """What `docker run` starts, from its first moment; its output is in .../tmp/said."""
    command = [*containerfile.argv("ENTRYPOINT"), *containerfile.argv("CMD")]
    found = image.environment(containerfile.environment()) | settings
    program = shutil.which(command[0], path=found["PATH"])
    assert program == f"{image.root}/opt/venv/bin/vecgate"
    wrapped = [*NAMESPACES, "/bin/sh", "-c", CONTAINED, str(USER), str(image.root)] if may_mount() else ["setpriv"]
    wrapped += [] if may_mount() else ["--reuid", str(USER), "--regid", str(USER), "--clear-groups"]
    with (image.root / "said").open("wb") as said:
        process = subprocess.Popen(
            [*wrapped, program, *command[1:]],
            env=found,
            cwd=image.here(containerfile.value("WORKDIR")),
            stdout=said,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def may_mount() -> bool:
    return shutil.which("unshare") is not None and subprocess.run(["unshare", "--mount", "true"]).returncode == 0


def healthy(image: Image, port: int) -> bool:
    """What HEALTHCHECK's command says within the container."""
    found = image.environment(containerfile.environment()) | {"PORT": str(port)}
    program, *rest = containerfile.argv("HEALTHCHECK")
    which = str(shutil.which(program, path=found["PATH"]))
    return subprocess.run([which, *rest], env=found, stderr=subprocess.DEVNULL).returncode == 0


def wait_until_healthy(image: Image, process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + START_LIMIT_S
    while not healthy(image, port):
        assert process.poll() is None, (image.root / "said").read_text()
        assert time.monotonic() < until, (image.root / "said").read_text()
        time.sleep(0.5)


def asked(port: int, host: str, key: str) -> tuple[int, dict[str, object]]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/embeddings",
        json.dumps({"model": "all-MiniLM-L6-v2", "input": "What is RAG?"}).encode(),
        {"content-type": "application/json", "authorization": f"Bearer {key}", "host": host},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {}


@needs_root
def test_the_image_holds_this_version_and_the_pinned_packages(image: Image) -> None:
    program = image.root / "opt" / "venv" / "bin"
    told = subprocess.run([program / "vecgate", "--version"], capture_output=True, text=True, check=True).stdout
    assert told == f"vecgate {__version__}\n"
    printed = subprocess.run(
        [program / "vecgate", "deploy", "compose"], capture_output=True, text=True, check=True
    ).stdout
    assert printed == deploy.read("compose"), "the wheel holds the templates"
    frozen = subprocess.run([program / "pip", "freeze", "--all"], capture_output=True, text=True, check=True).stdout
    pins = {line for line in (ROOT / ".ci" / "constraints.txt").read_text().splitlines() if "==" in line}
    normal = {re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower(): pin.partition("==")[2] for pin in pins}
    versions = dict(line.split("==") for line in frozen.splitlines() if "==" in line)
    found = {re.sub(r"[-_.]+", "-", name).lower(): text.partition("+")[0] for name, text in versions.items()}
    assert {"torch", "granian", "litestar"} <= found.keys() & normal.keys()
    apart = {"pip", "setuptools"}  # come with venv
    assert {name: text for name, text in found.items() if name not in apart and normal.get(name, text) != text} == {}


@needs_root
def test_it_serves_as_nobody_on_a_read_only_root_and_ends_when_told(image: Image) -> None:
    port = free_port()
    assert not healthy(image, port)
    settings = {"PORT": str(port), "VECGATE_API_KEY": "made-up", "ALLOWED_HOSTS": "vecgate", "VECGATE_OFFLINE": "true"}
    with container(image, **settings) as process:
        wait_until_healthy(image, process, port)
        server = max(
            psutil.Process(process.pid).children(recursive=True),
            key=lambda one: one.memory_info().rss,
            default=psutil.Process(process.pid),
        )
        assert set(server.uids()) == set(server.gids()) == {USER}
        status, answer = asked(port, f"vecgate:{port}", "made-up")
        assert status == 200
        assert len(answer["data"][0]["embedding"]) == 384  # type: ignore[index]
        assert asked(port, f"elsewhere:{port}", "made-up")[0] == 403
        assert asked(port, f"vecgate:{port}", "wrong")[0] == 401
        server.send_signal(getattr(signal, containerfile.value("STOPSIGNAL")))
        assert process.wait(Settings().drain_timeout_s + 10) == 0
    told = [json.loads(line) for line in (image.root / "said").read_text().splitlines()]
    assert [line for line in told if line["level"] in ("ERROR", "CRITICAL")] == []


@needs_root
def test_models_come_into_the_image(image: Image) -> None:
    *_, fetch = containerfile.runs(MODELS="minilm all-MiniLM-L6-v2")
    assert "models fetch" in fetch.command
    assert image.run(fetch).returncode == 0
    *_, gone = containerfile.runs(MODELS="nobody/nothing minilm")
    assert image.run(gone, VECGATE_OFFLINE="true").returncode != 0


# the other templates, by the schemas of their programs


def checker(name: str) -> str:
    folder = os.environ.get("DEPLOY_TOOLS", "")
    found = shutil.which(name, path=folder or None)
    if found is None:
        pytest.skip(f"{name} is not installed; `make test-deploy` does it")
    return found


def test_compose_follows_its_specification(tmp_path: Path) -> None:
    file = deploy.write("compose", tmp_path)
    command = [checker("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(file)]
    assert subprocess.run(command, capture_output=True, text=True).returncode == 0


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_kubernetes_knows_every_field(version: str, tmp_path: Path) -> None:
    file = deploy.write("kubernetes", tmp_path)
    command = [checker("kubernetes-validate"), "--strict", "-k", version, str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, (done.stdout + done.stderr).count(" passed ")) == (0, 4)


def test_ruby_reads_the_formula(tmp_path: Path) -> None:
    file = deploy.write("homebrew", tmp_path)
    if shutil.which("ruby") is None:
        pytest.skip("ruby is not installed; on Debian: apt-get install ruby")
    assert subprocess.run(["ruby", "-c", str(file)], capture_output=True, text=True).stdout == "Syntax OK\n"
