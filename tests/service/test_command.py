"""`vecgate service` for a user who is none, with programs in PATH that write down how they are called."""

from __future__ import annotations

import json
import plistlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.live import command as vecgate
from tests.live import environment, free_port
from vecgate import config, flags
from vecgate.errors import CommandError, ConfigError
from vecgate.service import command
from vecgate.service.job import Job, Supervisor, User
from vecgate.service.launchd import Launchd
from vecgate.service.systemd import Systemd

RECORDS = """#!/bin/sh
printf '%s' "${{0##*/}}" >>"{calls}"
printf ' %s' "$@" >>"{calls}"
echo >>"{calls}"
for word; do
    [ ! -e "{folder}/$word.out" ] || cat "{folder}/$word.out"
    [ ! -e "{folder}/$word.says" ] || {{ cat "{folder}/$word.says" >&2; exit "$(cat "{folder}/$word.status")"; }}
done
"""
PROGRAMS = ("systemctl", "loginctl", "journalctl", "launchctl", "tail")


@dataclass
class Desk:
    """One user at a machine of `system`; said, noted: what the commands told them."""

    folder: Path
    user: User
    said: list[str] = field(default_factory=list)
    noted: list[str] = field(default_factory=list)

    def run(self, *words: str) -> int:
        arguments = flags.parser().parse_args(["service", *words])
        return command.run(arguments, self.user, self.said.append, self.noted.append)

    @property
    def by(self) -> Supervisor:
        return command.supervisor(self.user)

    def calls(self) -> list[str]:
        """What was called since the last time."""
        found = self.folder / "calls"
        lines = found.read_text().splitlines() if found.exists() else []
        found.unlink(missing_ok=True)
        return lines

    def refuses(self, word: str, said: str, status: int = 1) -> None:
        """From now on a program with this argument fails so."""
        (self.folder / f"{word}.says").write_text(said)
        (self.folder / f"{word}.status").write_text(str(status))

    def answers(self, word: str, text: str) -> None:
        (self.folder / f"{word}.out").write_text(text)


@pytest.fixture
def desk_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Desk]:
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in PROGRAMS:
        (folder / name).write_text(RECORDS.format(calls=folder / "calls", folder=folder))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr("vecgate.service.systemd.RUNS", tmp_path)
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    monkeypatch.setattr(command, "require_one", lambda backend: None)

    def desk(system: str) -> Desk:
        return Desk(folder, User(system, 501, tmp_path / "home of ann", {}))

    return desk


@pytest.fixture(params=["Linux", "Darwin"])
def desk(desk_of: Callable[[str], Desk], request: pytest.FixtureRequest) -> Desk:
    return desk_of(request.param)


@pytest.fixture
def linux(desk_of: Callable[[str], Desk]) -> Desk:
    return desk_of("Linux")


@pytest.fixture
def mac(desk_of: Callable[[str], Desk]) -> Desk:
    return desk_of("Darwin")


@pytest.fixture
def port() -> str:
    return str(free_port())


# install


