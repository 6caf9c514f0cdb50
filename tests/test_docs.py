"""docs/ says what the code says, and names nothing that the code does not have."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import msgspec
import pytest

from docs import reference
from vecgate import flags
from vecgate.access import canonical
from vecgate.metrics import Metrics
from vecgate.protocols import base_finder, native_bodies, routes
from vecgate.settings import CONFIG, SETTINGS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WELL_KNOWN = {"connection", "content-length", "content-type"}
"""Headers of every HTTP answer, which need no explanation."""
OTHERS_FLAGS = {
    "--no-deps",  # pip
    "--peers",  # tests/peers
    "--scenarios",
    "--address",  # ray start
    "--resources",
    "--goal-ms",  # docs/machines.py
    "--a-day",
    "--regions",
    "--parts",  # tests/scale
    "--times",
    "--write",
    "--id",  # n8n
    "--input",
    "--unix-socket",  # curl
    "--user",  # systemctl
    "--from",  # uvx, pipx
    "--spec",
}
"""Of pip, curl and other programs that the pages name."""
BASES = {"/v1", "/v1/", "/web/"}
"""What paths begin with, named as such."""
GONE = {"MODEL_PATH", "MAX_SEQUENCE_LENGTH", "/v1/health"}
"""What docs/migration.md says is no setting and no route any more."""
OTHERS_VARIABLES = re.compile(r"OTEL_|G?OMP_|OPENBLAS_|OLLAMA_|OPENAI_|NODE_|RAY_|SSL_CERT_FILE|HF_")
"""Of other programs, or not of the environment."""


def names(pages: list[Path] = PAGES) -> Iterator[tuple[str, str]]:
    for page in pages:
        yield page.relative_to(ROOT).as_posix(), page.read_text("utf-8")


@cache
def options() -> frozenset[str]:
    parsers = (flags.parser(), *(parser for _, parser in reference.commands()))
    return frozenset(option for one in parsers for action in one._actions for option in action.option_strings)


@cache
def headers_in_the_code() -> frozenset[str]:
    """What stands where the code makes a header: a key, the first of a pair, a place that is set."""
    folder = ROOT / "src" / "vecgate"
    files = (*(folder / "protocols").glob("*.py"), *(folder / f"{name}.py" for name in ("access", "guard", "rates")))
    found = {name for file in files for node in ast.walk(ast.parse(file.read_text("utf-8"))) for name in made(node)}
    return frozenset(name for name in found if re.fullmatch(r"[a-z]+(-[a-z]+)+|allow|etag|vary", name))


def made(node: ast.AST) -> Iterator[str]:
    places: Sequence[ast.expr | None] = ()
    if isinstance(node, ast.Dict):
        places = node.keys
    elif isinstance(node, ast.Tuple) and len(node.elts) == 2:
        places = node.elts[:1]
    elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
        places = [node.slice]
    for place in places:
        if isinstance(place, ast.Constant) and isinstance(place.value, str | bytes):
            yield place.value if isinstance(place.value, str) else place.value.decode("latin-1")


def test_models_md_is_what_the_tables_say() -> None:
    pytest.importorskip("mlx.core", reason="sizes are counted on MLX's architectures", exc_type=ImportError)
    from docs import models

    written = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert written == models.document(), "`python -m docs.models > docs/models.md` writes it anew"


def test_reference_md_has_every_route_and_flag() -> None:
    written = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert written == reference.document(), "`python -m docs.reference > docs/reference.md` writes it anew"


def test_reference_md_has_every_header() -> None:
    assert headers_in_the_code() >= {"x-request-id", "server-timing", "x-ratelimit-limit-requests", "etag"}
    assert headers_in_the_code() - WELL_KNOWN == reference.HEADERS.keys(), "HEADERS in docs/reference.py"


def test_every_header_named_is_in_the_code() -> None:
    known = reference.HEADERS.keys() | reference.SENT.keys()
    assert [
        (page, one)
        for page, text in names()
        for one in re.findall(r"\bx-[a-z]+(?:-[a-z]+)+\b", text)
        if one not in known
    ] == []


def test_every_flag_named_is_some_command_s() -> None:
    found = {(page, one) for page, text in names() for one in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)}
    assert sorted((page, one) for page, one in found if one not in options() | OTHERS_FLAGS) == []


def test_every_command_named_parses() -> None:
    lines = [
        (page, line)
        for page, text in names()
        for language, block in blocks(text)
        for line in block.replace("\\\n", " ").splitlines()
        if language in ("", "sh", "bash") and re.match(r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?vecgate ", line)
    ]
    assert len(lines) > 20
    for page, line in lines:
        typed = shlex.split(line[line.index("vecgate ") :], comments=True)
        parsed, unknown = flags.parser().parse_known_args(typed[1 : typed.index(">") if ">" in typed else None])
        assert flags.taken_in(parsed, unknown) == [], (page, line)


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_every_setting_named_exists() -> None:
    plain = {setting.name.removeprefix("VECGATE_") for setting in SETTINGS}
    known = plain | {setting.name for setting in SETTINGS} | {f"VECGATE_{name}" for name in plain} | {CONFIG}
    said = {(page, one) for page, text in names() for one in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", text)}
    assert (
        sorted((page, one) for page, one in said if one not in known | GONE and not OTHERS_VARIABLES.match(one)) == []
    )


def test_every_metric_named_exists() -> None:
    known = {family.name for family in Metrics("1").registry.collect()}
    said = {(page, one) for page, text in names() for one in re.findall(r"\bvecgate_[a-z_]+", text)}
    found = {(page, re.sub(r"_(?:total|bucket|sum|count)$", "", one)) for page, one in said}
    assert sorted((page, one) for page, one in found if one not in known) == []


def test_every_path_named_is_a_route() -> None:
    found = base_finder(routes())
    templates = {reference.plain(path) for route in routes() for path in route.paths}
    pattern = r"(?:`(?:(?:GET|POST) )?|127\.0\.0\.1:9000)(/[\w./{}-]*)"
    said = {(page, one) for page, text in names() for one in re.findall(pattern, text)}
    asked = {(page, one): canonical(one) for page, one in said if one not in BASES | GONE}
    assert [where for where, path in asked.items() if path not in templates and found(f"/x{path}") != path] == []


def test_migration_md_has_every_field_of_the_native_routes() -> None:
    text = (ROOT / "docs" / "migration.md").read_text("utf-8").partition("## Fields\n")[2].partition("\n## ")[0]
    cells = [line.split(" | ")[0] for line in text.splitlines()[3:]]
    said = {name for cell in cells for name in re.findall(r"`([a-z_]+\.|results\[\]\.)?([a-z_]+)`", cell)}
    asked = fields("", native_bodies.EmbedBody) | fields("", native_bodies.RerankBody)
    usage = fields("usage.", native_bodies.EmbedUsage) | fields("usage.", native_bodies.RerankUsage)
    answered = fields("", native_bodies.EmbedAnswer) | fields("", native_bodies.RerankAnswer)
    known = asked | usage | answered | fields("results[].", native_bodies.Result)
    new = {("", name) for name in ("model", "space", "return_text", "usage", "results")}
    assert said == known - new


def fields(where: str, struct: type[msgspec.Struct]) -> set[tuple[str, str]]:
    return {(where, name) for name in struct.__struct_fields__}


def test_every_link_leads_somewhere() -> None:
    assert [
        (page, to) for page, text in names() for to in re.findall(r"\]\(([^)\s]+)\)", text) if broken(page, to)
    ] == []


def broken(page: str, to: str) -> bool:
    if re.match(r"https?://", to):
        return False
    path, _, anchor = to.partition("#")
    file = (ROOT / page).parent / path if path else ROOT / page
    return not file.exists() or (bool(anchor) and anchor not in anchors(file))


def anchors(file: Path) -> set[str]:
    """As forges make them of headings: lower case, dashes for spaces, no other punctuation."""
    headings = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_in_a_page_compiles(page: Path) -> None:
    for language, block in blocks(page.read_text("utf-8")):
        compile(block if language == "python" else "", str(page), "exec", dont_inherit=True)


def test_every_page_is_linked_from_the_index_or_the_readme() -> None:
    folder = ROOT / "docs"
    index = links(folder / "README.md") | links(ROOT / "README.md")
    assert {*PAGES[1:], *(folder / "examples").glob("*.py")} - {folder / "README.md"} - index == set()


def links(page: Path) -> set[Path]:
    found = re.findall(r"\]\(([\w./-]+)", page.read_text("utf-8"))
    return {page.parent / to for to in found}
