"""The proof that a loaded model gives the right rows: what it shows of itself on its own device, before anybody asks.

A row may depend on its text alone, so the same text is computed alone, in other orders and beside other texts; rows must
be finite; and a model that is known by its weights must give the rows it is known for (engine/golden). Runs on the device
thread, on a Model that is loaded; `vecgate verify` asks for more than that, and for other processes' rows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np

from vecgate.core import Batch, Check, Checkpoint, Task, Tokens, Vectors, Verdict, Verification
from vecgate.engine import golden
from vecgate.engine.golden import Asked, Record
from vecgate.engine.model import Model, prompt_of
from vecgate.engine.modules import read_json
from vecgate.errors import BackendFailed, InvalidRequest

log = logging.getLogger("vecgate.engine")

Form = Literal["off", "quick", "full"]

LEAST_COSINE = 0.999
"""Below it two rows of one text are different rows; a device that nobody has measured is not locked out for less."""
MOST_SHIFT = 0.1
"""The same for a reranker: of the score between 0 and 1."""
EXACT: dict[Task, float] = {"embed": 5e-6, "rerank": 1e-4}
"""The greatest |difference| of unit rows, and of logits, that float32 explains (tests/families.py)."""
SIXTEEN: dict[Task, float] = {"embed": 2e-2, "rerank": 1.0}
"""The same of 16-bit numbers: each of some twenty roundings in a row moves a state by up to 0.4 %."""

WORDS = "the council met in march to weigh a plan for the old harbour and its ferries ".split()
LONG = " ".join(WORDS * 7)
"""About 100 tokens: over the local windows of ModernBERT and Gemma, within what the warm-up has tried."""
TEXTS = (
    "The capital of France is Paris.",
    "A cat.",
    "How many people live in Berlin, and how many of them have moved there since the wall came down in 1989?",
    "Straße, naïve café, 東京は日本の首都です。",
    "def add(a, b):\n    return a + b",
    "A cat.",
)
"""Of several lengths, one of them twice."""
QUERY = "What is the capital of France?"
OVERFLOWING = (
    "",
    " ",
    "0" * 300,
    "!" * 200,
    "the " * 200,
    "\n" * 100,
    "🙂" * 60,
    "\u200b\u200d\ufeff",
    "深" * 100,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 8,
    "<|endoftext|></s>[SEP]<eos>",
)
"""Texts of one token again and again, of nothing, of rare ones: where sums grow, and where 16-bit models of others gave NaN."""
RELATED = (
    (
        "How do I bake bread?",
        "Mix flour, water, salt and yeast, let the dough rise, then bake it.",
        "Stocks fell again.",
    ),
    (
        "Where do penguins live?",
        "Penguins are found in Antarctica and on cold southern coasts.",
        "Bake it for an hour.",
    ),
    ("What is the capital of France?", "Paris is the capital and largest city of France.", "A cat sat on a mat."),
    ("Why is the sky blue?", "Air scatters short, blue wavelengths of sunlight the most.", "Turn left at the station."),
)
"""(query, what answers it, what does not)."""
REFUSED = frozenset(("finite", "batch", "permutation", "golden"))
"""The checks that keep a server from being ready."""
OF_ROWS = frozenset(("layout", "duplicates", "overflow", "longest"))
"""Those that compute rows of their own: where one of these is not finite, that keeps it from being ready, too."""
ORDER: tuple[Verdict, ...] = ("skipped", "passed", "deviates", "failed")


def before_ready(model: Model, form: Literal["quick", "full"], cache: Path | None) -> Verification:
    """What the model shows, also told by its card; raises BackendFailed with the reason where it may not serve."""
    start_s, at = time.perf_counter(), time.time()
    checks = quick(model, cache) if form == "quick" else (*quick(model, cache), *thorough(model))
    found = Verification(form, worst(checks), at, time.perf_counter() - start_s, checks)
    model.verification = found
    log.info("Verified %s (%s): %s in %.2f s.", model.name, form, found.verdict, found.took_s)
    for one in checks:
        if refuses(one):
            raise BackendFailed(
                f"The rows of {model.name} are not right: {said(one)}. `vecgate verify` shows more; VECGATE_VERIFY=off would "
                "serve them all the same."
            )
        if one.verdict in ("deviates", "failed"):
            log.warning("%s: %s.", model.name, said(one))
    return found


def refuses(check: Check) -> bool:
    """A check of rows that failed without a figure had rows that nothing can be compared with."""
    unsound_rows = check.name in OF_ROWS and check.difference is None
    return check.verdict == "failed" and (check.name in REFUSED or unsound_rows)


def worst(checks: Sequence[Check]) -> Verdict:
    return max((one.verdict for one in checks), key=ORDER.index, default="skipped")


def said(check: Check) -> str:
    """In words."""
    figures = [] if check.cosine is None else [f"cosine {check.cosine:.6f}"]
    figures += [] if check.difference is None else [f"difference {check.difference:.1e}"]
    return ", ".join([f"the check {check.name!r} {check.verdict}", *figures, *([check.note] if check.note else [])])


# what is looked at


def quick(model: Model, cache: Path | None, records: Sequence[Record] | None = None) -> tuple[Check, ...]:
    """Two batches and a few single rows: well under a second for a small model. records: else those we know."""
    record = golden.known(model.checkpoint, cache, records)
    usual = asked_of(model.checkpoint.task)
    more = [long_of(model.checkpoint.task), *(record.asked if record else ())]
    asked = [*usual, *(one for one in dict.fromkeys(more) if one not in usual)]
    rows = tokens(model, asked)
    together = _forward(model, rows)
    if (broken := unsound(together)) is not None:
        return (broken,)
    backwards = _forward(model, rows[len(usual) - 1 :: -1])[::-1]
    places = [0, 2]
    alone = np.concatenate([_forward(model, [rows[at]]) for at in places])
    return (
        Check("finite", "passed", f"{len(together)} rows"),
        compared(
            "batch", together[places], alone, model, f"{len(places)} texts alone and beside {len(rows) - 1} others"
        ),
        compared("permutation", backwards, together[: len(usual)], model, f"{len(usual)} texts the other way round"),
        _golden(model, record, asked, together),
    )


def thorough(model: Model) -> tuple[Check, ...]:
    """What takes longer."""
    return tuple(look(model) for look in THOROUGH)


def _golden(model: Model, record: Record | None, asked: Sequence[Asked], rows: Vectors) -> Check:
    if record is None:
        return Check("golden", "skipped", "no rows are known of these weights")
    if model.backend is not None and model.backend.card.backend == "fake":
        return Check("golden", "skipped", "the fake backend computes no model's rows")
    if model.replaced:
        return Check("golden", "skipped", f"{' and '.join(model.replaced)} stands above what its files say")
    places = [asked.index(one) for one in record.asked]
    return compared("golden", rows[places], record.rows, model, f"{len(places)} rows of {record.source}")


def layout(model: Model) -> Check:
    """A short row beside longer and longer ones: under every length that rows are padded to, up to 512."""
    short, most = asked_of(model.checkpoint.task)[0], min(model.checkpoint.max_tokens, 512)
    (row,) = tokens(model, [short])
    lengths = [length for length in (16, 24, 32, 48, 64, 100, 128, 200, 256, 400, 512) if len(row) < length <= most]
    found = [_forward(model, [row, *of_length(model, length)])[:1] for length in lengths]
    if not found:
        return Check("layout", "skipped", f"the model reads no more than {most} tokens")
    alone = _forward(model, [row])
    note = f"beside rows of {lengths[0]} to {lengths[-1]} tokens"
    return compared("layout", np.concatenate(found), np.repeat(alone, len(found), axis=0), model, note)


def duplicates(model: Model) -> Check:
    """The same text again and again among others."""
    asked = asked_of(model.checkpoint.task)
    rows = _forward(model, tokens(model, [asked[0], asked[2], asked[0], asked[3], asked[0]]))
    return compared("duplicates", rows[[2, 4]], rows[[0, 0]], model, "one text three times among others")


def overflow(model: Model) -> Check:
    asked = takes(model, _asked(model.checkpoint.task, OVERFLOWING))
    rows = np.concatenate([_forward(model, [row]) for row in tokens(model, asked)])
    return unsound(rows, "overflow") or Check("overflow", "passed", f"{len(rows)} texts that overflow elsewhere")


def distinct(model: Model) -> Check:
    """Different texts have different rows: of a causal model pooled at its first token all are one."""
    asked = [*dict.fromkeys(asked_of(model.checkpoint.task))]
    rows = _forward(model, tokens(model, asked))
    if model.checkpoint.task == "rerank":
        spread = float(np.ptp(rows))
        verdict: Verdict = "passed" if spread > EXACT["rerank"] else "failed"
        return Check("distinct", verdict, f"the logits of {len(rows)} documents lie {spread:.2g} apart")
    wide = unit(rows)
    cosines = wide @ wide.T - 2 * np.eye(len(wide))
    nearest = float(cosines.max())
    verdict = "passed" if nearest < 1 - 1e-6 else "failed"
    return Check("distinct", verdict, f"the nearest two of {len(rows)} texts have the cosine {nearest:.4f}")


def specials(model: Model) -> Check:
    """Each row begins and ends as the tokenizer's file says, a cut one too, and where it is pooled a special token
    stands."""
    checkpoint = model.checkpoint
    if checkpoint.task == "rerank":
        return Check("specials", "skipped", "a reranker's are its template's; the reference's ids are compared")
    prompt, words = prompt_of(checkpoint, None)[1], model.tokenizer
    few, many = "A cat.", "word " * (2 * checkpoint.max_tokens)
    rows = [words.encode([text], prompt, checkpoint.max_tokens, "end")[0].ids for text in (few, TEXTS[3], many)]
    if len({(int(row[0]), int(row[-1])) for row in rows}) > 1 and "cls" in checkpoint.pooling:
        return Check("specials", "failed", "rows begin differently, and are pooled at their first token")
    if "last" in checkpoint.pooling and not words.is_special(int(rows[0][-1])):
        return Check(
            "specials", "failed", "rows end in a token of the text, where they are pooled: the end (EOS) is missing"
        )
    if "cls" in checkpoint.pooling and not words.is_special(int(rows[0][0])):
        return Check("specials", "failed", "rows begin with a token of the text, where they are pooled")
    ends = {(words.is_special(int(row[0])), words.is_special(int(row[-1]))) for row in rows}
    if len(ends) > 1:
        return Check("specials", "failed", "a text that is cut loses its special tokens")
    if lost := _forgotten(model, rows[0].tolist()):
        return Check("specials", "failed", f"tokenizer_config.json names {lost}, and the rows are without it")
    (begins, ends_so), *_ = ends
    put = " and ".join(where for where, so in (("begin", begins), ("end", ends_so)) if so)
    return Check("specials", "passed", f"rows {put} with a special token, cut or not" if put else "the model has none")


def _forgotten(model: Model, ids: Sequence[int]) -> str:
    """A special token that the tokenizer's settings promise around each text and that is not there; "" if none is."""
    path = model.checkpoint.folder / "tokenizer_config.json"
    told = read_json(path, dict) if path.exists() else {}
    names = ["cls_token", "sep_token", *(["eos_token"] if told.get("add_eos_token") is True else [])]
    for name in names:
        content = told[name].get("content") if isinstance(told.get(name), dict) else told.get(name)
        found = model.tokenizer.id_of(content) if isinstance(content, str) else None
        if found is not None and found not in ids:
            return f"{name} {content!r}"
    return ""


