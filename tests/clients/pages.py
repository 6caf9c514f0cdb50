"""The Python that a page of docs/ shows, run as it stands against a live server; in whatever environment has its clients.

    python pages.py BASE_URL FILE... > {"FILE": "what it printed", ...}

A page's blocks are one program. Imports nothing of vecgate: what was printed is judged by the test that runs it.
"""

from __future__ import annotations

import io
import json
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

SHOWN = "http://127.0.0.1:9000"


def run(file: str, base: str) -> str:
    """What the page or the script printed; BASE_URL takes the place of the address it shows."""
    text = Path(file).read_text("utf-8")
    if file.endswith(".md"):
        text = "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    code = compile(text.replace(SHOWN, base), file, "exec", dont_inherit=True)
    with redirect_stdout(io.StringIO()) as printed, patch.object(sys, "argv", [file, base]):
        exec(code, {"__name__": "__main__"})
    return printed.getvalue()


if __name__ == "__main__":
    print(json.dumps({file: run(file, sys.argv[1]) for file in sys.argv[2:]}))
