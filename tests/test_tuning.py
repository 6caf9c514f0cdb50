"""docs/tuning.md names every setting by its real default, and `make tuning` measures settings that there are."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests import tuning
from vecgate.settings import PREFIX, SETTINGS

PAGE = (Path(__file__).parent.parent / "docs" / "tuning.md").read_text("utf-8")
ROWS = re.findall(r"^\| `([A-Z_]+)`(?:, `[A-Z_]+`)* \| (.+?) \|", PAGE, re.MULTILINE)
BY_NAME = {setting.name: setting for setting in SETTINGS}


@pytest.mark.parametrize(("name", "default"), ROWS)
def test_a_default_is_the_settings(name: str, default: str) -> None:
    assert default.strip("`") == BY_NAME[name].shown


def test_what_bounds_a_batch_or_a_request_is_there() -> None:
    told = {name for name, _ in ROWS}
    bounds = re.compile(
        r"BATCH|IN_FLIGHT|TIMEOUT|MEMORY|CONCURRENCY|RATE|DTYPE|DEVICE|UNLOAD|VERIFY|LOG_LEVEL|TRUNCATE"
    )
    assert {name for name in BY_NAME if bounds.search(name)} <= told


@pytest.mark.parametrize("settings", [*(pair.settings for pair in tuning.PAIRS), *tuning.STARTS, *tuning.LIMITED])
def test_what_is_measured_is_a_setting_that_changes_something(settings: Mapping[str, str]) -> None:
    for name, value in settings.items():
        own = BY_NAME.get(name) or BY_NAME.get(name.removeprefix(PREFIX))
        assert own is None or own.kind.read(value) != own.default
        assert own is not None or name == "OMP_NUM_THREADS"
        assert f"`{name}`" in PAGE


def test_the_tables_have_their_place() -> None:
    assert (PAGE.count(tuning.BEGIN), PAGE.count(tuning.END)) == (1, 1)


def test_a_stage_is_read_from_its_header() -> None:
    assert tuning.stage("queue;dur=0.10, tokenise;dur=2.50, forward;dur=3.00", "tokenise") == 2.5
