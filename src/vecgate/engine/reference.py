"""sentence-transformers' rows in float32, as a script run by path in its own process; imported by nobody.

    python reference.py MODEL_DIR [--normalize] [--prompt TEXT] [--batch-size N] < texts.json > rows.npy
    python reference.py MODEL_DIR --rerank < {"query": ..., "documents": [...]} > logits.npy

Imports nothing of vecgate, so that what it proves does not rest on what it checks.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from numpy.typing import NDArray

# float32 by force: transformers loads a checkpoint in its stored type, and rows in bfloat16 are no reference.
OPTIONS: dict[str, Any] = {"device": "cpu", "local_files_only": True, "trust_remote_code": False}


def embed(folder: str, texts: list[str], *, normalize: bool, prompt: str, batch_size: int) -> NDArray[np.float32]:
    """(N, D) rows in input order. `prompt` is put before every text; the checkpoint's default prompt is not applied."""
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, model_kwargs={"dtype": torch.float32}, **OPTIONS)
    rows = model.encode(
        texts, prompt=prompt, normalize_embeddings=normalize, batch_size=batch_size, show_progress_bar=False
    )
    return np.asarray(rows, np.float32)


def rerank(folder: str, query: str, documents: list[str], *, batch_size: int) -> NDArray[np.float32]:
    """(N, 1) raw logits of the pairs, no activation applied."""
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(folder, model_kwargs={"dtype": torch.float32}, **OPTIONS)
    pairs = [(query, document) for document in documents]
    scores = model.predict(pairs, activation_fn=torch.nn.Identity(), batch_size=batch_size, show_progress_bar=False)
    return np.asarray(scores, np.float32).reshape(-1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--rerank", action="store_true")
    parser.add_argument("--normalize", action="store_true")
    parser.add_argument("--prompt", default="")
    parser.add_argument("--batch-size", type=int, default=32)
    told = parser.parse_args()
    given = json.load(sys.stdin)
    with redirect_stdout(sys.stderr):  # stdout carries the array alone
        if told.rerank:
            rows = rerank(told.folder, given["query"], given["documents"], batch_size=told.batch_size)
        else:
            rows = embed(told.folder, given, normalize=told.normalize, prompt=told.prompt, batch_size=told.batch_size)
    held = io.BytesIO()
    np.save(held, rows)
    sys.stdout.buffer.write(held.getvalue())


if __name__ == "__main__":
    main()