def longest(model: Model, limit_s: float = 20.0) -> Check:
    """The longest row that takes about so many seconds at the warm-up's rate."""
    most, rate = model.checkpoint.max_tokens, model.tokens_per_s or 1e4
    length = most
    while length > 512 and length / rate > limit_s:
        length //= 2
    (row,) = of_length(model, length)
    found = _forward(model, [row])
    part = "" if length == most else f" of {most}; more would take long here"
    note = f"{len(row)} tokens{part}"
    return unsound(found, "longest") or Check("longest", "passed", note)


def prompts(model: Model) -> Check:
    """A role's prompt stands before the text as if it had been typed there."""
    checkpoint, text = model.checkpoint, TEXTS[0]
    roles = {role: prompt for role, prompt in checkpoint.prompts.items() if prompt}
    if checkpoint.task == "rerank" or not roles:
        return Check("prompts", "skipped", "the model has none")
    most, words = checkpoint.max_tokens, model.tokenizer
    rows = [words.encode([text], prompt, most, "end")[0] for prompt in roles.values()]
    typed = [words.encode([prompt + text], "", most, "end")[0] for prompt in roles.values()]
    wrong = [role for role, one, other in zip(roles, rows, typed) if one.ids.tolist() != other.ids.tolist()]
    if wrong:
        return Check("prompts", "failed", f"the ids of {', '.join(wrong)} are not those of prompt and text")
    if not checkpoint.include_prompt:
        return Check("prompts", "passed", f"the ids of {', '.join(roles)}; the prompt is left out of the pooling")
    return compared("prompts", _forward(model, rows), _forward(model, typed), model, f"{', '.join(roles)}, as typed")


