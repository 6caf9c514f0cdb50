"""One model after the other: loaded, looked at, asked as a client asks, and compared with every witness there is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from vecgate.core import Check, Checkpoint, ModelCard, Vectors
from vecgate.engine import golden, verify
from vecgate.engine.golden import Asked, Record
from vecgate.engine.model import Model, prompt_of
from vecgate.errors import CheckpointError, CommandError, ConfigError, VecgateError
from vecgate.settings import NO_MODEL, BackendName, DType, Settings
from vecgate.verify import witness
from vecgate.verify.loaded import CALL, Loaded, loaded

WIDE = 10
"""How many times what float32 explains a row may be off on a CPU: what is left out or done wrong moves one by more."""
DTYPE_NAMES: tuple[DType, ...] = ("float32", "bfloat16", "float16")
OTHERS: dict[str | None, BackendName] = {"torch": "mlx", "mlx": "torch"}
CUT_TOKENS = 512
"""A model that reads no more than this is asked a text over its limit too; at a longer one the reference takes minutes."""
REFERENCE, OTHER, GOLDEN, WEIGHTS, SENSE = "reference", "other backend", "golden", "weights", "sense"


@dataclass(frozen=True, slots=True)
class Wish:
    """models: as --model takes them; none: what the settings would serve. record: where rows are written. golden: a record
    to compare with. against: a model whose rows this one's should be near, as a quantised one's are to its original's."""

    settings: Settings
    models: tuple[str, ...] = ()
    record: Path | None = None
    golden: Path | None = None
    against: str | None = None
    reference: bool = True
    dtypes: bool = True


@dataclass(frozen=True, slots=True)
class Report:
    """What was found of one model. offered: its rows in the other number types, measured and not judged."""

    model: str
    checks: tuple[Check, ...]
    offered: tuple[Check, ...] = ()
    task: str | None = None
    family: str | None = None
    backend: str | None = None
    device: str | None = None
    dtype: str | None = None
    weight_bytes: int | None = None
    took_s: float = 0.0

    @property
    def failed(self) -> bool:
        return any(one.verdict == "failed" for one in self.checks)

    @property
    def doubtful(self) -> bool:
        """Something deviates, or there was no witness from outside."""
        seen = {one.name for one in self.checks if one.verdict in ("passed", "deviates")}
        return any(one.verdict == "deviates" for one in self.checks) or not seen & {REFERENCE, OTHER, GOLDEN}


def run(wish: Wish, tick: Callable[[str], object] = lambda step: None) -> tuple[Report, ...]:
    """tick: told what comes next. Raises CommandError and ConfigError for what no model can answer for."""
    records = (*golden.stored(), *((golden.read(wish.golden),) if wish.golden else ()))
    if wish.record and len(wish.models) > 1:
        raise ConfigError("--record writes the rows of one model: give one --model.")
    return tuple(_one(wish, settings, records, tick) for settings in _each(wish))


def steps(wish: Wish) -> int:
    """How often `run` ticks at most."""
    return len([*_each(wish)]) * (len(verify.THOROUGH) + 7 + len(DTYPE_NAMES))


def _each(wish: Wish) -> list[Settings]:
    """Settings of one model each; nothing else is loaded beside it."""
    alone = replace(wish.settings, rerankers=(), served_name=None, aliases=(), verify="off")
    if wish.models:
        return [replace(alone, models=(name,), mlx_model_path=None) for name in wish.models]
    found = [replace(alone, models=(name,)) for name in wish.settings.models if name.casefold() != NO_MODEL]
    plain = replace(alone, task="rerank", pooling=None, prompts=(), mlx_model_path=None)
    return found + [replace(plain, models=(name,)) for name in wish.settings.rerankers]


def _one(wish: Wish, settings: Settings, records: Sequence[Record], tick: Callable[[str], object]) -> Report:
    start_s = time.perf_counter()
    try:
        found = asyncio.run(_Proof(wish, settings, records, tick).run())
    except (CheckpointError, ConfigError, CommandError, VecgateError) as error:
        found = Report(settings.models[0], (Check("load", "failed", str(error).rstrip(".")),))
    return replace(found, took_s=time.perf_counter() - start_s)


