"""`vecgate deploy`: files for running vecgate under other programs, kept beside this one and printed as they are.

Knows nothing of the programs and of the settings: a template is a file here and a row of TEMPLATES.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vecgate import __version__
from vecgate.errors import CommandError

VERSION = "@VERSION@"
"""Stands in a template where vecgate's own version belongs."""


@dataclass(frozen=True, slots=True)
class Template:
    """file: its name here, and the one it is usually given."""

    file: str
    about: str


TEMPLATES = {
    "container": Template("Containerfile", "an image for amd64 and arm64, CPU or CUDA, for docker or podman build"),
    "compose": Template("compose.yaml", "that image with Qdrant and Open WebUI, wired to each other"),
    "kubernetes": Template("kubernetes.yaml", "Deployment, Service, autoscaler on waiting tokens, disruption budget"),
    "nginx": Template("nginx.conf", "nginx with TLS, at / and under a path, over one server or more"),
    "haproxy": Template("haproxy.cfg", "HAProxy over two servers, which sends again what one of them loses"),
    "ray": Template("ray.yaml", "Ray Serve's config file: gateways and engines on a cluster"),
    "alerts": Template("alerts.yaml", "what of it to be woken for: Prometheus' alert rules"),
    "grafana": Template("grafana.json", "a dashboard of calls, work and memory for Grafana"),
    "homebrew": Template("vecgate.rb", "Homebrew's formula, its addresses to be filled at a release"),
}


def read(name: str) -> str:
    """The template's text, for this version."""
    from importlib.resources import files  # here, so that --help costs no import of it

    return files(__name__).joinpath(TEMPLATES[name].file).read_text("utf-8").replace(VERSION, __version__)


def listed() -> str:
    """One line a template: its name, the file's usual name, what it is."""
    wide, wider = max(map(len, TEMPLATES)), max(len(one.file) for one in TEMPLATES.values())
    return "\n".join(f"{name:{wide}}  {one.file:{wider}}  {one.about}" for name, one in TEMPLATES.items())


def write(name: str, output: Path) -> Path:
    """The file that was written, in `output` where that is a folder; raises CommandError rather than change one."""
    target = output / TEMPLATES[name].file if output.is_dir() else output
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(read(name))
    except FileExistsError as error:
        raise CommandError(f"{str(target)!a} is there already, and maybe yours: name another file.") from error
    except FileNotFoundError as error:
        raise CommandError(f"{str(target)!a} lies in a folder that does not exist: make it first.") from error
    return target
