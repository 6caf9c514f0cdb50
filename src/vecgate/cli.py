"""The command line: flags -> Settings -> run; every failure is one sentence on stderr that says what to do."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from vecgate import __version__, flags, inout
from vecgate.config import flags_of, load, warnings
from vecgate.errors import CheckpointError, CommandError, ConfigError, VecgateError
from vecgate.settings import SETTINGS, Settings

if TYPE_CHECKING:
    from vecgate import shelf
    from vecgate.core import Status
    from vecgate.metrics import Metrics
    from vecgate.place import Place
    from vecgate.traits import Owned

log = logging.getLogger("vecgate")

DONE, BROKE, WRONG, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses: it was done; it could not be done; the command, a setting or a model is wrong; Ctrl-C."""
SPIN, SPINS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"), "20000"
"""What says how long GNU's OpenMP (torch's on Linux) keeps a thread of a forward turning after it, and for how many turns
here: from one part of a forward to the next, some 0.3 ms. Its own 300,000 hold a core that the answer and the next request need
(a client's queries one by one on two cores: 1.19 times as many)."""


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status; see above."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _fill_in_streams()
    debug = "--debug" in (argv[: argv.index("--")] if "--" in argv else argv)
    try:
        return _run(argv, debug)
    except KeyboardInterrupt as error:
        return _interrupted(error)
    except BrokenPipeError:  # the reader, head for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's last flush complains
        return BROKE
    except Exception as error:  # noqa: BLE001 - the last line of defence: no traceback unless asked for
        if debug:
            traceback.print_exc()
        return _failed(*_sentence(error))


def _fill_in_streams() -> None:
    """Where a standard stream is closed (`2>&-`, some supervisors), one that leads nowhere: else the next file or client
    gets its number, and with it what some library prints."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for the life of the process


def _sentence(error: Exception) -> tuple[str, int]:
    """What to say of a failure, and the exit status."""
    if isinstance(error, (ConfigError, CheckpointError)):
        return str(error), WRONG
    if isinstance(error, (CommandError, VecgateError)):
        return str(error), BROKE
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the system'}: {error.strerror}.", BROKE
    return f"{type(error).__name__} ({error}), which nobody foresaw: --debug shows where; please report it.", BROKE


def _failed(message: str, status: int) -> int:
    print(f"vecgate: {message}", file=sys.stderr)
    return status


def _run(argv: Sequence[str], debug: bool) -> int:
    if not any(name in os.environ for name in SPIN):
        os.environ[SPIN[-1]] = SPINS  # before anything imports torch
    top = flags.parser()
    if argv and argv[0].partition("=")[0] in {setting.option for setting in SETTINGS}:
        raise ConfigError(f"{argv[0].partition('=')[0]} comes after the command, as in vecgate serve --port 9001.")
    arguments, unknown = top.parse_known_args(argv)
    unknown = flags.taken_in(arguments, unknown)
    if unknown:
        raise flags.refusal(top, arguments.command, unknown[0])
    arguments.said = argv
    if arguments.command is None:
        top.print_help()
        return DONE
    if arguments.command == "serve":
        return _serve(_settings(arguments))
    from vecgate import logs  # here, so that --help and --version cost no import of it

    quiet = logging.NullHandler()  # or Python's own last resort would print a stack
    logging.getLogger().addHandler(quiet)
    try:
        with logs.logging_to(level="INFO", form="console") if debug else nullcontext():
            return RUN[arguments.command](arguments)
    except KeyboardInterrupt as error:
        if arguments.command not in ("embed", "rerank"):
            raise
        return _leave(_interrupted(error))  # a model may still be loading
    finally:
        logging.getLogger().removeHandler(quiet)


def _interrupted(error: KeyboardInterrupt) -> int:
    return _failed("interrupted; " + str(error), INTERRUPTED) if str(error) else INTERRUPTED


def _settings(arguments: argparse.Namespace) -> Settings:
    return load(flags_of(arguments), os.environ, Path.cwd())


# serve


def _serve(settings: Settings) -> int:
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
    from vecgate.ram import settle
    from vecgate.traces import traces

    def ready(status: Status) -> None:
        settle()
        _announce(settings, place, status)

    place, spans = _place(settings), traces(os.environ, __version__)
    file = logs.File(settings.log_file, settings.log_file_bytes, settings.log_files) if settings.log_file else None
    with (
        logs.logging_to(level=settings.log_level, form=settings.log_format, file=file) as lines,
        engines(settings) as make,
    ):
        app, life = build(settings, ready, lambda: lines.lost, spans, make)
        for warning in warnings(settings):
            log.warning(warning)
        url = place.url(settings.host)
        log.info("vecgate %s listens on %s, with its documentation at /docs.", __version__, url)
        return server.run(app, life, place, settings.drain_timeout_s)


def engines(settings: Settings) -> AbstractContextManager[Callable[[Metrics], Owned] | None]:
    """What makes the engine where it is another than this process's own; raises ConfigError."""
    if settings.engine == "local":
        return nullcontext()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or Ray tells its makers of each start
    try:
        from vecgate import ray_serve
    except ImportError as error:
        raise ConfigError("VECGATE_ENGINE=ray needs the package ray: pip install 'vecgate[ray]'.") from error
    return ray_serve.running(settings)


