"""A vector space's fingerprint: what changes it and what does not, and that it is found without being in anybody's way."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import small
from vecgate.core import Call, Checkpoint, Dense, PairTemplate
from vecgate.engine import hashes, space
from vecgate.engine.local import LocalEngine
from vecgate.engine.model import Model
from vecgate.errors import DeadlineExceeded, NotReady, SpaceMismatch

LAYER = Dense(Path("dense.safetensors"), "tanh", True)
DIGESTS = {Path(name): name[0] * 64 for name in ("a.safetensors", "b.safetensors", "dense.safetensors")}
MADE = Checkpoint(
    name="m",
    folder=Path(),
    family="bert",
    task="embed",
    config={"hidden_size": 8, "torch_dtype": "float32"},
    weights=(Path("a.safetensors"), Path("b.safetensors")),
    max_tokens=256,
    pad_id=0,
    stored_dtype="float32",
    weight_bytes=5,
    dense=(LAYER,),
)
OTHER_SPACES: dict[str, dict[str, Any]] = {
    "weights": {"weights": (Path("b.safetensors"),)},
    "layers": {"dense": ()},
    "activation": {"dense": (replace(LAYER, activation="gelu"),)},
    "config": {"config": {"hidden_size": 9}},
    "family": {"family": "roberta"},
    "task": {"task": "rerank"},
    "revision": {"revision": "abc"},
    "quantisation": {"quantization": {"bits": 4}},
    "pooling": {"pooling": ("cls",)},
    "prompts": {"prompts": {"query": "query: "}},
    "default prompt": {"default_prompt": "query"},
    "pooling of prompts": {"include_prompt": False},
    "normalisation": {"normalize": True},
    "limit": {"max_tokens": 512},
    "tail": {"tail": (2,)},
    "case": {"lower_case": True},
    "template": {"template": PairTemplate("a", "b", "c", "d")},
    "yes": {"yes_id": 5},
}
SAME_SPACE: dict[str, dict[str, Any]] = {
    "name": {"name": "n", "aliases": ("o",)},
    "remarks": {"config": {"hidden_size": 8, "torch_dtype": "bfloat16", "transformers_version": "5"}},
    "order": {"weights": tuple(reversed(MADE.weights))},
    "sizes": {"weight_bytes": 6, "stored_dtype": "float16"},
}


def text(dtype: str = "float32", **changes: Any) -> str:
    return space.fingerprint(replace(MADE, **changes), {**DIGESTS, Path("tokenizer.json"): "t" * 64}, dtype)


def test_it_is_short_and_the_same_in_every_release() -> None:
    assert text() == "vs1-f32a93b09c0785b39aaeeda5"


@pytest.mark.parametrize("changes", OTHER_SPACES.values(), ids=OTHER_SPACES)
def test_what_decides_rows_changes_it(changes: dict[str, Any]) -> None:
    assert text(**changes) != text()


@pytest.mark.parametrize("changes", SAME_SPACE.values(), ids=SAME_SPACE)
def test_what_decides_no_row_does_not(changes: dict[str, Any]) -> None:
    assert text(**changes) == text()


def test_the_tokenizer_and_the_class_of_the_number_type_count() -> None:
    assert space.fingerprint(MADE, {**DIGESTS, Path("tokenizer.json"): "u" * 64}, "float32") != text()
    assert len({text("float32"), text("float16"), text("float16", quantization={})}) == 3
    assert text("float16") == text("bfloat16")
    assert text("float16", quantization={}) == text("float32", quantization={})


# found while it is served


def served(folder: Path, **changes: Any) -> Model:
    (folder / "weights").parent.mkdir(parents=True, exist_ok=True)
    (folder / "weights").write_bytes(b"weights")
    return small.model(small.checkpoint(folder, weights=(folder / "weights",), **changes))


def spaces_of(*models: Model, cache: Path | None = None) -> list[str]:
    async def wait() -> list[str]:
        with small.Served(*models, cache=cache) as engine:
            await engine.settled()
            found = [await model.space.known() for model in models]
            assert [card.space for card in engine.status().models] == found
            return found

    return asyncio.run(wait())


def test_two_models_of_the_same_files_share_a_space_and_a_reading(tmp_path: Path, read: list[str]) -> None:
    one = served(tmp_path)
    two = small.model(replace(one.checkpoint, name="two"))
    first, second = spaces_of(one, two)
    assert first == second
    assert sorted(read) == ["tokenizer.json", "weights"]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    plain = hashes._read

    def spy(path: Path, go_on: Callable[[], bool]) -> str:
        names.append(path.name)
        return plain(path, go_on)

    monkeypatch.setattr(hashes, "_read", spy)
    return names


def test_what_was_hashed_once_is_not_read_at_the_next_start(tmp_path: Path, read: list[str]) -> None:
    model = served(tmp_path / "m")
    first = spaces_of(model, cache=tmp_path)
    assert spaces_of(small.model(model.checkpoint), cache=tmp_path) == first
    assert read == ["weights", "tokenizer.json"]


def test_a_reranker_has_a_space_too(tmp_path: Path) -> None:
    judge = served(tmp_path, task="rerank")

    async def rank() -> str | None:
        with small.Served(judge) as engine:
            await engine.settled()
            known = await judge.space.known()
            found = await engine.rerank(Call("t", space=known), None, "a", ["b"])
            with pytest.raises(SpaceMismatch, match=rf"'other'.*'judge'.*'{known}'"):
                await engine.rerank(Call("t", space="other"), None, "a", ["b"])
            return found.applied.space

    assert asyncio.run(rank()) is not None


class Held:
    """`_read` that waits in its thread until `go` is set; the loop and the device go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.entered = threading.Event(), threading.Event()
        self._plain = hashes._read
        monkeypatch.setattr(hashes, "_read", self._read)

    def _read(self, path: Path, go_on: Callable[[], bool]) -> str:
        self.entered.set()
        while not self.go.wait(0.005):
            if not go_on():
                raise hashes.Stopped
        return self._plain(path, go_on)


