from pathlib import Path

from tests import start


def test_a_start_is_timed_to_its_first_answer_and_its_first_row(tmp_path: Path) -> None:
    health, first = start.started(tmp_path, "--model", "minilm", module="tests.gateway", BACKEND="fake")
    assert 0 < health < first
