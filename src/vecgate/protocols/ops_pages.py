"""The files of the pages: read once, served with a tag and a policy that lets them load from here only.

Belongs to ops.py alone; knows no engine. A request can name nothing but what was read, so there is no path to climb out of.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import PurePath

from vecgate.errors import NotFound
from vecgate.protocols import Answer, Ask

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
DOCS_POLICY = POLICY.replace("img-src 'self'", "img-src 'self' data:")
"""data: is for the icons in Swagger UI's style sheet."""
TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    "": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".html": "text/html; charset=utf-8",
}
"""By suffix: what a page may load, and the licences beside it."""

_web = files("vecgate") / "web"
FILES = {
    f"{folder}{entry.name}": entry.read_bytes()
    for folder, place in (("", _web), ("docs/", _web / "docs"))
    for entry in place.iterdir()
    if entry.is_file() and PurePath(entry.name).suffix in TYPES and not entry.name.startswith(".")
}
TAGS = {name: f'"{hashlib.sha256(content).hexdigest()[:16]}"' for name, content in FILES.items()}


async def index(ask: Ask) -> Answer:
    return _file(ask, "index.html")


async def asset(ask: Ask) -> Answer:
    return _asset(ask, "")


async def docs(ask: Ask) -> Answer:
    return _file(ask, "docs/index.html")


async def docs_asset(ask: Ask) -> Answer:
    return _asset(ask, "docs/")


def _asset(ask: Ask, folder: str) -> Answer:
    name = folder + ask.parameters["asset"]
    if name not in FILES or name.endswith(".html"):
        raise NotFound("There is no such file; the pages are / and /docs.")
    return _file(ask, name)


def _file(ask: Ask, name: str) -> Answer:
    """The file, or a 304 to who has it already; browsers ask each time, so that an update is whole at once."""
    kind, tag = TYPES[PurePath(name).suffix], TAGS[name]
    headers = {
        "content-security-policy": DOCS_POLICY if name.startswith("docs/") else POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
        "etag": tag,
    }
    same = tag in [one.strip().removeprefix("W/") for one in ask.known.split(",")]
    return Answer(b"" if same else FILES[name], status=304 if same else 200, media_type=kind, headers=headers)