THOROUGH: tuple[Callable[[Model], Check], ...] = (
    layout,
    duplicates,
    overflow,
    specials,
    distinct,
    prompts,
    longest,
)
"""The checks beside the quick ones, in the order of what they cost."""


# comparing


def compared(name: str, rows: Vectors, expected: Vectors, model: Model, note: str) -> Check:
    """Rows of the loaded model against what they should be."""
    card = model.backend.card if model.backend else None
    return differing(name, rows, expected, model.checkpoint, card.dtype if card else "float32", note)


def differing(name: str, rows: Vectors, expected: Vectors, checkpoint: Checkpoint, dtype: str, note: str) -> Check:
    """ "passed" as far as the number type explains; "failed" where they are different rows."""
    if (broken := unsound(rows, name)) is not None:
        return broken
    if rows.shape != expected.shape:
        return Check(name, "failed", f"rows are {rows.shape[1]} wide, not {expected.shape[1]}; {note}")
    task = checkpoint.task
    explained = EXACT[task] if dtype in ("float32", "float64") else SIXTEEN[task]
    if task == "rerank":
        difference = float(np.abs(rows - expected).max())
        same = float(np.abs(_score(rows) - _score(expected)).max()) <= MOST_SHIFT
        return Check(name, _verdict(difference <= explained, same), note, None, difference)
    left, right = unit(rows), unit(expected)
    cosine, difference = float((left * right).sum(axis=1).min()), float(np.abs(left - right).max())
    return Check(name, _verdict(difference <= explained, cosine >= LEAST_COSINE), note, cosine, difference)


