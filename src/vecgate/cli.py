"""The command line: flags -> Settings -> run; every failure is one sentence on stderr and status 2."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from vecgate import __version__
from vecgate.config import SETTINGS, Settings, add_flags, flags_of, load, unknown_flag, warnings
from vecgate.errors import CheckpointError, ConfigError

log = logging.getLogger("vecgate")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 done, 1 the server broke, 2 a setting or a model is wrong, 130 interrupted."""
    parser = _parser()
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv and argv[0].partition("=")[0] in {setting.option for setting in SETTINGS}:
            raise ConfigError(f"{argv[0].partition('=')[0]} comes after the command, as in vecgate serve --port 9001.")
        arguments, unknown = parser.parse_known_args(argv)
        if unknown:
            raise unknown_flag(unknown[0])
        if arguments.command is None:
            parser.print_help()
            return 0
        return int(arguments.run(arguments))
    except (ConfigError, CheckpointError) as error:
        print(f"vecgate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


class Parser(argparse.ArgumentParser):
    """One that refuses as the rest of the command line does, without its usage's dozens of lines."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help.")


def _parser() -> Parser:
    parser = Parser(
        prog="vecgate", description="An OpenAI-compatible server for embeddings and reranking.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"vecgate {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    serve = commands.add_parser("serve", help="load the model and answer HTTP", allow_abbrev=False)
    add_flags(serve)
    serve.set_defaults(run=_serve)
    models = commands.add_parser("models", help="what the server needs beside a model", allow_abbrev=False)
    actions = models.add_subparsers(dest="action", metavar="ACTION", required=True)
    fetch = actions.add_parser("fetch", help="download OpenAI's token table, to read clients' token ids")
    fetch.add_argument("table", choices=("cl100k", "o200k"))
    fetch.set_defaults(run=_fetch)
    return parser


def _settings(arguments: argparse.Namespace) -> Settings:
    return load(flags_of(arguments), os.environ, Path.cwd())


def _serve(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    if settings.reload:
        return _reloading(settings)
    return _leave(serve(settings))


def _leave(status: int) -> NoReturn:
    """At once: the interpreter's own end would wait for a device that hangs, and granian's threads may panic in it
    (seen)."""
    sys.stderr.flush()
    os._exit(status)


def serve(settings: Settings) -> int:
    """Load, listen, and stay until a signal; the exit status."""
    from vecgate import logs, server  # here, so that --help and --version cost no import of them
    from vecgate.app import build

    address, port = server.free_place(settings.host, settings.port)
    app, life = build(settings)
    with logs.logging_to(level=settings.log_level, form=settings.log_format):
        for warning in warnings(settings):
            log.warning(warning)
        shown = f"[{settings.host}]" if ":" in settings.host else settings.host
        log.info("vecgate %s listens on http://%s:%d, with its documentation at /docs.", __version__, shown, port)
        return server.run(app, life, address, port, settings.drain_timeout_s)


def _reloading(settings: Settings) -> int:
    """`serve` in a child process, started anew whenever a source file changes."""
    try:
        from watchfiles import PythonFilter, run_process
    except ImportError as error:
        raise ConfigError("RELOAD needs the package watchfiles: pip install 'vecgate[reload]'.") from error
    from vecgate import server
    from vecgate.app import build

    _, port = server.free_place(settings.host, settings.port)
    build(settings)  # what is wrong with them stops the start here, not in one child after another
    kept = replace(settings, port=port)
    run_process(Path(__file__).parent, target=_child, args=(kept,), watch_filter=PythonFilter())
    return 0


def _child(settings: Settings) -> None:
    """One life of the reloaded server; where the changed source can't start, the next change is waited for."""
    try:
        status = serve(settings)
    except (ConfigError, CheckpointError) as error:
        print(f"vecgate: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    _leave(status)


def _fetch(arguments: argparse.Namespace) -> int:
    from vecgate.protocols import token_ids

    folder = _settings(arguments).tiktoken_dir
    assert folder is not None  # load fills it in
    print(token_ids.fetch(arguments.table, folder))
    return 0
