"""What `vecgate service` is told: its flags, and those of `vecgate serve` that it hands on, as they hold in any folder."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vecgate.config import add_flags
from vecgate.errors import ConfigError
from vecgate.settings import A_FILE, FOLDER, MODELS, OTHER_FOLDER, OTHER_MODEL, RERANKERS, SETTINGS, Setting

PATHS = (A_FILE, FOLDER, OTHER_FOLDER)
NAMES = (MODELS, OTHER_MODEL, RERANKERS)
"""Kinds of settings that may name a folder."""
LINES = 100
FLAGS = frozenset(setting.key for setting in SETTINGS) - {"reload"}
"""Of `vecgate serve`: all but that for its developers."""


def add_arguments(service: argparse.ArgumentParser, debug: Callable[[Any], None]) -> None:
    """The actions with their flags; `debug` adds the flag that every command has."""
    actions = service.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    install = actions.add_parser("install", help="start it now and at every login", allow_abbrev=False)
    install.add_argument(
        "--dry-run", action="store_true", help="print the file that would be written, and change nothing"
    )
    add_flags(install, FLAGS)
    actions.add_parser("status", help="whether it runs and is ready", allow_abbrev=False)
    logs = actions.add_parser("logs", help="what it wrote", allow_abbrev=False)
    logs.add_argument(
        "-n", "--lines", metavar="N", type=_lines, default=LINES, help=f"the last ones (default: {LINES})"
    )
    logs.add_argument("-f", "--follow", action="store_true", help="and those to come, until Ctrl-C")
    actions.add_parser("uninstall", help="stop it and remove it; its settings stay", allow_abbrev=False)
    run = actions.add_parser(
        "run", help="what launchd and systemd start: FILE's variables, then serve", allow_abbrev=False
    )
    run.add_argument("environment", metavar="FILE", help="one NAME=value a line, read as .env is")
    run.add_argument(
        "log",
        metavar="LOG",
        nargs="?",
        help="where its output goes already, if into a file; begun anew at a start that finds 50 MB in it",
    )
    add_flags(run, FLAGS)
    for action in (install, logs, run, actions.choices["status"], actions.choices["uninstall"]):
        debug(action)


def _lines(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 8):
        raise argparse.ArgumentTypeError(f"{text[:40]!a} is no whole number from 0 to 9999999")
    return int(text)


def passed(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The flags of `vecgate serve` that were given, paths made whole; raises ConfigError for what can't stand in a file
    that others read."""
    given = vars(arguments)
    if given.get("api_key") is not None:
        raise ConfigError(
            "--api-key would stand where other users can see it: put VECGATE_API_KEY into the service's file of variables, "
            "or its keys into a file for --api-key-file."
        )
    words = tuple(_words(given))
    if any(not word.isprintable() for word in words):
        raise ConfigError("A flag of more than one line can't be handed on: put it into the service's vecgate.toml.")
    return words


def _words(given: dict[str, Any]) -> Iterator[str]:
    if given.get("config") is not None:
        yield f"--config={_absolute(given['config'])}"
    for setting in SETTINGS:
        raw = given.get(setting.key)
        if isinstance(raw, bool):
            yield setting.option if raw else f"--no-{setting.option.removeprefix('--')}"
        elif raw is not None:
            yield from (f"{setting.option}={_whole(setting, one)}" for one in (raw if isinstance(raw, list) else [raw]))


def _whole(setting: Setting, text: str) -> str:
    """A path of this folder as one that holds in any; else the text."""
    if setting.kind in PATHS and text.strip():
        return _absolute(text)
    return _absolute(text) if setting.kind in NAMES and _is_folder(text) else text


def _is_folder(name: str) -> bool:
    from vecgate.engine.builtin import BUILT_IN  # here, as most commands need no table of models

    short = {known for one in BUILT_IN for known in (one.short, one.name.casefold(), one.repo.casefold())}
    return name.strip() != "" and name.casefold() not in short and Path(name).expanduser().is_dir()


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))
