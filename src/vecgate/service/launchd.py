"""The server as an agent of the user's own launchd: the property list, and what launchctl is told and asked."""

from __future__ import annotations

import plistlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vecgate.errors import CommandError
from vecgate.service.job import Job, State, User, asked, flags_in

LABEL = "local.vecgate"
IS_LEAVING, NOT_LOADED = 36, (3, 113)
"""launchctl's exit statuses: it is still ending; it knows no such job."""


@dataclass(frozen=True, slots=True)
class Launchd:
    """One user's launchd; see Supervisor."""

    user: User

    @property
    def path(self) -> Path:
        return self.user.home / "Library" / "LaunchAgents" / f"{LABEL}.plist"

    @property
    def log(self) -> Path:
        return self.user.home / "Library" / "Logs" / "vecgate" / "vecgate.log"

    def written(self, job: Job) -> str:
        found = {
            "Label": LABEL,
            "ProgramArguments": [*job.command(self.log)],
            "WorkingDirectory": str(job.folder),
            "ProcessType": "Interactive",  # or App Nap and its like give it less of the processor
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 10,
            "ExitTimeOut": job.stop_s,
            "StandardOutPath": str(self.log),
            "StandardErrorPath": str(self.log),
            "Umask": 0o077,
        }
        return plistlib.dumps(found, sort_keys=False).decode("utf-8")

    def flags(self, text: str) -> tuple[str, ...]:
        return flags_in(plistlib.loads(text.encode()).get("ProgramArguments", []))

    def check(self) -> None:
        if shutil.which("launchctl") is None:
            raise CommandError("There is no launchctl in PATH, which vecgate service needs; --dry-run shows the agent.")

    def starting(self) -> list[list[str]]:
        """`enable` first: one that was disabled by hand would not be taken in."""
        return [["launchctl", "enable", self._job], ["launchctl", "bootstrap", self._domain, str(self.path)]]

    def ending(self) -> list[list[str]]:
        return [["launchctl", "bootout", self._job]]

    def forgetting(self) -> list[list[str]]:
        return []

    def restarting(self) -> list[str]:
        return ["launchctl", "kickstart", "-k", self._job]

    def refused(self, command: Sequence[str], status: int, said: str) -> str | None:
        if "bootout" in command and status in (IS_LEAVING, *NOT_LOADED):
            return None
        if "bootstrap" in command:
            return f"{said}: launchd has a place for it once you are logged in at this Mac's screen, not by SSH alone."
        return said

    def state(self) -> State:
        told = asked(["launchctl", "print", self._job])
        if told.returncode:
            return State(False, "not loaded: it is taken in when you log in")
        found = dict(re.findall(r"^\t(state|pid|runs|last exit code) = (.+)$", told.stdout, re.MULTILINE))
        what = found.get("state", "unknown")
        if "pid" in found:
            what += f", process {found['pid']}"
        elif found.get("last exit code", "0")[:1].isdigit():
            what += f", its last exit status was {found.get('last exit code', '0')}"
        restarts = int(found.get("runs", "1")) - 1 if found.get("runs", "1").isdigit() else 0
        return State("pid" in found, what + (f", restarts: {restarts}" if restarts > 0 else ""))

    def reading(self, lines: int, *, follow: bool) -> list[str]:
        return ["tail", "-n", str(lines), *["-F"] * follow, str(self.log)]

    def when(self) -> str:
        return "It starts when you log in."

    @property
    def _domain(self) -> str:
        return f"gui/{self.user.uid}"

    @property
    def _job(self) -> str:
        return f"{self._domain}/{LABEL}"
