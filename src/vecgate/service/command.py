"""What the service command does: writes and removes the file that launchd or systemd reads, asks, shows, and becomes serve.

Touches nothing outside the user's own folders, and changes nothing in a dry run.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shlex
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from math import ceil
from pathlib import Path
from typing import NoReturn

from vecgate import config
from vecgate.backends import require_one
from vecgate.errors import CommandError, ConfigError
from vecgate.place import Place, free_place
from vecgate.service.arguments import passed
from vecgate.service.job import Job, Supervisor, User, asked
from vecgate.service.launchd import Launchd
from vecgate.service.systemd import Systemd
from vecgate.settings import SETTINGS, Settings, short

DONE, NOT_READY = 0, 1
LEAST_STOP_S, STOP_MARGIN_S = 90, 10
"""A server leaves by itself soon after its drain time; killed is only what hangs."""
ASK_S = 5.0
MOST_LOG_BYTES = 50 * 10**6
CACHES = ("/archive-v0/", "/environments-v2/", "/builds-v0/", "/pipx/.cache/", "/.cache/pipx/")
"""Parts of the paths from which `uvx` and `pipx run` run what they remove again some day."""
VARIABLES = """\
# The variables of vecgate's service, each on a line of its own, read as .env is. After a change:
#   {restart}
# All settings: `vecgate serve --help`. What other libraries read counts too: HF_TOKEN, HTTPS_PROXY, OMP_NUM_THREADS.

# PORT=9000
# MODEL_NAME=minilm
# CROSS_ENCODER_MODEL=
# VECGATE_API_KEY=
# LOG_FORMAT=console
"""

Tell = Callable[[str], None]


def supervisor(user: User) -> Supervisor:
    """The one of this system; raises CommandError where it has none that is known here."""
    if user.system == "Darwin":
        return Launchd(user)
    if user.system == "Linux":
        return Systemd(user)
    raise CommandError(
        f"vecgate service knows launchd and systemd, and {user.system} has neither: start `vecgate serve`."
    )


def run(arguments: argparse.Namespace, user: User, say: Tell, note: Tell) -> int:
    """The exit status. note: for what is no part of a dry run's file."""
    if arguments.action == "logs":
        return logs(arguments, user)
    if arguments.action == "run":
        become_server(arguments, user.environ)
    if arguments.action == "status":
        return status(user, say)
    for line in install(arguments, user, note) if arguments.action == "install" else uninstall(user):
        say(line)
    return DONE


# install


def install(arguments: argparse.Namespace, user: User, note: Tell) -> Iterator[str]:
    """Lines of what was done; of a dry run the file, and by `note` what would be done with it."""
    by, flags = supervisor(user), passed(arguments)
    environment = user.folder / "env"
    written = config.environment(environment) if environment.exists() else {}
    settings = _settings(flags, written, user)
    stop_s = max(LEAST_STOP_S, ceil(settings.drain_timeout_s) + STOP_MARGIN_S)
    text = by.written(Job(sys.executable, flags, user.folder, environment, stop_s))
    if arguments.dry_run:
        yield text.rstrip("\n")
        note(f"This would be {by.path}, its variables {environment}. Then: {_typed(by.starting())}")
        return
    _check(by, user, settings)
    _write_variables(environment, by)
    _start(by, text)
    yield f"vecgate runs as a service, at {_place(settings).url(settings.host)}: `vecgate service status` tells when it is ready."
    yield by.when()
    yield f"Its settings: {short(environment)}; after a change: {shlex.join(by.restarting())}"
    if environment.stat().st_mode & 0o077:
        yield f"Other users of this machine can read it: chmod 600 {shlex.quote(str(environment))}"
    if unseen := [name for name in _variables() if user.environ.get(name) and name not in written]:
        yield f"It does not see this shell's {', '.join(unseen)}: give flags, or put them into {short(environment)}."


def _check(by: Supervisor, user: User, settings: Settings) -> None:
    """Raises CommandError or ConfigError with why it would not run, before anything is written."""
    if by.path.exists():
        raise CommandError(
            f"The service is installed already ({short(by.path)}): change {short(user.folder / 'env')} and "
            f"`{shlex.join(by.restarting())}`, or `vecgate service uninstall` first."
        )
    if user.uid == 0:
        raise CommandError("vecgate service is one user's own and never root's: run it as that user, without sudo.")
    by.check()
    if any(part in sys.prefix + "/" for part in CACHES):
        raise CommandError(
            f"This vecgate runs from a cache ({sys.prefix}), which is emptied some day: `uv tool install vecgate` or "
            "`pipx install vecgate` installs one that stays."
        )
    require_one(settings.backend)
    if settings.uds is None:
        if settings.port == 0:
            raise ConfigError("PORT is 0, another one at each start: a service needs one that its clients can know.")
        free_place(settings.host, settings.port)


