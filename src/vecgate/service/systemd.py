"""The server as a unit of the user's own systemd: the unit's text, and what systemctl is told and asked."""

from __future__ import annotations

import getpass
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vecgate.errors import CommandError
from vecgate.service.job import Job, State, User, asked, flags_in

NAME = "vecgate.service"
RUNS = Path("/run/systemd/system")
"""There where systemd is what started the machine (sd_booted(3))."""
NO_BUS = ("failed to connect to", "$dbus_session_bus_address", "xdg_runtime_dir")

# No EnvironmentFile: systemd reads quotes, backslashes and comments in another way than `.env` is read, and leaves out a line
# with `export`, where a key may stand. RestartPreventExitStatus: 2 is a wrong setting, which trying again does not cure. The narrowing is what a user's systemd can
# do without namespaces of its own; an unwritable or unexecutable memory would stop torch's and CUDA's compilers.
UNIT = """\
# Written by `vecgate service install`; `vecgate service uninstall` removes it.
[Unit]
Description=vecgate: embeddings and reranking

[Service]
Type=exec
ExecStart={command}
WorkingDirectory={folder}
Restart=on-failure
RestartSec=5
RestartPreventExitStatus=2
KillMode=mixed
KillSignal=SIGTERM
TimeoutStopSec={stop_s}
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native

[Install]
WantedBy=default.target
"""
START = "ExecStart="
SHOWN = ("ActiveState", "SubState", "MainPID", "NRestarts", "ExecMainStatus")


@dataclass(frozen=True, slots=True)
class Systemd:
    """One user's systemd; see Supervisor."""

    user: User

    @property
    def path(self) -> Path:
        return self.user.folder.parent / "systemd" / "user" / NAME

    @property
    def log(self) -> None:
        """The journal has it."""
        return None

    def written(self, job: Job) -> str:
        return UNIT.format(
            command=" ".join(map(quoted, job.command())),
            folder=_specifiers(job.folder),
            stop_s=job.stop_s,
        )

    def flags(self, text: str) -> tuple[str, ...]:
        line = next((line for line in text.splitlines() if line.startswith(START)), START)
        return flags_in(shlex.split(line.removeprefix(START).replace("$$", "$").replace("%%", "%")))

    def check(self) -> None:
        if shutil.which("systemctl") is None or not RUNS.exists():
            raise CommandError(
                "systemd does not run here (a container, WSL without it, another init): let what starts other programs start "
                "`vecgate serve`; --dry-run shows the unit."
            )

    def starting(self) -> list[list[str]]:
        return [_told("daemon-reload"), _told("enable", "--now", NAME)]

    def ending(self) -> list[list[str]]:
        return [_told("disable", "--now", NAME)]

    def forgetting(self) -> list[list[str]]:
        return [_told("daemon-reload"), _told("reset-failed", NAME)]

    def restarting(self) -> list[str]:
        return _told("restart", NAME)

    def refused(self, command: Sequence[str], status: int, said: str) -> str | None:
        if "reset-failed" in command:  # it is not there any more, which is well
            return None
        if any(sign in said.casefold() for sign in NO_BUS):
            return (
                f"{said}: a systemd of your own runs once you log in at the console or by SSH (not by su or sudo), or from "
                f"`loginctl enable-linger {_login()}` on."
            )
        return said

    def state(self) -> State:
        told = asked(_told("show", NAME, f"--property={','.join(SHOWN)}"))
        if told.returncode:
            raise CommandError(f"systemctl: {self.refused((), told.returncode, told.stderr.strip())}")
        found = dict(line.partition("=")[::2] for line in told.stdout.splitlines())
        active, sub = found.get("ActiveState", "unknown"), found.get("SubState", "")
        what = active if sub in ("", active) else f"{active} ({sub})"
        if found.get("MainPID", "0") != "0":
            what += f", process {found['MainPID']}"
        elif found.get("ExecMainStatus", "0") != "0":
            what += f", its last exit status was {found['ExecMainStatus']}"
        restarts = found.get("NRestarts", "0")
        return State(active == "active", what + (f", restarts: {restarts}" if restarts != "0" else ""))

    def reading(self, lines: int, *, follow: bool) -> list[str]:
        """--user-unit rather than --user --unit, which sees nothing where the journal is kept in memory."""
        return ["journalctl", f"--user-unit={NAME}", "--output=cat", f"--lines={lines}", *["--follow"] * follow]

    def when(self) -> str:
        login = _login()
        told = asked(["loginctl", "show-user", login, "--property=Linger"]) if shutil.which("loginctl") else None
        if told is not None and told.stdout.strip() == "Linger=yes":
            return "It starts with the machine."
        return (
            f"It starts when you log in and ends when you log out; `loginctl enable-linger {login}` lets it run from the "
            "machine's start on."
        )


def _told(*words: str) -> list[str]:
    return ["systemctl", "--user", *words]


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        return "$USER"


def quoted(word: str) -> str:
    """A word of ExecStart as systemd reads it back, and shlex too."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return _specifiers(escaped if word and not set(word) & set(" \t'\"\\;") else f'"{escaped}"')


def _specifiers(text: object) -> str:
    return str(text).replace("%", "%%")