def test_a_dry_run_prints_the_file_alone_and_changes_nothing(desk: Desk, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert desk.run("install", "--dry-run", "--port", "9001") == 0
    (printed,) = desk.said
    assert desk.by.flags(printed) == ("--port=9001",)
    assert str(desk.by.path) in desk.noted[0]
    assert (desk.calls(), sorted(tmp_path.rglob("*"))) == ([], before)


def test_a_dry_run_needs_no_supervisor_and_no_user_but_root(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    desk.user = replace(desk.user, uid=0)
    assert desk.run("install", "--dry-run") == 0


def test_install_on_linux(linux: Desk, port: str) -> None:
    assert linux.run("install", "--port", port) == 0
    assert linux.calls() == [
        "systemctl --user daemon-reload",
        "systemctl --user enable --now vecgate.service",
        "loginctl show-user ann --property=Linger",
    ]
    home = linux.user.home
    assert linux.by.path == home / ".config" / "systemd" / "user" / "vecgate.service"
    assert (home / ".config" / "vecgate" / "env").stat().st_mode & 0o777 == 0o600
    assert f"http://127.0.0.1:{port}" in linux.said[0]
    assert "`loginctl enable-linger ann`" in linux.said[1]
    assert "systemctl --user restart vecgate.service" in linux.said[2]


def test_install_on_a_mac(mac: Desk, port: str) -> None:
    assert mac.run("install", "--port", port) == 0
    file = mac.user.home / "Library" / "LaunchAgents" / "local.vecgate.plist"
    assert mac.calls() == ["launchctl enable gui/501/local.vecgate", f"launchctl bootstrap gui/501 {file}"]
    told = plistlib.loads(file.read_bytes())
    assert told["WorkingDirectory"] == str(mac.user.home / ".config" / "vecgate")
    assert Path(told["StandardErrorPath"]).parent.is_dir()
    assert "launchctl kickstart -k gui/501/local.vecgate" in mac.said[2]


def test_who_lingers_is_told_that_it_starts_with_the_machine(linux: Desk, port: str) -> None:
    linux.answers("show-user", "Linger=yes\n")
    linux.run("install", "--port", port)
    assert linux.said[1] == "It starts with the machine."


def test_variables_that_are_there_stay_and_count(desk: Desk, port: str) -> None:
    variables = desk.user.folder / "env"
    variables.parent.mkdir(parents=True)
    variables.write_text(f"VECGATE_PORT={port}\nVECGATE_DRAIN_TIMEOUT=600\nOMP_NUM_THREADS=2\n")
    desk.user = replace(desk.user, environ={"PORT": "9009", "VECGATE_PORT": "9009", "MODEL_NAME": "minilm"})
    assert desk.run("install") == 0
    assert variables.read_text().startswith("VECGATE_PORT=")
    assert f"http://127.0.0.1:{port}" in desk.said[0]
    assert "610" in desk.by.path.read_text()
    assert desk.said[3].endswith(f"chmod 600 '{variables}'")
    assert "this shell's MODEL_NAME, PORT:" in desk.said[4]


def test_paths_hold_in_any_folder(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("own model", "minilm"):
        (tmp_path / name).mkdir()
    (tmp_path / "keys").write_text("alice " + "k" * 20)
    (tmp_path / "more.toml").write_text("port = 9003\n")
    words = ("--model", "own model", "--model", "minilm", "--api-key-file", "keys", "--config", "more.toml")
    desk.run("install", "--dry-run", *words, "--offline", "--no-allow-pickle")
    assert desk.by.flags(desk.said[0]) == (
        f"--config={tmp_path}/more.toml",
        f"--model={tmp_path}/own model",
        "--model=minilm",
        "--no-allow-pickle",
        "--offline",
        f"--api-key-file={tmp_path}/keys",
    )


REFUSED: tuple[tuple[str, tuple[str, ...], type[Exception]], ...] = (
    ("--port is 'abc'; allowed", ("--port", "abc"), ConfigError),
    ("--api-key would stand where other users can see it", ("--api-key", "k" * 20), ConfigError),
    ("more than one line", ("--prompt", "query=a\nb"), ConfigError),
    ("PORT is 0", ("--port", "0"), ConfigError),
)


@pytest.mark.parametrize(("said", "words", "error"), REFUSED)
def test_what_would_not_serve_is_refused_before_anything_is_written(
    desk: Desk, said: str, words: tuple[str, ...], error: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        desk.run("install", *words)
    assert (desk.calls(), desk.user.home.exists()) == ([], False)


def test_a_port_in_use_is_refused(desk: Desk) -> None:
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other,
        pytest.raises(ConfigError, match="is in use"),
    ):
        desk.run("install", "--port", str(other.server_address[1]))
    assert desk.calls() == []


def test_a_light_install_is_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from vecgate import backends

    monkeypatch.setattr(command, "require_one", backends.require_one)
    monkeypatch.setitem(backends.NEEDS, "torch", (("no_such_package",), "pip install 'vecgate[torch]'"))
    with pytest.raises(ConfigError, match=r"pip install 'vecgate\[torch\]'"):
        desk.run("install", "--backend", "torch")


def test_a_second_install_is_refused(desk: Desk, port: str) -> None:
    desk.run("install", "--port", port)
    desk.calls()
    with pytest.raises(CommandError, match=r"is installed already .* `vecgate service uninstall` first"):
        desk.run("install")
    assert desk.calls() == []


def test_root_is_refused(desk: Desk) -> None:
    desk.user = replace(desk.user, uid=0)
    with pytest.raises(CommandError, match="never root's"):
        desk.run("install")


def test_a_machine_without_systemd_is_refused(linux: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vecgate.service.systemd.RUNS", tmp_path / "nowhere")
    with pytest.raises(CommandError, match="systemd does not run here"):
        linux.run("install")


def test_another_system_is_refused(desk_of: Callable[[str], Desk]) -> None:
    with pytest.raises(CommandError, match="knows launchd and systemd, and FreeBSD has neither"):
        desk_of("FreeBSD").run("install")


@pytest.mark.parametrize(
    "prefix", ["/c/uv/archive-v0/x1", "/c/uv/environments-v2/x1", "/h/.cache/pipx/8a", "/s/pipx/.cache/8a"]
)
def test_an_environment_that_will_be_emptied_is_refused(
    desk: Desk, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", prefix)
    with pytest.raises(CommandError, match="`uv tool install vecgate` or `pipx install vecgate`"):
        desk.run("install")


@pytest.mark.parametrize(
    ("system", "word", "told", "hint"),
    [
        ("Linux", "enable", "Failed to connect to bus: No medium found\n", "loginctl enable-linger ann"),
        ("Linux", "daemon-reload", "Access denied\n", "failed: Access denied$"),
        ("Darwin", "bootstrap", "Bootstrap failed: 125: Domain does not support specified action\n", "logged in at this Mac"),
    ],
)  # fmt: skip
def test_what_the_supervisor_refuses_is_a_sentence_and_leaves_no_file(
    desk_of: Callable[[str], Desk], system: str, word: str, told: str, hint: str, port: str
) -> None:
    desk = desk_of(system)
    desk.refuses(word, told)
    with pytest.raises(CommandError, match=hint) as caught:
        desk.run("install", "--port", port)
    assert told.strip() in str(caught.value)
    assert not desk.by.path.exists()


# what comes after


@pytest.mark.parametrize("action", ["status", "logs", "uninstall"])
def test_without_an_install_the_others_say_so(desk: Desk, action: str) -> None:
    with pytest.raises(CommandError, match=r"is not installed .*: `vecgate service install`"):
        desk.run(action)


def test_uninstall_leaves_the_variables(desk: Desk, port: str) -> None:
    desk.run("install", "--port", port)
    desk.calls()
    assert desk.run("uninstall") == 0
    assert not desk.by.path.exists()
    assert (desk.user.folder / "env").exists()
    assert str(desk.user.folder) in desk.said[-1]
    with pytest.raises(CommandError, match="not installed"):
        desk.run("uninstall")


def test_uninstall_on_linux_stops_before_it_removes(linux: Desk, port: str) -> None:
    linux.run("install", "--port", port)
    linux.calls()
    linux.refuses("reset-failed", "Unit vecgate.service not loaded.\n")
    linux.run("uninstall")
    assert linux.calls() == [
        "systemctl --user disable --now vecgate.service",
        "systemctl --user daemon-reload",
        "systemctl --user reset-failed vecgate.service",
    ]


@pytest.mark.parametrize("status", [0, 3, 36, 113])
def test_uninstall_on_a_mac_takes_a_job_that_is_gone_or_still_leaving(mac: Desk, port: str, status: int) -> None:
    mac.run("install", "--port", port)
    mac.calls()
    mac.refuses("bootout", "Boot-out failed\n", status)
    mac.run("uninstall")
    assert mac.calls() == ["launchctl bootout gui/501/local.vecgate"]
    assert not mac.by.path.exists()


def test_a_job_that_would_not_end_stays_installed(desk: Desk, port: str) -> None:
    desk.run("install", "--port", port)
    for word in ("disable", "bootout"):
        desk.refuses(word, "Operation not permitted\n", 1)
    with pytest.raises(CommandError, match="Operation not permitted"):
        desk.run("uninstall")
    assert desk.by.path.exists()


@pytest.fixture
def health() -> Iterator[tuple[dict[str, str], int]]:
    """What a server on loopback says at /health/ready, to be changed, and its port."""
    answer = {"status": "ready"}

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps(answer if self.path == "/health/ready" else {}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield answer, server.server_address[1]
        server.shutdown()


UP: Mapping[str, tuple[str, str]] = {
    "Linux": ("show", "ActiveState=active\nSubState=running\nMainPID=123\nNRestarts=2\nExecMainStatus=0\n"),
    "Darwin": ("print", "gui/501/local.vecgate = {\n\tactive count = 1\n\tstate = running\n\truns = 3\n\tpid = 123\n\tjob state = running\n}\n"),
}  # fmt: skip
DOWN: Mapping[str, tuple[str, str]] = {
    "Linux": ("show", "ActiveState=failed\nSubState=failed\nMainPID=0\nNRestarts=0\nExecMainStatus=2\n"),
    "Darwin": ("print", "gui/501/local.vecgate = {\n\tstate = not running\n\truns = 1\n\tlast exit code = 2\n}\n"),
}


def installed(desk: Desk, port: int) -> None:
    """As if it had been installed before the port was taken."""
    desk.run("install", "--port", str(free_port()))
    path = desk.by.path
    old = desk.by.flags(path.read_text())[0]
    path.write_text(path.read_text().replace(old, f"--port={port}"))
    desk.said.clear()


def test_status_of_one_that_is_ready(desk: Desk, health: tuple[dict[str, str], int]) -> None:
    installed(desk, health[1])
    desk.answers(*UP[desk.user.system])
    assert desk.run("status") == 0
    assert desk.said[0].endswith("process 123, restarts: 2")
    assert desk.said[1] == f"address   http://127.0.0.1:{health[1]}: ready"


def test_status_of_one_that_loads(desk: Desk, health: tuple[dict[str, str], int]) -> None:
    installed(desk, health[1])
    health[0]["status"] = "loading"
    desk.answers(*UP[desk.user.system])
    assert desk.run("status") == 1
    assert desk.said[1].endswith(": loading")


def test_status_of_one_that_failed(desk: Desk, health: tuple[dict[str, str], int]) -> None:
    """Somebody else's server at its address does not make it run."""
    installed(desk, health[1])
    desk.answers(*DOWN[desk.user.system])
    assert desk.run("status") == 1
    assert desk.said[0].endswith("its last exit status was 2")


def test_status_names_variables_that_are_wrong(desk: Desk) -> None:
    installed(desk, free_port())
    (desk.user.folder / "env").write_text("BACKEND=nonsense\n")
    desk.answers(*DOWN[desk.user.system])
    assert desk.run("status") == 1
    assert desk.said[1].startswith("settings  BACKEND in the environment is 'nonsense'; allowed")


@pytest.mark.parametrize(("content", "said"), [({}, "something else answers"), (None, "nothing answers")])
def test_status_where_another_program_or_none_listens(
    desk: Desk, health: tuple[dict[str, str], int], content: dict[str, str] | None, said: str
) -> None:
    health[0].clear()
    installed(desk, health[1] if content is not None else free_port())
    desk.answers(*UP[desk.user.system])
    assert desk.run("status") == 1
    assert desk.said[1].endswith(f": {said}")


def test_status_of_an_agent_that_is_not_loaded(mac: Desk) -> None:
    installed(mac, free_port())
    mac.refuses("print", 'Could not find service "local.vecgate" in domain for user gui: 501\n', 113)
    assert mac.run("status") == 1
    assert mac.said[0] == "service   not loaded: it is taken in when you log in"


def test_status_without_a_bus_is_a_sentence(linux: Desk) -> None:
    installed(linux, free_port())
    linux.refuses("show", "Failed to connect to bus: No medium found\n")
    with pytest.raises(CommandError, match="enable-linger"):
        linux.run("status")


def test_the_journal_is_shown(linux: Desk, port: str, capfd: pytest.CaptureFixture[str]) -> None:
    linux.run("install", "--port", port)
    linux.calls()
    linux.answers("--output=cat", "a line\n")
    assert linux.run("logs", "-n", "5", "--follow") == 0
    assert linux.calls() == ["journalctl --user-unit=vecgate.service --output=cat --lines=5 --follow"]
    assert capfd.readouterr().out == "a line\n"


def test_the_log_of_a_mac_is_shown(mac: Desk, port: str) -> None:
    mac.run("install", "--port", port)
    mac.calls()
    with pytest.raises(CommandError, match=r"There is no .*vecgate\.log yet"):
        mac.run("logs")
    log = Launchd(mac.user).log
    log.touch()
    assert mac.run("logs") == 0
    assert mac.calls() == [f"tail -n 100 {log}"]


# what the supervisor starts


@pytest.mark.parametrize("log", [(), ("log",)])
def test_run_becomes_the_server_with_the_files_variables(tmp_path: Path, log: tuple[str, ...]) -> None:
    (tmp_path / "env").write_text("# mine\nPORT='nine thousand'\n")
    words = vecgate("service", "run", "env", *log, "--log-format=console")
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("vecgate: PORT in the environment is 'nine thousand'; allowed")


TOLD = """
import json, os, sys
print(json.dumps([os.getpid(), sys.argv[1:], {name: os.environ.get(name) for name in ("A", "B", "C", "VECGATE_API_KEY")}]))
"""


def test_the_server_is_the_same_process_and_gets_what_install_and_status_read(tmp_path: Path) -> None:
    """Of values that systemd reads in its own way, or not at all; by a program that takes the server's place."""
    (tmp_path / "other" / "vecgate").mkdir(parents=True)
    (tmp_path / "other" / "vecgate" / "__init__.py").touch()  # or an installed vecgate goes before it
    (tmp_path / "other" / "vecgate" / "__main__.py").write_text(TOLD)
    variables = tmp_path / "env"
    variables.write_text(
        f"PYTHONPATH={tmp_path}/other\nA=x # y\nB=c:\\d\\\nC='it is \"so\"'\n export VECGATE_API_KEY=sesame\n"
    )
    (tmp_path / "cwd").mkdir()
    job = Job(sys.executable, ("--port=9001",), tmp_path / "cwd", variables, 90)
    with subprocess.Popen(job.command(), cwd=job.folder, env=environment(), stdout=subprocess.PIPE) as started:
        number, words, found = json.loads(started.communicate()[0])
    assert (number, words) == (started.pid, ["serve", "--port=9001"])
    assert found == {"A": "x", "B": "c:\\d\\", "C": 'it is "so"', "VECGATE_API_KEY": "sesame"}
    assert found.items() <= config.environment(variables).items()


@pytest.mark.parametrize("log", [(), ("log",)])
def test_run_without_the_file_does_not_open_the_server(tmp_path: Path, log: tuple[str, ...]) -> None:
    words = vecgate("service", "run", "env", *log)
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert (done.returncode, "no file of variables" in done.stderr) == (2, True)


@pytest.mark.parametrize(("most", "kept"), [(10**6, False), (10, True)])
def test_a_log_that_has_grown_is_begun_anew(tmp_path: Path, most: int, kept: bool) -> None:
    log = tmp_path / "it.log"
    log.write_text("an old line\n")
    script = (
        "import sys; from pathlib import Path; from vecgate.service import command; "
        f"command.MOST_LOG_BYTES = {most}; command._begin_anew(Path({str(log)!r})); print('new', file=sys.stderr)"
    )
    with log.open("a") as stream:
        subprocess.run([sys.executable, "-c", script], env=environment(), stderr=stream, check=True)
    assert (tmp_path / "it.log.1").exists() == kept
    assert log.read_text() == ("new\n" if kept else "an old line\nnew\n")


def test_a_terminal_is_not_taken_for_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "MOST_LOG_BYTES", 1)
    log = tmp_path / "it.log"
    log.write_text("an old line\n")
    command._begin_anew(log)
    assert not (tmp_path / "it.log.1").exists()


def test_each_system_has_its_supervisor() -> None:
    assert isinstance(command.supervisor(User("Darwin", 1, Path("/h"), {})), Launchd)
    assert isinstance(command.supervisor(User("Linux", 1, Path("/h"), {})), Systemd)
