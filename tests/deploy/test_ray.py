"""The template for Ray Serve: its settings are settings, and its names are those of ray_serve.py; tests/ray runs it."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from vecgate import config, deploy
from vecgate.settings import SETTINGS

TEXT = deploy.read("ray")
(APPLICATION,) = yaml.safe_load(TEXT)["applications"]
CODE = (Path(config.__file__).parent / "ray_serve.py").read_text("utf-8")


def test_its_args_are_settings_also_those_that_are_left_out(tmp_path: Path) -> None:
    assert config.load(APPLICATION["args"], {}, tmp_path).models == ("minilm",)
    left_out = re.findall(r"^      # (\w+): ", TEXT, re.MULTILINE)
    assert len(left_out) == 3
    assert set(left_out) <= {setting.key for setting in SETTINGS}


def test_its_names_are_those_of_the_code() -> None:
    module, _, name = APPLICATION["import_path"].partition(":")
    assert module == "vecgate.ray_serve"
    assert f"def {name}(args" in CODE
    for deployment in APPLICATION["deployments"]:
        assert f'name="{deployment["name"]}"' in CODE


def test_its_limits_are_those_of_the_code_and_gateways_are_two() -> None:
    gateway, engine = APPLICATION["deployments"]
    limits = engine["max_ongoing_requests"], engine["max_queued_requests"]
    assert f"ONGOING, QUEUED = {limits[0]}, {limits[1]}" in CODE
    assert engine["autoscaling_config"]["target_ongoing_requests"] < 4
    assert gateway["num_replicas"] >= 2
    assert gateway["max_ongoing_requests"] == config.load({}, {}, Path("/dev/null")).max_in_flight
