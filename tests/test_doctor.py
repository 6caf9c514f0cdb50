"""The doctor on machines that are made up: what it finds, what it advises, and when it says that serving would fail."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests import small
from tests.live import free_port
from tests.test_house import loaded_by
from vecgate import cli, doctor
from vecgate.doctor import Finding, Machine
from vecgate.settings import Settings

NO_CARD: dict[str, Any] = {"cuda": [], "cuda_bytes": [], "cuda_built": None, "mps": False, "mps_built": False}
CARD = NO_CARD | {"cuda": ["A card"], "cuda_bytes": [2**30], "cuda_built": "12.8"}
METAL = {"metal": True, "name": "Apple M4", "bytes": 2**34}
MAC = ("Darwin", "arm64")


class Answering(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_given: Any) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    """The address of one that answers."""
    server = HTTPServer(("127.0.0.1", free_port()), Answering)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    model = small.folder(tmp_path / "small")
    return Settings(backend="fake", models=(str(model),), cache_dir=tmp_path / "cache", port=0)


def machine(hub: str = "", /, **changes: Any) -> Machine:
    """A Linux without MLX whose torch sees no card."""
    made = Machine(
        environ={"HF_ENDPOINT": hub} if hub else {"HF_HUB_OFFLINE": "1"},
        system=("Linux", "x86_64"),
        python=(3, 12, 1),
        installed=lambda name: name != "mlx",
        device=lambda name: NO_CARD,
        memory_bytes=lambda: 2**33,
        files=lambda: (1024, 2**20),
        free_bytes=lambda path: 2**40,
    )
    return replace(made, **changes)


def found(settings: Settings, machine: Machine, name: str) -> Finding:
    return next(one for one in doctor.examine(settings, machine) if one.name.startswith(name))


def test_a_machine_that_lacks_nothing_is_fine(settings: Settings, hub: str) -> None:
    findings = doctor.examine(settings, machine(hub))
    assert {one.level for one in findings} == {"fine"}
    assert doctor.healthy(findings)
    names = [one.name.partition(" ")[0] for one in findings]
    assert names == "python versions mlx cuda model memory hub cache open address access".split()


def test_every_finding_that_is_not_fine_has_a_remedy(settings: Settings) -> None:
    bare = machine(
        f"http://127.0.0.1:{free_port()}",
        python=(3, 10, 2),
        installed=lambda name: False,
        files=lambda: (256, 512),
        free_bytes=lambda path: 2**20,
        memory_bytes=lambda: 2**10,
    )
    asked = replace(settings, backend="torch", models=("org/absent", "./nowhere"), host="0.0.0.0")
    findings = doctor.examine(asked, bare)
    assert [one.name for one in findings if one.level != "fine" and not one.remedy] == []
    assert {one.name for one in findings if one.level == "bad"} == {"python", "torch", "model ./nowhere", "hub"}
    assert not doctor.healthy(findings)


@pytest.mark.parametrize(
    ("name", "level", "part", "changes"),
    [
        ("python", "bad", "3.11", {"python": (3, 10, 9)}),
        ("python", "note", "Rosetta", {"system": ("Darwin", "x86_64")}),
        ("mlx", "note", "pip install mlx", {"system": MAC}),
        ("mlx", "fine", "Metal on Apple M4, 16.0 GiB", {"system": MAC, "installed": lambda _: True, "device": lambda _: METAL | NO_CARD}),
        ("mlx", "note", "without Metal", {"system": MAC, "installed": lambda _: True, "device": lambda _: NO_CARD | {"metal": False}}),
        ("mps", "note", "macOS 14", {"system": MAC}),
        ("mps", "fine", "there", {"device": lambda _: NO_CARD | {"mps": True}}),
        ("cuda", "fine", "A card (1.0 GiB)", {"device": lambda _: CARD}),
        ("cuda", "note", "nvidia-smi", {"device": lambda _: NO_CARD | {"cuda_built": "12.8"}}),
        ("torch", "bad", "libcuda", {"device": lambda _: "importing torch fails: libcuda.so"}),
        ("open files", "note", "VECGATE_MAX_IN_FLIGHT", {"files": lambda: (256, 512)}),
        ("open files", "fine", "no limit", {"files": lambda: (256, -1)}),
        ("cache", "note", "vecgate models", {"free_bytes": lambda _: 2**20}),
    ],
)  # fmt: skip
def test_what_a_machine_has_and_lacks(settings: Settings, name: str, level: str, part: str, changes: Any) -> None:
    one = found(settings, machine(**changes), name)
    assert (one.level, part in f"{one.what} {one.remedy}") == (level, True)


def test_torch_is_asked_for_only_where_it_would_be_used(settings: Settings) -> None:
    without = machine(installed=lambda name: False)
    assert found(replace(settings, backend="torch"), without, "torch").level == "bad"
    assert found(replace(settings, backend="fake"), without, "torch").level == "note"


# models


def heavy(settings: Settings) -> Settings:
    """With a gibibyte of weights, by their header alone."""
    size = 2**30
    header = json.dumps({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    with (Path(settings.models[0]) / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    return settings


@pytest.mark.parametrize(("memory", "level"), [(2**30, "bad"), (2**31, "note"), (2**33, "fine")])
def test_weights_are_held_against_the_memory_that_may_be_used(settings: Settings, memory: int, level: str) -> None:
    one = found(heavy(settings), machine(memory_bytes=lambda: memory), "memory")
    assert (one.level, "1.0 GiB of weights" in one.what) == (level, True)


def test_a_card_has_its_own_memory_and_types(settings: Settings) -> None:
    torch = replace(heavy(settings), backend="torch")
    assert "the card" in found(torch, machine(device=lambda _: CARD), "memory").what
    assert found(torch, machine(device=lambda _: CARD), "memory").level == "bad"
    half = replace(torch, dtype="bfloat16")
    assert found(half, machine(device=lambda _: CARD), "memory").what.startswith("512 MiB")


def test_a_model_that_is_not_here_is_fetched_unless_that_is_forbidden(settings: Settings, hub: str) -> None:
    asked = replace(settings, models=("org/absent",))
    assert found(asked, machine(hub), "model").level == "note"
    assert found(replace(asked, offline=True), machine(hub), "model").level == "bad"
    assert "vecgate models fetch org/absent" in found(asked, machine(hub), "model").remedy


def test_a_model_that_can_not_be_served_is_bad(settings: Settings) -> None:
    (Path(settings.models[0]) / "config.json").unlink()
    one = found(settings, machine(), "model")
    assert (one.level, "config.json" in one.what) == ("bad", True)


# around it


def test_settings_that_contradict_each_other_are_bad_before_serve_says_so(settings: Settings, tmp_path: Path) -> None:
    name, other = settings.models[0], str(small.folder(tmp_path / "other" / "small"))
    assert not [one for one in doctor.examine(settings, machine()) if one.name == "settings"]
    wrong = {
        "both be served as 'small'": replace(settings, models=(name, other)),
        "allowed: models, or none alone": replace(settings, models=(name, "none")),
        "VECGATE_POOLING": replace(settings, models=(name, str(small.folder(tmp_path / "two"))), pooling="cls"),
        "'nobody', which is not served": replace(settings, aliases=(("a", "nobody", None),)),
    }
    for said, one in wrong.items():
        told = found(one, machine(), "settings")
        assert (told.level, said in told.what, bool(told.remedy)) == ("bad", True, True), told


def test_a_hub_out_of_reach_is_bad_only_where_something_must_be_fetched(settings: Settings) -> None:
    gone = machine(f"http://127.0.0.1:{free_port()}")
    assert found(settings, gone, "hub").level == "note"
    assert found(replace(settings, models=("org/absent",)), gone, "hub").level == "bad"
    assert "not asked" in found(replace(settings, offline=True), gone, "hub").what


def test_a_cache_that_can_not_be_written_is_bad(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    one = found(replace(settings, cache_dir=tmp_path / "file" / "cache"), machine(), "cache")
    assert (one.level, "VECGATE_CACHE_DIR" in one.remedy) == ("bad", True)


def test_a_port_that_is_taken_is_bad(settings: Settings, hub: str) -> None:
    port = int(hub.rpartition(":")[2])
    one = found(replace(settings, port=port), machine(), "address")
    assert (one.level, str(port) in one.what) == ("bad", True)


def test_a_socket_needs_its_folder(settings: Settings, tmp_path: Path) -> None:
    assert found(replace(settings, uds=tmp_path / "x.sock"), machine(), "address").level == "fine"
    assert found(replace(settings, uds=tmp_path / "no" / "x.sock"), machine(), "address").level == "bad"


def test_who_can_reach_it_without_a_key_is_told(settings: Settings) -> None:
    assert found(settings, machine(), "access").level == "fine"
    one = found(replace(settings, host="0.0.0.0"), machine(), "access")
    assert (one.level, "VECGATE_API_KEY" in one.remedy) == ("note", True)
    assert "secret" not in str(found(replace(settings, api_key=("secret",)), machine(), "access"))


# the command


def test_the_command_prints_one_screen_and_its_status(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(doctor, "_device", lambda name: NO_CARD | METAL)
    argv = ["doctor", "--backend", "fake", "--model", "./small", "--cache-dir", "cache", "--port", "0"]
    assert cli.main(argv) == 0
    assert "Nothing keeps vecgate from serving." in capsys.readouterr().out
    assert cli.main([*argv, "--model", "./nowhere"]) == 1
    assert "To be mended: model ./nowhere." in capsys.readouterr().out
    assert cli.main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["healthy"] is True


def test_a_device_is_asked_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ASK", {"a": "print('{\"metal\": true}')", "b": "raise ImportError('no driver')"})
    assert doctor._device("a") == {"metal": True}
    assert doctor._device("b") == "importing b fails: ImportError: no driver"
    assert loaded_by("import vecgate.doctor") & {"torch", "transformers", "mlx", "litestar"} == set()
