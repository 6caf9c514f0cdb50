"""The log of the whole app: one line a request, and at DEBUG too never a text, a key or what an exception says of them."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests import small
from tests.test_app import EXAMPLES, PATHS
from tests.whole import Whole
from vecgate import logs
from vecgate.backends import fake
from vecgate.engine.local import LocalEngine

TEXT, KEY, GUESS = "xyzzy-said-in-confidence", "xyzzy-the-key", "xyzzy-a-guess"
MARK = "xyzzy"


def marked(value: Any) -> Any:
    """The value with the text in place of every string that is no name of a model or of a choice."""
    if isinstance(value, str):
        return f"{TEXT} {value}"
    if isinstance(value, list):
        return [marked(one) for one in value]
    if isinstance(value, dict):
        return {name: one if name in ("model", "input_type") else marked(one) for name, one in value.items()}
    return value


BODIES = {path: marked(EXAMPLES[path]) for path in PATHS}


class Told(Whole):
    """With a key and both kinds of model."""

    def said(self, path: str, body: Any, key: str = KEY) -> int:
        return self.post(path, body, authorization=f"Bearer {key}").status_code


def told(cwd: Path, script: fake.Script | None = None, **names: str) -> Told:
    judge = str(small.folder(cwd / "judge", "rerank"))
    return Told(cwd, script, VECGATE_API_KEY=KEY, CROSS_ENCODER_MODEL=judge, **names)


def breaks(*_: object, **__: object) -> None:
    raise ValueError(f"in {TEXT!r}") from KeyError(TEXT)


def test_no_line_holds_a_text_or_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stream, statuses = io.StringIO(), set()
    script = fake.Script()
    with logs.logging_to(stream, "DEBUG"), told(tmp_path, script, VECGATE_BODY_LIMIT="4096") as app:
        for path, body in BODIES.items():
            statuses.add(app.said(path, body))
            statuses.add(app.said(path, body, GUESS))
            statuses.add(app.said(path, {**body, "model": TEXT, "encoding_format": TEXT, "truncation": TEXT}))
            statuses.add(app.said(path, json.dumps(body)[:-1].encode()))
            statuses.add(app.said(path, {**body, "user": TEXT * 1000}))
            statuses.add(
                app.ask("PATCH", f"{path}/{TEXT}?q={TEXT}", headers={"x-api-key": KEY, "cookie": TEXT}).status_code
            )
        script.failure = lambda _row: ValueError(f"in {TEXT!r}")
        statuses |= {app.said(path, body) for path, body in BODIES.items()}
        for name in ("embed", "rerank", "tokenize", "decode"):
            monkeypatch.setattr(LocalEngine, name, breaks)
        statuses |= {app.said(path, body) for path, body in BODIES.items()}
    assert statuses >= {200, 400, 401, 404, 413, 422, 500}
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert sum(line["logger"] == "vecgate.access" for line in lines) > 8 * len(PATHS)
    assert any("ValueError" in line.get("stack", "") for line in lines)
    assert MARK not in stream.getvalue()
    assert MARK not in "".join(capfd.readouterr())


def test_a_library_that_says_more_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # off once the library is imported
    stream = io.StringIO()
    with logs.logging_to(stream, "DEBUG", "console"):
        for library in ("httpx", "httpcore", "transformers", "urllib3", "tokenizers", "huggingface_hub"):
            logging.getLogger(library).info("POST %s", TEXT)
        logging.getLogger("transformers").error("failed", exc_info=ValueError(TEXT))
    assert MARK not in stream.getvalue()
    assert "ValueError" in stream.getvalue()
