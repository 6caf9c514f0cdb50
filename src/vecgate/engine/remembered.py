"""What the next start need not find out again: small JSON files in the cache's folder.

Knows files; where nothing can be kept, nothing is, and the next start finds it out.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def read(cache: Path | None, name: str) -> dict[str, Any]:
    """What the file holds; nothing where it can't be read."""
    try:
        known = json.loads((cache / name).read_bytes()) if cache else {}
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def write(cache: Path | None, name: str, known: dict[str, Any]) -> None:
    """The whole file anew, or in silence none of it."""
    if cache is None:
        return
    fresh = cache / f"{name}.{os.getpid()}.new"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(known))
        fresh.replace(cache / name)
    except OSError:
        return
