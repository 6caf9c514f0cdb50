"""The README says what the code says."""

import re
from pathlib import Path

from vecgate.access import PUBLIC
from vecgate.settings import SETTINGS, table

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- settings:begin -->", "<!-- settings:end -->"


def test_settings_table() -> None:
    text = README.read_text(encoding="utf-8")
    assert (text.count(BEGIN), text.count(END)) == (1, 1)
    between = text.partition(BEGIN)[2].partition(END)[0].strip()
    assert between == table(), 'paste what `python -c "from vecgate.settings import table; print(table())"` prints'


def test_security_md_names_tests_settings_and_paths_that_exist() -> None:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    assert "(docs/security.md)" in README.read_text(encoding="utf-8")
    assert [path for path in re.findall(r"`(tests/[^`]+)`", text) if not (ROOT / path).is_file()] == []
    assert set(re.findall(r"VECGATE_[A-Z_]+", text)) <= {setting.name for setting in SETTINGS}
    (public,) = re.findall(r"every path and method is closed but (.*?), and an OPTIONS", text)
    assert {path.rstrip("/") or "/" for path in re.findall(r"`(/[a-z/.]*)`", public)} == PUBLIC