def test_rows_come_without_it_and_who_expects_a_space_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, model = Held(monkeypatch), served(tmp_path)

    async def use() -> None:
        with small.Served(model) as engine:
            await engine.settled()
            before = await engine.embed(Call("t"), None, ["a cat"])
            assert (before.applied.space, before.applied.dimensions) == (None, 8)
            with pytest.raises(DeadlineExceeded):
                await engine.embed(Call("t", 0.01, space="other"), None, ["a cat"])
            waiting = asyncio.create_task(engine.embed(Call("t", space="other"), None, ["a cat"]))
            leaving = asyncio.create_task(engine.embed(Call("t", space="other"), None, ["a cat"]))
            await asyncio.sleep(0)
            leaving.cancel()
            held.go.set()
            with pytest.raises(SpaceMismatch) as refused:
                await waiting
            assert refused.value.param == "space"
            known = await model.space.known()
            assert (await engine.embed(Call("t", space=known), None, ["a cat"])).applied.space == known

    asyncio.run(use())


def test_the_end_waits_for_no_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, model = Held(monkeypatch), served(tmp_path)
    with small.Served(model):
        assert held.entered.wait(10)
    assert "vecgate-space" not in {thread.name for thread in threading.enumerate()}
    assert model.space.text is None


def test_files_that_change_while_they_are_loaded_leave_it_unknown(tmp_path: Path) -> None:
    model = served(tmp_path)
    (tmp_path / "weights").write_bytes(b"others, longer")
    with pytest.raises(NotReady, match="changed while it was loaded") as refused:
        spaces_of(model)
    assert refused.value.retry_after_s is None


def test_files_that_change_later_change_nothing(tmp_path: Path) -> None:
    model = served(tmp_path)
    (known,) = spaces_of(model)
    (tmp_path / "weights").write_bytes(b"others, longer")
    assert model.space.text == known
    assert spaces_of(served(tmp_path / "other", max_tokens=11)) != [known]


def test_a_file_that_cant_be_read_leaves_it_unknown_and_stops_no_other(tmp_path: Path) -> None:
    lost, kept = served(tmp_path / "lost"), served(tmp_path / "kept", name="kept")
    (tmp_path / "lost" / "weights").unlink()

    async def use(engine: LocalEngine) -> None:
        await engine.settled()
        assert await kept.space.known()
        with pytest.raises(NotReady, match=r"weights can't be read"):
            await engine.embed(Call("t", space="any"), "small", ["a"])
        assert (await engine.embed(Call("t"), "small", ["a"])).applied.space is None

    with small.Served(lost, kept) as engine:
        asyncio.run(use(engine))


def test_a_model_that_fails_to_load_has_no_space(tmp_path: Path) -> None:
    def refuse() -> Any:
        raise RuntimeError("no")

    model = Model(served(tmp_path).checkpoint, refuse, "fake")
    with pytest.raises(NotReady, match="failed to load"):
        spaces_of(model)
