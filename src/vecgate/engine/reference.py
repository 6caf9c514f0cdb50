"""The reference's rows in float32, as a script run by path in its own process; imported by nobody.

    python reference.py MODEL_DIR [--normalize] [--prompt TEXT] [--batch-size N] < texts.json > rows.npy
    python reference.py MODEL_DIR --rerank < {"query": ..., "documents": [...]} > logits.npy
    python reference.py --cases OUT < cases.jsonl     many checkpoints in one run: each line a case, OUT/NAME.npz its answer

Imports nothing of vecgate, so that what it proves does not rest on what it checks. sentence-transformers computes the
rows; where it can't read what a checkpoint was trained with, the recipe is written out below.

A case is {"name", "folder", "how", "asked"} and what its `how` takes besides:
- "encode": asked [[role or null, text], ...]. The role's prompt is the checkpoint's own, or "prompts"[role].
- "last": the same by transformers alone, for a checkpoint that pools at its last token and whose tokenizer.json forgets
  the end: "tail" ids follow the first "max_tokens" less their count.
- "predict": asked [[query, document], ...]; logits of sentence-transformers' CrossEncoder, no activation applied.
- "judge": the same by transformers alone, for a language model that is asked: "template" [prefix, body, suffix], the body
  with {query} and {document}, cut so that all three are "max_tokens" at most. "yes", "no": the score is the logit of one
  token less the other's; without them, that of the sequence classification head.
NAME.npz holds rows (N, D), and ids, lengths: every input's token ids, one after the other.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, where a module (queue) may be called like one of the standard library's

import argparse
import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# float32 by force: transformers loads a checkpoint in its stored type, and rows in bfloat16 are no reference.
OPTIONS: dict[str, Any] = {"device": "cpu", "local_files_only": True, "trust_remote_code": False}
Answer = tuple[NDArray[np.float32], list[list[int]]]
"""Rows (N, D) as pooled, not normalised beyond what the checkpoint says, and each row's ids."""


def embed(folder: str, texts: list[str], *, normalize: bool, prompt: str, batch_size: int) -> NDArray[np.float32]:
    """(N, D) rows in input order. `prompt` is put before every text; the checkpoint's default prompt is not applied."""
    rows = _embedder(folder).encode(
        texts, prompt=prompt, normalize_embeddings=normalize, batch_size=batch_size, show_progress_bar=False
    )
    return np.asarray(rows, np.float32)


def rerank(folder: str, query: str, documents: list[str], *, batch_size: int) -> NDArray[np.float32]:
    """(N, 1) raw logits of the pairs, no activation applied."""
    import torch

    pairs = [(query, document) for document in documents]
    scores = _judge(folder).predict(
        pairs, activation_fn=torch.nn.Identity(), batch_size=batch_size, show_progress_bar=False
    )
    return np.asarray(scores, np.float32).reshape(-1, 1)


def _embedder(folder: str) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(folder, model_kwargs={"dtype": torch.float32}, **OPTIONS)


def _judge(folder: str) -> Any:
    import torch
    from sentence_transformers import CrossEncoder

    return CrossEncoder(folder, model_kwargs={"dtype": torch.float32}, **OPTIONS)


# many checkpoints in one run


def encode(case: dict[str, Any]) -> Answer:
    model, asked = _embedder(case["folder"]), case["asked"]
    rows: list[Any] = [None] * len(asked)
    ids: list[list[int]] = [[]] * len(asked)
    for role in dict.fromkeys(role for role, _ in asked):
        at = [index for index, one in enumerate(asked) if one[0] == role]
        texts = [asked[index][1] for index in at]
        call, told = _as(role, model, case.get("prompts", {}))
        found = call(texts, show_progress_bar=False, **told)
        prompt = _prompt(role, model, told)
        for index, row, text in zip(at, found, texts, strict=True):
            rows[index] = row
            ids[index] = model.preprocess([text], prompt=prompt)["input_ids"][0].tolist()
    return np.asarray(rows, np.float32), ids


