"""docs/operations.md's table of symptoms quotes messages that vecgate really gives."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_every_message_in_the_table_of_symptoms_is_in_the_code() -> None:
    table = (ROOT / "docs" / "operations.md").read_text("utf-8").partition("\n## By symptom\n")[2].partition("\n## ")[0]
    cells = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")]
    quoted = [part for cell in cells for one in re.findall(r"\*([^*]+)\*", cell) for part in one.split(" ... ")]
    sources = (*(ROOT / "src" / "vecgate").rglob("*.py"), ROOT / "src" / "vecgate" / "web" / "index.html")
    code = "\n".join(path.read_text("utf-8") for path in sources)
    assert len(quoted) > 20
    assert [one for one in quoted if one not in code] == []