def _place(settings: Settings) -> Place:
    """Where to listen, tried; raises ConfigError."""
    from vecgate.place import free_place, free_socket, tls_files

    tls = tls_files(settings.tls_cert, settings.tls_key)
    if settings.uds is None:
        return free_place(settings.host, settings.port, tls)
    if tls is not None:
        raise ConfigError(
            "VECGATE_TLS_CERT and VECGATE_UDS are set: what comes by a Unix socket leaves no wire to protect, so give one."
        )
    return free_socket(settings.uds, settings.uds_mode)


def _announce(settings: Settings, place: Place, status: Status) -> None:
    """One line of the log, which a terminal shows as the banner; on the device thread."""
    from vecgate import banner

    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # what a client here can call
    url = place.url(host)
    extra: dict[str, object] = {"fields": banner.fields(status, settings, url)}
    if settings.log_format == "console" or sys.stderr.isatty():
        extra["block"] = banner.text(status, settings, url)
    log.info("Ready at %s.", url, extra=extra)


def _reloading(settings: Settings) -> int:
    """`serve` in a child process, started anew whenever a source file changes."""
    try:
        from watchfiles import PythonFilter, run_process
    except ImportError as error:
        raise ConfigError("RELOAD needs the package watchfiles: pip install 'vecgate[reload]'.") from error
    from vecgate.app import build

    place = _place(settings)
    build(settings)  # what is wrong with them stops the start here, not in one child after another
    kept = replace(settings, port=place.port)
    run_process(Path(__file__).parent, target=_child, args=(kept,), watch_filter=PythonFilter())
    return DONE


def _child(settings: Settings) -> None:
    """One life of the reloaded server; where the changed source can't start, the next change is waited for."""
    try:
        status = serve(settings)
    except (ConfigError, CheckpointError) as error:
        status = _failed(str(error), WRONG)
    except KeyboardInterrupt:
        status = INTERRUPTED
    _leave(status)


# embed and rerank


def _embed(arguments: argparse.Namespace) -> int:
    from vecgate import ask

    settings, source = _settings(arguments), inout.source(arguments, arguments.texts, "to embed")
    form, target = inout.target(
        arguments, {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".npy": "npy"}, "jsonl"
    )
    if form == "npy" and target is None and sys.stdout.isatty():
        raise ConfigError("The format npy is no text for a terminal: give -o OUT.npy, or send it into a pipe.")
    inout.apart(source, target)
    progress = arguments.progress
    if progress is None:
        vectors_on_screen = target is None and sys.stdout.isatty()
        progress = not source.given and sys.stderr.isatty() and not vectors_on_screen
    wish = ask.Wish(
        url=arguments.url,
        model=_named(arguments),
        space=arguments.space,
        role=arguments.role,
        dimensions=arguments.dimensions,
        normalize=arguments.normalize,
    )
    with inout.opened(target) as out:
        done = ask.Embedding(settings, source, wish, out, form).run(progress=progress)
    if done.cut:
        print(
            f"vecgate: {done.cut} of {done.rows} texts were longer than the model reads and lost their end; "
            "--truncate refuse stops at such a text.",
            file=sys.stderr,
        )
    return DONE