def _as(role: str | None, model: Any, prompts: dict[str, str]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The call that sentence-transformers has for the role, and what it is told."""
    if role in prompts:
        return model.encode, {"prompt": prompts[role]}
    if role in ("query", "document"):
        return (model.encode_query if role == "query" else model.encode_document), {}
    return model.encode, {"prompt_name": role}


def _prompt(role: str | None, model: Any, told: dict[str, Any]) -> str:
    """The same prompt in words, for the ids alone."""
    if "prompt" in told:
        return str(told["prompt"])
    names = ("document", "passage", "corpus") if role == "document" else (role or model.default_prompt_name,)
    return next((model.prompts[name] for name in names if model.prompts.get(name)), "")


def last(case: dict[str, Any]) -> Answer:
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(case["folder"], dtype=torch.float32, local_files_only=True).eval()
    words, room = _words(case["folder"]), case["max_tokens"] - len(case["tail"])
    said = [case["prompts"].get(role, "") + text for role, text in case["asked"]]
    ids = [words.encode(text).ids[:room] + case["tail"] for text in said]
    with torch.inference_mode():
        rows = [model(input_ids=torch.tensor([one])).last_hidden_state[0, -1].numpy() for one in ids]
    return np.asarray(rows, np.float32), ids


def predict(case: dict[str, Any]) -> Answer:
    import torch

    model = _judge(case["folder"])
    pairs = [(query, document) for query, document in case["asked"]]
    scores = model.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    ids = [model.preprocess([pair], prompt=_prompt(None, model, {}))["input_ids"][0].tolist() for pair in pairs]
    return np.asarray(scores, np.float32).reshape(-1, 1), ids


def judge(case: dict[str, Any]) -> Answer:
    import torch
    import transformers

    kind: Any = transformers.AutoModelForCausalLM if "yes" in case else transformers.AutoModelForSequenceClassification
    model = kind.from_pretrained(case["folder"], dtype=torch.float32, local_files_only=True).eval()
    words, (prefix, body, suffix) = _words(case["folder"]), case["template"]
    before, after = (words.encode(text, add_special_tokens=False).ids for text in (prefix, suffix))
    room = case["max_tokens"] - len(before) - len(after)
    said = [body.format(query=query, document=document) for query, document in case["asked"]]
    ids = [before + words.encode(text, add_special_tokens=False).ids[:room] + after for text in said]
    with torch.inference_mode():
        logits = [model(input_ids=torch.tensor([one])).logits for one in ids]  # (1, L, V), or (1, 1) of a head
    scores = [one[0, -1, case["yes"]] - one[0, -1, case["no"]] if "yes" in case else one[0, 0] for one in logits]
    return np.asarray(scores, np.float32).reshape(-1, 1), ids


def _words(folder: str) -> Any:
    """tokenizer.json as it stands: transformers builds some classes anew and drops what they do not know."""
    import tokenizers

    words: Any = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    words.no_truncation()
    words.no_padding()
    return words


HOW: dict[str, Callable[[dict[str, Any]], Answer]] = {
    "encode": encode,
    "last": last,
    "predict": predict,
    "judge": judge,
}


def answer(case: dict[str, Any], out: Path) -> None:
    """The case's rows and ids in a file that is whole once it is there."""
    rows, ids = HOW[case["how"]](case)
    flat = np.concatenate([np.array(one, np.int64) for one in ids])
    part = out / f"{case['name']}.part.npz"
    np.savez(part, rows=rows, ids=flat, lengths=np.array([len(one) for one in ids], np.int64))
    part.rename(out / f"{case['name']}.npz")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--cases", type=Path, metavar="OUT")
    parser.add_argument("--rerank", action="store_true")
    parser.add_argument("--normalize", action="store_true")
    parser.add_argument("--prompt", default="")
    parser.add_argument("--batch-size", type=int, default=32)
    told = parser.parse_args()
    if told.cases:
        for line in sys.stdin:
            answer(json.loads(line), told.cases)
        return
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