class _Proof:
    """All that is done about one model."""

    def __init__(
        self, wish: Wish, settings: Settings, records: Sequence[Record], tick: Callable[[str], object]
    ) -> None:
        self._wish = wish
        self._settings = settings
        self._records = records
        self._tick = tick
        self._checks: list[Check] = []

    async def run(self) -> Report:
        self._tick("load")
        async with loaded(self._settings) as own:
            card = own.card
            self._model = model = await own.engine.on_device(card.name, lambda model: model)
            await self._by_itself(own)
            asked = self._asked(model)
            rows = await own.rows(asked)
            await self._as_clients_do(own, asked, rows)
            record = self._record_for(model, own.cache)
            kept = await own.rows(record.asked) if record else None
        self._checks += [self._golden(record, kept, card), self._weights(model.checkpoint, record, own.cache)]
        best = await self._outside(model, card, asked, rows)
        offered = await self._offered(card, asked, rows, best) if self._wish.dtypes else ()
        if self._wish.record:
            self._write(model, card, asked, rows, best, own.cache)
        names = ("task", "family", "backend", "device", "dtype", "weight_bytes")
        return Report(card.name, tuple(self._checks), offered, **{name: getattr(card, name) for name in names})

    async def _by_itself(self, own: Loaded) -> None:
        """What the loaded model shows on its device."""
        name = own.card.name
        self._tick("batch, permutation")
        quick = await own.engine.on_device(name, partial(verify.quick, cache=None, records=()))
        self._checks += [one for one in quick if one.name != GOLDEN]
        for look in verify.THOROUGH:
            self._tick(look.__name__)
            self._checks.append(await own.engine.on_device(name, look))

    async def _as_clients_do(self, own: Loaded, asked: Sequence[Asked], rows: Vectors) -> None:
        """Many calls at once, and rows that a client gets: of length 1, in a sensible order."""
        self._tick("concurrency")
        few = [*asked[: len(verify.TEXTS)], *asked[: len(verify.TEXTS)]]
        again, once = await own.at_once(few), rows[: len(verify.TEXTS)]
        note = f"{len(few)} calls at once"
        self._checks.append(verify.compared("concurrency", again, np.concatenate([once, once]), self._model, note))
        if own.card.task == "embed":
            off = float(np.abs(np.linalg.norm(rows.astype(np.float64), axis=1) - 1).max())
            self._checks.append(
                Check("unit", "passed" if off < 1e-5 else "failed", f"lengths are within {off:.0e} of 1")
            )
            self._checks.append(await self._roles(own))
        self._tick(SENSE)
        self._checks.append(await self._sense(own))

    async def _roles(self, own: Loaded) -> Check:
        """Through the engine: the row of a role is the row of its prompt and the text."""
        roles = [role for role in self._model.checkpoint.prompts if prompt_of(self._model.checkpoint, role)[1]]
        if not roles or not self._model.checkpoint.include_prompt:
            return Check("roles", "skipped", "no role has a prompt that the pooling sees")
        text = verify.TEXTS[0]
        rows = await own.rows([(role, text) for role in roles])
        typed = [prompt_of(self._model.checkpoint, role)[1] + text for role in roles]
        expected = await own.engine.on_device(own.card.name, partial(verify.plain, texts=typed))
        return verify.compared("roles", rows, expected, self._model, f"{', '.join(roles)}, as a client asks")

    async def _sense(self, own: Loaded) -> Check:
        """Whether what answers a question stands above what does not; an untrained model guesses."""
        right = 0
        for query, answer, other in verify.RELATED:
            ranking = await own.engine.rerank(CALL, None, query, [other, answer])
            right += ranking.order[0] == 1
        total = len(verify.RELATED)
        told = f"{right} of {total} answers rank above another text"
        if right == total:
            return Check(SENSE, "passed", told)
        return Check(SENSE, "deviates", f"{told}: the model is untrained, of another language, or damaged")

    def _asked(self, model: Model) -> list[Asked]:
        """What the witnesses are asked: the usual texts, hard ones, one over the limit, and some in each role."""
        checkpoint = model.checkpoint
        asked = [*verify.asked_of(checkpoint.task), verify.long_of(checkpoint.task)]
        if checkpoint.task == "rerank":
            pairs: list[Asked] = [(query, text) for query, *texts in verify.RELATED for text in texts]
            return verify.takes(model, [*asked, *pairs])
        asked += [(None, text) for text in verify.OVERFLOWING]
        if checkpoint.max_tokens <= CUT_TOKENS:
            asked.append((None, verify.LONG * 8))
        roles = dict.fromkeys((*checkpoint.prompts, "query", "document"))
        return verify.takes(model, [*asked, *((role, text) for role in roles for text in verify.TEXTS[:2])])

    # witnesses

    def _record_for(self, model: Model, cache: Path) -> Record | None:
        """The one that was named, else that of just these weights."""
        if self._wish.golden:
            return self._records[-1]
        return golden.known(model.checkpoint, cache, self._records)

    def _golden(self, record: Record | None, rows: Vectors | None, card: ModelCard) -> Check:
        self._tick(GOLDEN)
        if record is None or rows is None:
            return Check(GOLDEN, "skipped", "no rows are known of these weights; --record keeps some for the next time")
        note = f"{len(rows)} rows of {record.source}"
        if card.backend == "fake":
            return Check(GOLDEN, "skipped", "the fake backend computes no model's rows")
        if self._model.replaced:
            note += f"; {' and '.join(self._model.replaced)} stands above what the files say"
        dtype = str(card.dtype) if record.dtype == "float32" else record.dtype
        return self._strict(
            verify.differing(GOLDEN, rows, record.rows, self._model.checkpoint, dtype, note), card, dtype
        )

    def _weights(self, checkpoint: Checkpoint, record: Record | None, cache: Path) -> Check:
        """Whether the files are what somebody else says they are."""
        self._tick(WEIGHTS)
        if wrong := golden.blobs(checkpoint):
            return Check(WEIGHTS, "failed", f"{', '.join(wrong)} is not what the hub gave: fetch it again")
        if (known := golden.known(checkpoint, cache, self._records)) is not None:
            how = "by their hash" if golden.hashed(checkpoint, known, cache) else "tensor by tensor"
            return Check(WEIGHTS, "passed", f"those of {known.name}, {how}")
        for one in (record, *self._records):
            other, total = golden.likeness(checkpoint, one) if one else ([], 0)
            if one and 0 < len(other) <= total // 2:
                some = ", ".join(other[:3]) + (f" and {len(other) - 3} more" if len(other) > 3 else "")
                return Check(WEIGHTS, "failed", f"{len(other)} of {total} tensors are not those of {one.name}: {some}")
        named = [path for path in checkpoint.weights if path.is_symlink()]
        if named and len(named) == len(checkpoint.weights):
            return Check(WEIGHTS, "passed", "as the hub gave them, by their hash")
        return Check(
            WEIGHTS, "skipped", "nobody here knows a hash of them: what is damaged in them shows in no other check"
        )

    async def _outside(
        self, model: Model, card: ModelCard, asked: Sequence[Asked], rows: Vectors
    ) -> witness.Told | None:
        """sentence-transformers, else the other backend; what neither could tell stands in the table."""
        self._tick(REFERENCE)
        why = "not asked for" if not self._wish.reference else witness.missing()
        told = None
        if why is None:
            try:
                told = await asyncio.to_thread(witness.ask, witness.recipe(model.checkpoint, asked))
            except CommandError as error:
                why = str(error)
        if told is None:
            self._checks.append(Check(REFERENCE, "skipped", str(why)))
            self._checks.append(await self._other(card, asked, rows))
            return None
        note = f"{len(rows)} rows of {told.source}"
        found = verify.differing(REFERENCE, rows, told.rows, model.checkpoint, str(card.dtype), note)
        self._checks += [self._ids(model, asked, told), self._strict(found, card, str(card.dtype))]
        return told

    def _ids(self, model: Model, asked: Sequence[Asked], told: witness.Told) -> Check:
        own = [one.ids.tolist() for one in verify.tokens(model, asked)]
        wrong = [at for at, (left, right) in enumerate(zip(own, told.ids)) if left != right]
        if not wrong:
            return Check("token ids", "passed", f"{sum(map(len, own))} ids of {len(own)} texts, as the reference's")
        first, text = asked[wrong[0]]
        shown = f"{first}: {text[:40]!a}" if first else f"{text[:40]!a}"
        return Check(
            "token ids", "failed", f"{len(wrong)} of {len(own)} texts have others than the reference's, as {shown}"
        )

    async def _other(self, card: ModelCard, asked: Sequence[Asked], rows: Vectors) -> Check:
        """The same files by the other backend, in float32."""
        self._tick(OTHER)
        name = OTHERS.get(card.backend)
        if name is None or find_spec(name) is None:
            return Check(OTHER, "skipped", "there is no second one here")
        try:
            where = "cpu" if self._settings.device == "cpu" else "auto"  # each names a GPU in its own way
            async with loaded(replace(self._settings, backend=name, device=where, dtype="float32")) as other:
                theirs, device = await other.rows(asked), other.card.device
        except (CheckpointError, ConfigError, CommandError, VecgateError) as error:
            return Check(OTHER, "skipped", f"{name} can't: {str(error).rstrip('.')}")
        note = f"{len(rows)} rows of {name} on {device}, which reads the same files"
        return self._strict(
            verify.differing(OTHER, rows, theirs, self._model.checkpoint, str(card.dtype), note), card, str(card.dtype)
        )

    def _strict(self, check: Check, card: ModelCard, dtype: str) -> Check:
        """On a CPU float32 is float32: what moves a row further than that explains is a mistake, however small."""
        most = WIDE * verify.EXACT[self._model.checkpoint.task]
        exact = card.device == "cpu" and dtype == "float32" and str(card.dtype) == "float32"
        if not exact or check.verdict != "deviates" or (check.difference or 0.0) <= most:
            return check
        return replace(check, verdict="failed", note=f"{check.note}; float32 explains {most:.0e}")

    # number types

    async def _offered(
        self, card: ModelCard, asked: Sequence[Asked], rows: Vectors, best: witness.Told | None
    ) -> tuple[Check, ...]:
        """The rows in each number type against the reference's, else float32's; and against another model's."""
        few = [*range(len(verify.TEXTS) + 1)]
        found: dict[str, Vectors | str] = {str(card.dtype): rows[few]}
        for dtype in DTYPE_NAMES if card.backend != "fake" else ():
            self._tick(dtype)
            if dtype not in found:
                found[dtype] = await self._rows_in(replace(self._settings, dtype=dtype), [asked[at] for at in few])
        exact = best.rows[few] if best else found.get("float32", rows[few])
        base = "the reference" if best else "float32"
        if isinstance(exact, str):
            exact, base = rows[few], str(card.dtype)
        made = [self._near(dtype, found[dtype], exact, base) for dtype in DTYPE_NAMES if dtype in found]
        if self._wish.against:
            theirs = await self._rows_in(
                replace(self._settings, models=(self._wish.against,), mlx_model_path=None), [asked[at] for at in few]
            )
            made.append(
                Check(self._wish.against, "skipped", theirs)
                if isinstance(theirs, str)
                else self._near(str(card.dtype), rows[few], theirs, self._wish.against)
            )
        return tuple(made)

    async def _rows_in(self, settings: Settings, asked: Sequence[Asked]) -> Vectors | str:
        """The rows, or why there are none."""
        try:
            async with loaded(settings) as other:
                return await other.rows(asked)
        except (CheckpointError, ConfigError, CommandError, VecgateError) as error:
            return str(error).rstrip(".")

    def _near(self, dtype: str, rows: Vectors | str, exact: Vectors, base: str) -> Check:
        if isinstance(rows, str):
            return Check(dtype, "skipped", rows)
        kind = self._model.checkpoint.quantization
        packed = f"{kind.get('bits')}-bit weights, " if kind else ""
        found = verify.differing(dtype, rows, exact, self._model.checkpoint, dtype, f"{packed}against {base}")
        judged = found.verdict == "failed" and found.difference is None  # rows that are none fail all the same
        return found if judged or found.verdict != "failed" else replace(found, verdict="deviates")

    # record

    def _write(
        self,
        model: Model,
        card: ModelCard,
        asked: Sequence[Asked],
        rows: Vectors,
        best: witness.Told | None,
        cache: Path,
    ) -> None:
        """A few rows in every role, by the reference where it is there."""
        assert self._wish.record is not None
        checkpoint, usual = model.checkpoint, len(verify.TEXTS) + 1
        prompted = {
            role for role in checkpoint.prompts if prompt_of(checkpoint, role)[1] and checkpoint.task == "embed"
        }
        places = [at for at, one in enumerate(asked) if at < usual or one[0] in prompted]
        places = [at for at in places if asked[at] not in asked[:at]]
        from_best = verify.unit(best.rows).astype(np.float32) if best and checkpoint.task == "embed" else None
        exact = rows if best is None else best.rows if from_best is None else from_best
        record = Record(
            name=card.name,
            task=checkpoint.task,
            source=best.source if best else f"vecgate itself ({card.backend} on {card.device}, {card.dtype})",
            dtype="float32" if best else str(card.dtype),
            sha256=tuple(golden.digest(path, cache) for path in checkpoint.weights),
            size_bytes=tuple(path.stat().st_size for path in checkpoint.weights),
            asked=tuple(asked[at] for at in places),
            rows=exact[places],
            tensors=golden.tensors(checkpoint),
        )
        self._wish.record.write_text(golden.written(record), "utf-8")
