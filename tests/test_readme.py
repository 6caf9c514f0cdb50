"""The README says what the code says."""

from pathlib import Path

from vecgate.settings import table

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- settings:begin -->", "<!-- settings:end -->"


def test_settings_table() -> None:
    text = README.read_text(encoding="utf-8")
    assert (text.count(BEGIN), text.count(END)) == (1, 1)
    between = text.partition(BEGIN)[2].partition(END)[0].strip()
    assert between == table(), 'paste what `python -c "from vecgate.settings import table; print(table())"` prints'