def _write_variables(path: Path, by: Supervisor) -> None:
    """An empty file, only for its user's eyes; one that is there stays as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(VARIABLES.format(restart=shlex.join(by.restarting())), encoding="utf-8")


def _start(by: Supervisor, text: str) -> None:
    for folder in (by.path.parent, *([by.log.parent] if by.log else [])):
        folder.mkdir(parents=True, exist_ok=True)
    by.path.write_text(text, encoding="utf-8")
    try:
        _each(by, by.starting())
    except CommandError:
        by.path.unlink()  # or the next try would find it installed
        raise


# the others


def uninstall(user: User) -> Iterator[str]:
    by = _installed(user)
    _each(by, by.ending())
    by.path.unlink(missing_ok=True)
    _each(by, by.forgetting())
    kept = " and ".join(short(path) for path in (user.folder, by.log) if path is not None)
    yield f"The service is gone, and {short(by.path)} with it; {kept} stays."


def status(user: User, say: Tell) -> int:
    """The exit status: 0 where it runs and is ready."""
    by = _installed(user)
    environment, state = user.folder / "env", by.state()
    say(f"service   {state.what}")
    try:
        flags = by.flags(by.path.read_text(encoding="utf-8"))
        settings = _settings(flags, config.environment(environment), user)
    except ConfigError as error:
        say(f"settings  {error}")
        return NOT_READY
    health = _health(settings, user)
    say(f"address   {_place(settings).url(settings.host)}: {health}")
    say(f"settings  {short(environment)}")
    say(f"file      {short(by.path)}")
    return DONE if state.running and health == "ready" else NOT_READY


def logs(arguments: argparse.Namespace, user: User) -> int:
    """The exit status of what shows them."""
    by = _installed(user)
    if by.log is not None and not by.log.exists():
        raise CommandError(f"There is no {short(by.log)} yet: `vecgate service status` says whether it runs.")
    command = by.reading(arguments.lines, follow=arguments.follow)
    try:
        return subprocess.call(command, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise CommandError(f"There is no {command[0]} in PATH, which has the log.") from None


def become_server(arguments: argparse.Namespace, environ: Mapping[str, str]) -> NoReturn:
    """Exchange this process for `vecgate serve` with the file's variables: its number and its signals stay the same."""
    variables = config.environment(Path(arguments.environment))
    if arguments.log is not None:
        _begin_anew(Path(arguments.log))
    command = [sys.executable, "-m", "vecgate", "serve", *passed(arguments)]
    os.execve(sys.executable, command, {**environ, **variables})


def _begin_anew(log: Path) -> None:
    """Keep a log that has grown large as LOG.1; launchd has opened it for us, and empties none."""
    if not log.exists() or log.stat().st_size < MOST_LOG_BYTES or not os.path.samestat(os.fstat(2), log.stat()):
        return
    log.replace(f"{log}.1")
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(descriptor, stream)


# what they share


def _installed(user: User) -> Supervisor:
    by = supervisor(user)
    if not by.path.exists():
        raise CommandError(f"The service is not installed ({short(by.path)} is not there): `vecgate service install`.")
    return by


def _settings(flags: Sequence[str], variables: Mapping[str, str], user: User) -> Settings:
    """What a server started so would find; raises ConfigError."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    config.add_flags(parser)
    return config.load(config.flags_of(parser.parse_args(flags)), variables, user.folder)


def _variables() -> Iterator[str]:
    return (name for setting in SETTINGS for name in dict.fromkeys((setting.name, setting.prefixed)))


def _each(by: Supervisor, commands: Sequence[Sequence[str]]) -> None:
    for command in commands:
        done = asked(command)
        said = " ".join((done.stderr or done.stdout).split()) or f"exit status {done.returncode}"
        why = by.refused(command, done.returncode, said.rstrip(".")) if done.returncode else None
        if why is not None:
            raise CommandError(f"`{shlex.join(command)}` failed: {why}")


def _typed(commands: Sequence[Sequence[str]]) -> str:
    return " && ".join(map(shlex.join, commands))


def _place(settings: Settings) -> Place:
    cert = settings.tls_cert
    tls = (cert, settings.tls_key or cert) if cert is not None else None
    return Place(settings.host, settings.port, tls, settings.uds)


def _health(settings: Settings, user: User) -> str:
    """The status word of /health/ready, or that nobody answers."""
    try:
        with closing(_connection(settings, user)) as connection:
            connection.request("GET", "/health/ready", headers={"host": "localhost"})
            return str(json.loads(connection.getresponse().read())["status"])
    except (OSError, http.client.HTTPException):
        return "nothing answers"
    except (ValueError, KeyError, TypeError):
        return "something else answers"


def _connection(settings: Settings, user: User) -> http.client.HTTPConnection:
    if settings.uds is not None:
        local = http.client.HTTPConnection("localhost")
        local.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        local.sock.settimeout(ASK_S)
        local.sock.connect(str(user.folder / settings.uds))
        return local
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    if settings.tls_cert is None:
        return http.client.HTTPConnection(host, settings.port, timeout=ASK_S)
    anyone = ssl.create_default_context()  # the certificate is for clients to judge; here nothing is sent or believed
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    return http.client.HTTPSConnection(host, settings.port, timeout=ASK_S, context=anyone)