def _verdict(exact: bool, same: bool) -> Verdict:
    return "failed" if not same else "passed" if exact else "deviates"


def unsound(rows: Vectors, name: str = "finite") -> Check | None:
    """A failed check where a row is not finite or has no length; a logit may be 0."""
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        return Check(name, "failed", f"{int((~finite).sum())} of {len(rows)} rows are not finite")
    if rows.shape[1] > 1 and not (np.abs(rows).max(axis=1) > 0).all():
        return Check(name, "failed", "a row has no length")
    return None


def unit(rows: Vectors) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    wide = rows.astype(np.float64)
    scaled: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return scaled


def _score(rows: Vectors) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    wide = np.clip(rows.astype(np.float64), -60, 60)
    scored: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = 1 / (1 + np.exp(-wide))
    return scored


# rows


def asked_of(task: Task) -> list[Asked]:
    return _asked(task, TEXTS)


def long_of(task: Task) -> Asked:
    return _asked(task, [LONG])[0]


def _asked(task: Task, texts: Sequence[str]) -> list[Asked]:
    return [(QUERY if task == "rerank" else None, text) for text in texts]


def tokens(model: Model, asked: Sequence[Asked]) -> list[Tokens]:
    most, words = model.checkpoint.max_tokens, model.tokenizer
    if model.checkpoint.task == "rerank":
        return [words.encode_pairs(query or "", [text], most, "end")[0] for query, text in asked]
    return [words.encode([text], prompt_of(model.checkpoint, role)[1], most, "end")[0] for role, text in asked]


def takes(model: Model, asked: Sequence[Asked]) -> list[Asked]:
    """Those that the model can be asked: a tokenizer without special tokens makes no row of an empty text."""
    kept = []
    for one in asked:
        with suppress(InvalidRequest):
            tokens(model, [one])
            kept.append(one)
    return kept


def plain(model: Model, texts: Sequence[str]) -> Vectors:
    """Rows of texts as they stand, without any role's prompt."""
    return _forward(model, model.tokenizer.encode(texts, "", model.checkpoint.max_tokens, "end"))


def of_length(model: Model, length: int) -> list[Tokens]:
    """One row that is cut to so many tokens."""
    text = "word " * (2 * length)
    if model.checkpoint.task == "rerank":
        return model.tokenizer.encode_pairs(QUERY, [text], length, "end")
    return model.tokenizer.encode([text], "", length, "end")


def _forward(model: Model, rows: Sequence[Tokens]) -> Vectors:
    """In batches that the device likes: a row over its budget runs alone."""
    assert model.backend is not None
    budget, longest_row = model.backend.card.batch_tokens, max(map(len, rows))
    size = max(1, budget // longest_row)
    forward: Callable[[Batch], Vectors] = model.backend.forward
    parts = [forward(Batch(tuple(rows[at : at + size]))) for at in range(0, len(rows), size)]
    return np.concatenate(parts)
