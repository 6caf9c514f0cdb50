"""What `vecgate serve` says once it is ready."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

from tests import small
from vecgate import banner
from vecgate.core import Check, Status, Verification
from vecgate.engine.local import LocalEngine
from vecgate.settings import Settings

URL = "http://127.0.0.1:9000"
SETTINGS = Settings()


def status(tmp_path: Path, *tasks: str) -> Status:
    checkpoints = [small.checkpoint(tmp_path / task, "rerank" if task == "rerank" else "embed") for task in tasks]
    engine = LocalEngine([small.model(one) for one in checkpoints])
    engine.start()
    try:
        asyncio.run(engine.settled())
        return engine.status()
    finally:
        engine.close()


def test_the_block_has_all_that_a_newcomer_needs(tmp_path: Path) -> None:
    text = banner.text(status(tmp_path, "embed", "rerank"), SETTINGS, URL)
    said = " ".join(text.split())
    for part in (
        *("model small 8 dimensions, 12 tokens", "reranker judge 12 tokens", "backend fake", "device cpu, float32"),
        *("2048 inputs", "100 on the native routes", "1000 passages", "32 MiB", "4096 requests at once", "300 s"),
        *(f"address {URL}", f'OpenAI(base_url="{URL}/v1", api_key="unused")'),
    ):
        assert part in said


def test_the_block_says_how_the_rows_were_verified(tmp_path: Path) -> None:
    found = status(tmp_path, "embed")
    moved = Check("batch", "deviates", "", 0.9999, 1e-3)
    checked = Verification("quick", "deviates", 1.7e9, 0.125, (Check("finite", "passed"), moved))
    shown = replace(found, models=(replace(found.models[0], verification=checked),))
    assert "verified deviates: batch (quick, 0.12 s)" in " ".join(banner.text(shown, SETTINGS, URL).split())
    assert banner.fields(shown, SETTINGS, URL)["models"][0]["verified"] == "deviates"
    assert "verified" not in banner.text(found, SETTINGS, URL)


def test_the_line_to_paste_never_holds_the_key(tmp_path: Path) -> None:
    settings = Settings(api_key=("secret",))
    found = status(tmp_path, "embed")
    assert banner.paste(found, settings, URL) == f'OpenAI(base_url="{URL}/v1", api_key="...")'
    assert "secret" not in banner.text(found, settings, URL) + json.dumps(banner.fields(found, settings, URL))


def test_a_reranker_alone_is_for_coheres_client(tmp_path: Path) -> None:
    found = status(tmp_path, "rerank")
    assert banner.paste(found, SETTINGS, URL) == f'cohere.ClientV2(base_url="{URL}", api_key="unused")'
    assert "dimensions" not in banner.text(found, SETTINGS, URL)


def test_the_fields_say_the_same_to_machines(tmp_path: Path) -> None:
    fields = json.loads(json.dumps(banner.fields(status(tmp_path, "embed", "rerank"), SETTINGS, URL)))
    assert fields["url"] == URL
    assert [(one["name"], one["task"], one["dimensions"]) for one in fields["models"]] == [
        ("small", "embed", 8),
        ("judge", "rerank", None),
    ]
    assert fields["models"][0]["backend"] == "fake"
    assert fields["limits"]["max_inputs"] == 2048
    assert fields["paste"].startswith("OpenAI(")