def _rerank(arguments: argparse.Namespace) -> int:
    from vecgate import ask

    settings, source = _settings(arguments), inout.source(arguments, arguments.documents, "to rank")
    form, target = inout.target(
        arguments, {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text"}, "text"
    )
    inout.apart(source, target)
    model = _named(arguments, "cross_encoder_model") or _named(arguments)
    wish = ask.Wish(url=arguments.url, model=model, space=arguments.space)
    ranked, documents = ask.rerank(
        settings, arguments.query, source, wish, method=arguments.method, top_n=arguments.top_n
    )
    said = ask.written(arguments.query, ranked, documents, form, with_ids=source.form == "jsonl")
    with inout.opened(target) as out:
        if isinstance(out, Path):
            out.write_bytes(said)
        else:
            out.write(said)
            out.flush()
    return DONE


def _named(arguments: argparse.Namespace, key: str = "model_name") -> str | None:
    """The model a server is asked for: only a flag names it, since MODEL_NAME is what this machine serves. Raises
    ConfigError for several, here too."""
    names: Sequence[str] = getattr(arguments, key, None) or ()
    if len(names) > 1:
        raise ConfigError(f"vecgate {arguments.command} takes one model, and the flags name {' and '.join(names)}.")
    return names[0] if names and arguments.url else None


# models and completion


def _models(arguments: argparse.Namespace) -> int:
    from vecgate import shelf

    settings = _settings(arguments)
    if arguments.action == "fetch":
        print(shelf.fetch(arguments.name, settings))
        return DONE
    if arguments.action == "remove":
        return _remove(shelf.removal(arguments.name, settings), arguments.yes)
    found = shelf.entries(settings)
    print(shelf.as_json(found) if arguments.as_json else shelf.as_table(found, settings))
    return DONE


def _remove(what: shelf.Removal, sure: bool) -> int:
    from vecgate import shelf

    size = shelf.size(what.size_bytes)
    if not sure:
        if not sys.stdin.isatty():
            raise ConfigError(f"{what.what} ({size}) would be removed: --yes says so where nobody can be asked.")
        if input(f"Remove {what.what}, {size}? [y/N] ").strip().lower() not in ("y", "yes"):
            print("Nothing was removed.")
            return DONE
    print(f"{shelf.size(shelf.remove(what))} freed.")
    return DONE


def _bench(arguments: argparse.Namespace) -> int:
    from vecgate.bench import command

    wish = command.wish(arguments, _settings(arguments))
    progress = sys.stderr.isatty() if arguments.progress is None else arguments.progress
    report = command.measure(wish, progress=progress)
    print(command.written(report, wish), end="")
    return BROKE if report.errors else DONE


def _verify(arguments: argparse.Namespace) -> int:
    from vecgate.verify import command

    wish = command.wish(arguments, _settings(arguments))
    progress = sys.stderr.isatty() if arguments.progress is None else arguments.progress
    reports = command.verified(wish, progress=progress)
    print(command.written(reports, as_json=arguments.as_json), end="")
    return DONE if command.good(reports, strict=arguments.strict) else BROKE


def _doctor(arguments: argparse.Namespace) -> int:
    from vecgate import doctor

    found = doctor.examine(_settings(arguments), doctor.Machine(os.environ))
    print(doctor.as_json(found) if arguments.as_json else doctor.screen(found), end="")
    return DONE if doctor.healthy(found) else BROKE


def _connect(arguments: argparse.Namespace) -> int:
    from vecgate import connect

    for line in connect.connect(connect.wish(arguments, sys.stdin)):
        print(line)
    return DONE


def _deploy(arguments: argparse.Namespace) -> int:
    from vecgate import deploy

    if arguments.template is None:
        if arguments.output is not None:
            raise ConfigError(f"-o needs the template's name; there are {', '.join(deploy.TEMPLATES)}.")
        print(deploy.listed())
    elif arguments.output in (None, "-"):
        print(deploy.read(arguments.template), end="")
    else:
        print(f"{deploy.write(arguments.template, Path(arguments.output))} written.")
    return DONE


def _service(arguments: argparse.Namespace) -> int:
    from vecgate.service import command
    from vecgate.service.job import User

    user = User(platform.system(), os.geteuid(), Path.home(), os.environ)
    return command.run(arguments, user, print, partial(print, file=sys.stderr))


def _completion(arguments: argparse.Namespace) -> int:
    print(flags.script(arguments.shell))
    return DONE


RUN: dict[str, Callable[[argparse.Namespace], int]] = {
    "embed": _embed,
    "rerank": _rerank,
    "models": _models,
    "verify": _verify,
    "bench": _bench,
    "doctor": _doctor,
    "connect": _connect,
    "deploy": _deploy,
    "service": _service,
    "completion": _completion,
}
