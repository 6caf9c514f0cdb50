"""The two servers that real clients are driven against: one of no weights, whose bytes can be kept, and the real MiniLM.

Both are settings as an operator writes them, so that a process and the app in a test's own process are the same server.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests import small
from tests.test_compat_fixtures import tables
from vecgate.engine.checkpoint import resolve

KEY = "a-key-for-clients"
NAME = "all-MiniLM-L6-v2"
VENDORS = ("text-embedding-3-small", "embed-english-v3.0", "fail-twice")
RERANKERS = ("rerank-v3.5", "rerank-english-v3.0")
DIMENSIONS = 8
MAX_TOKENS = 256
"""MiniLM's, so that both cut a long text at the same place."""


def fake(folder: Path) -> dict[str, str]:
    """MiniLM's name, tokenizer and limit over the fake backend, a row of DIMENSIONS numbers, and a reranker beside it."""
    model = small.folder(folder / NAME, dimensions=DIMENSIONS, max_tokens=MAX_TOKENS)
    judge = small.folder(folder / "judge", "rerank", max_tokens=MAX_TOKENS)
    for made in (model, judge):
        shutil.copy(resolve("minilm").folder / "tokenizer.json", made)
        (made / "config_sentence_transformers.json").unlink()
    shared = _shared(dict.fromkeys(RERANKERS, "judge"))
    return shared | {"BACKEND": "fake", "MODEL_NAME": str(model), "CROSS_ENCODER_MODEL": str(judge)}


def real() -> dict[str, str]:
    """MiniLM on torch; it reranks by cosine, for no reranker comes without a hub."""
    return _shared(dict.fromkeys(RERANKERS, NAME)) | {"BACKEND": "torch"}


def _shared(rerankers: dict[str, str]) -> dict[str, str]:
    aliases = dict.fromkeys(VENDORS, NAME) | rerankers
    return {
        "VECGATE_ALIASES": json.dumps(aliases),
        "VECGATE_API_KEY": KEY,
        "TIKTOKEN_CACHE_DIR": str(tables()),
        "VECGATE_VERIFY": "off",
    }
