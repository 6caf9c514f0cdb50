"""The container file as its builder reads it: each RUN with the environment and the user it gets, and what is started."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO

from dockerfile_parse import DockerfileParser  # type: ignore[import-untyped]

from vecgate import deploy


@dataclass(frozen=True, slots=True)
class Run:
    """command: for /bin/sh -c. environment: of ARG and ENV. user: "" is root."""

    command: str
    environment: dict[str, str]
    user: str


def instructions() -> list[tuple[str, str]]:
    """Name and value of each, continued lines joined, comments left out."""
    found = DockerfileParser(fileobj=BytesIO(deploy.read("container").encode())).structure
    return [(one["instruction"], one["value"]) for one in found if one["instruction"] != "COMMENT"]


def value(name: str) -> str:
    """Of the last instruction of this name."""
    return [found for instruction, found in instructions() if instruction == name][-1]


def argv(name: str) -> list[str]:
    """The JSON list of CMD, ENTRYPOINT, VOLUME or HEALTHCHECK ... CMD."""
    listed = json.loads(value(name)[value(name).index("[") :])
    return [str(one) for one in listed]


def runs(**arguments: str) -> Iterator[Run]:
    """Every RUN in its order; arguments: of `docker build --build-arg`."""
    environment: dict[str, str] = {}
    user = ""
    for name, text in instructions():
        if name == "FROM":
            environment, user = {}, ""
        elif name == "ARG":
            argument, _, default = text.partition("=")
            environment[argument] = arguments.get(argument, default)
        elif name == "ENV":
            environment |= assignments(text, environment)
        elif name == "USER":
            user = text
        elif name == "RUN":
            yield Run(text, dict(environment), user)


def environment() -> dict[str, str]:
    """What a container starts with."""
    found: dict[str, str] = {}
    for name, text in instructions():
        if name == "FROM":
            found = {}
        elif name == "ENV":
            found |= assignments(text, found)
    return found


def assignments(text: str, known: Mapping[str, str]) -> dict[str, str]:
    """Of ENV, with $NAME and ${NAME} filled in."""
    pairs = (word.partition("=") for word in shlex.split(text))
    return {name: re.sub(r"\$\{?(\w+)\}?", lambda found: known.get(found[1], ""), said) for name, _, said in pairs}
