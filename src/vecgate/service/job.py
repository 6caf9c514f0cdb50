"""What a supervisor is given: the job to run, and for whom; and what it is asked for (launchd.py, systemd.py)."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vecgate.errors import CommandError

RUN = "run"
"""`vecgate service run ENVIRONMENT [LOG] [FLAGS]`, which nobody else types."""
LIMIT_S = 150.0
"""Of one call of launchctl or systemctl: more than a server may take to leave."""


@dataclass(frozen=True, slots=True)
class User:
    """Whose service it is, as values, so that a test can be another one."""

    system: str
    uid: int
    home: Path
    environ: Mapping[str, str]

    @property
    def folder(self) -> Path:
        """Where the service's settings lie, and what it runs in."""
        base = self.environ.get("XDG_CONFIG_HOME", "") if self.system == "Linux" else ""
        return (Path(base) if base.startswith("/") else self.home / ".config") / "vecgate"


@dataclass(frozen=True, slots=True)
class Job:
    """python: the interpreter that has vecgate. flags: of `vecgate serve`. environment: the file of its variables.

    stop_s: how long it may take to leave before it is killed.
    """

    python: str
    flags: tuple[str, ...]
    folder: Path
    environment: Path
    stop_s: int

    def command(self, log: Path | None = None) -> tuple[str, ...]:
        """What the supervisor starts: it reads the file of variables, as a supervisor would read it in its own way or not
        at all, and then becomes `vecgate serve`."""
        logs = () if log is None else (str(log),)
        return (self.python, "-m", "vecgate", "service", RUN, str(self.environment), *logs, *self.flags)


def flags_in(command: Sequence[str]) -> tuple[str, ...]:
    """The flags of a Job.command: each is one word, and whole paths are no flags."""
    after = command[command.index(RUN) + 1 :] if RUN in command else ()
    return tuple(word for word in after if word.startswith("--"))


@dataclass(frozen=True, slots=True)
class State:
    """what: for people. running: it has a process."""

    running: bool
    what: str


class Supervisor(Protocol):
    """launchd or systemd, for one user. Commands are shown as they are, so that people can type them."""

    @property
    def path(self) -> Path: ...  # the file that tells it of the job
    @property
    def log(self) -> Path | None: ...  # where it lets the server's lines go; None: a place of its own
    def written(self, job: Job) -> str: ...  # its text
    def flags(self, text: str) -> tuple[str, ...]: ...  # of `vecgate serve`, out of it
    def check(self) -> None: ...  # raises CommandError where it does not run here
    def starting(self) -> list[list[str]]: ...
    def ending(self) -> list[list[str]]: ...  # before the file is removed
    def forgetting(self) -> list[list[str]]: ...  # after it
    def restarting(self) -> list[str]: ...
    def refused(
        self, command: Sequence[str], status: int, said: str
    ) -> str | None: ...  # why; None: it does not matter
    def state(self) -> State: ...
    def reading(self, lines: int, *, follow: bool) -> list[str]: ...  # the command that shows the log
    def when(self) -> str: ...  # it starts and ends


def asked(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run it to its end; raises CommandError where it is not there or hangs."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise CommandError(f"There is no {command[0]} in PATH, which vecgate service needs.") from None
    except subprocess.TimeoutExpired:
        raise CommandError(f"`{' '.join(command)}` did not end within {LIMIT_S:g} s.") from None
