"""Loading: the type, the room, and every way in which files do not make the whole model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
import transformers
from safetensors.torch import save_file

from tests import tiny
from tests.backends import made
from vecgate.backends.torch import devices, load, weights
from vecgate.core import Checkpoint, Dense
from vecgate.engine.checkpoint import read
from vecgate.errors import CheckpointError, ConfigError

GIB = 2**30


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("bert", tmp_path_factory.mktemp("built") / "bert")


@pytest.fixture
def bert(built: Path, tmp_path: Path) -> Checkpoint:
    """A copy that a test may damage."""
    return read(shutil.copytree(built, tmp_path / "bert"))


@pytest.fixture
def reranker(tmp_path: Path) -> Checkpoint:
    return read(tiny.build("bert-reranker", tmp_path / "reranker"))


# the type


def device(kind: str, *, bfloat16: bool = True) -> devices.Device:
    return replace(devices.cpu(0.8), place=torch.device(kind), label=kind, bfloat16=bfloat16)


@pytest.mark.parametrize(
    ("asked", "family", "stored", "kind", "bfloat16", "expected"),
    [
        ("auto", "bert", "float16", "cpu", True, "float32"),
        ("auto", "bert", "bfloat16", "cpu", True, "float32"),
        ("auto", "bert", "float32", "cuda", True, "float32"),
        ("auto", "bert", "float16", "cuda", True, "float16"),
        ("auto", "bert", "bfloat16", "mps", True, "bfloat16"),
        ("auto", "bert", "bfloat16", "cuda", False, "float32"),
        ("auto", "bert", "float64", "cuda", True, "float32"),
        ("auto", "qwen3", "float16", "cuda", True, "bfloat16"),
        ("auto", "gemma3_text", "float16", "mps", True, "bfloat16"),
        ("auto", "gemma3_text", "float16", "mps", False, "float32"),
        ("float16", "bert", "float32", "cuda", True, "float16"),
        ("bfloat16", "qwen3", "float32", "cpu", True, "bfloat16"),
        ("float32", "gemma3_text", "bfloat16", "cuda", True, "float32"),
    ],
)
def test_what_is_computed_in(
    bert: Checkpoint, asked: str, family: str, stored: str, kind: str, bfloat16: bool, expected: str
) -> None:
    checkpoint = replace(bert, family=family, stored_dtype=stored)
    chosen = weights.dtype_for(asked, checkpoint, device(kind, bfloat16=bfloat16))
    assert weights.name_of(chosen) == expected


@pytest.mark.parametrize(
    ("asked", "family", "bfloat16", "said"),
    [
        ("int8", "bert", True, "DTYPE='int8' is not known; use auto, float32, bfloat16, float16"),
        ("float16", "qwen3", True, "overflows in the family 'qwen3'; use bfloat16 or float32"),
        ("float16", "gemma3_text", True, "overflows in the family 'gemma3_text'"),
        ("bfloat16", "bert", False, "not supported by cuda; use float32 or float16"),
    ],
)
def test_a_type_that_can_not_be_had_is_one_sentence(
    bert: Checkpoint, asked: str, family: str, bfloat16: bool, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        weights.dtype_for(asked, replace(bert, family=family), device("cuda", bfloat16=bfloat16))


# the room


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """The machine's memory, of which this process holds 1 GiB."""

    class Process:
        def memory_info(self) -> Any:
            return SimpleNamespace(rss=GIB)

    def set_total(total: int) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=total))

    monkeypatch.setattr(psutil, "Process", Process)
    return set_total


def test_a_model_that_does_not_fit_is_refused_with_the_arithmetic(
    bert: Checkpoint, room: Callable[[int], None]
) -> None:
    room(8 * GIB)
    big = replace(bert, name="big", weight_bytes=3 * GIB, stored_dtype="bfloat16")
    with pytest.raises(ConfigError) as raised:
        load(big, device="cpu", memory_fraction=0.75)
    assert str(raised.value) == (
        "big needs 6.00 GiB for its weights in float32 and 0.00 GiB for its longest input, and this process holds "
        "1.00 GiB: more than DEVICE_MEMORY_FRACTION allows, 0.75 x 8.00 GiB on cpu."
    )
    room(10 * GIB)
    assert load(big, device="cpu", memory_fraction=0.75).card.batch_tokens == 2048


def test_the_type_computed_in_decides_the_room(bert: Checkpoint, room: Callable[[int], None]) -> None:
    room(8 * GIB)
    big = replace(bert, weight_bytes=3 * GIB, stored_dtype="bfloat16")
    assert load(big, device="cpu", dtype="bfloat16", memory_fraction=0.75).card.dtype == "bfloat16"


def test_a_batch_is_cut_to_what_fits(bert: Checkpoint, room: Callable[[int], None]) -> None:
    config = weights.read_config(bert)
    need = {tokens: weights.batch_bytes(config, tokens, 64, torch.float32) for tokens in (64, 512, 2048)}
    fixed = GIB + bert.weight_bytes
    for tokens in (2048, 512, 64):
        room(2 * (fixed + need[tokens]) + 2)
        assert load(bert, device="cpu", memory_fraction=0.5).card.batch_tokens == tokens
    room(2 * (fixed + need[64]) - 4)
    with pytest.raises(ConfigError, match="DEVICE_MEMORY_FRACTION"):
        load(bert, device="cpu", memory_fraction=0.5)


def test_the_limit_is_told(bert: Checkpoint, room: Callable[[int], None]) -> None:
    room(8 * GIB)
    memory = load(bert, device="cpu", memory_fraction=0.25).memory()
    assert (memory.active_bytes, memory.limit_bytes) == (GIB, 2 * GIB)


# the whole model


def test_a_missing_tensor_is_refused_by_name(bert: Checkpoint) -> None:
    made.rewrite(bert, lambda held: held.pop("encoder.layer.1.output.dense.weight"))
    with pytest.raises(CheckpointError, match=r"lack the bert tensor 'encoder.layer.1.output.dense.weight'\.$"):
        load(bert, device="cpu")


def test_several_missing_tensors_are_counted(bert: Checkpoint) -> None:
    lost = [name for name in made.tensors(bert) if name.startswith("encoder.layer.2.")]
    made.rewrite(bert, lambda held: [held.pop(name) for name in lost])
    with pytest.raises(CheckpointError, match=rf"'encoder\.layer\.2\..*' and {len(lost) - 1} more\.$"):
        load(bert, device="cpu")


def test_a_layer_that_the_config_does_not_have_is_refused(bert: Checkpoint) -> None:
    made.configure(bert, num_hidden_layers=2)
    with pytest.raises(CheckpointError, match=r"no place for the bert tensor 'encoder\.layer\.2\."):
        load(bert, device="cpu")


def test_a_tensor_of_another_shape_is_refused(bert: Checkpoint) -> None:
    made.configure(bert, intermediate_size=40)
    with pytest.raises(CheckpointError, match="transformers can't open it"):
        load(bert, device="cpu")


@pytest.mark.parametrize(
    "name",
    [
        "pooler.dense.weight",
        "embeddings.position_ids",
        "cls.predictions.bias",
        "lm_head.decoder.weight",
        "bert.pooler.dense.bias",
    ],
)
def test_what_stands_beside_the_encoder_is_left_out(bert: Checkpoint, name: str) -> None:
    made.rewrite(bert, lambda held: held.update({name: torch.zeros(4)}))
    assert load(bert, device="cpu").card.dimensions == 64


def test_a_checkpoint_without_pooler_embeds(bert: Checkpoint) -> None:
    made.rewrite(bert, lambda held: [held.pop(name) for name in made.tensors(bert) if "pooler" in name])
    assert not any("pooler" in name for name in made.tensors(bert))
    assert load(bert, device="cpu").card.dimensions == 64


@pytest.mark.parametrize("lost", ["bert.pooler.dense.weight", "classifier.weight", "classifier.bias"])
def test_a_reranker_needs_its_pooler_and_its_head(reranker: Checkpoint, lost: str) -> None:
    made.rewrite(reranker, lambda held: held.pop(lost))
    with pytest.raises(CheckpointError, match=f"lack the bert tensor '{lost}'"):
        load(reranker, device="cpu")


def test_an_embedder_asked_to_rerank_has_no_head(bert: Checkpoint) -> None:
    made.configure(bert, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
    with pytest.raises(CheckpointError, match=r"'classifier.bias' and 1 more"):
        load(replace(bert, task="rerank"), device="cpu")


def test_a_reranker_has_one_label(reranker: Checkpoint) -> None:
    made.configure(reranker, id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 0, "b": 1, "c": 2})
    with pytest.raises(CheckpointError, match=r"a reranker has 1 label, config.json has 3"):
        load(reranker, device="cpu")


def test_an_encoder_loads_out_of_a_model_with_a_head(bert: Checkpoint, reranker: Checkpoint) -> None:
    """Tensors under `bert.` beside a classifier: the base model alone is taken."""
    embedder = replace(reranker, task="embed", pooling=("cls",))
    assert load(embedder, device="cpu").card.dimensions == 64


def test_pickle_alone_is_refused(bert: Checkpoint) -> None:
    bert.weights[0].rename(bert.folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="transformers can't open it"):
        load(bert, device="cpu")


def test_a_cut_file_is_one_line(bert: Checkpoint) -> None:
    whole = bert.weights[0].read_bytes()
    bert.weights[0].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="transformers can't open it") as raised:
        load(bert, device="cpu")
    assert "\n" not in str(raised.value)


def test_shards_are_put_together(bert: Checkpoint, tmp_path: Path) -> None:
    model = transformers.AutoModel.from_pretrained(bert.folder)
    bert.weights[0].unlink()
    model.save_pretrained(bert.folder, max_shard_size="50KB")
    sharded = read(bert.folder)
    assert len(sharded.weights) > 1
    assert load(sharded, device="cpu").card.weight_bytes > 100_000
    made_up = json.loads((bert.folder / "model.safetensors.index.json").read_text())["weight_map"]
    (bert.folder / made_up["encoder.layer.1.output.dense.weight"]).unlink()
    with pytest.raises(CheckpointError):
        load(sharded, device="cpu")


def test_an_unknown_family_is_one_line(bert: Checkpoint) -> None:
    made.configure(bert, model_type="brand-new")
    with pytest.raises(CheckpointError, match="brand-new") as raised:
        load(bert, device="cpu")
    assert "\n" not in str(raised.value)


def test_code_of_the_repository_is_never_run(bert: Checkpoint) -> None:
    mark = bert.folder / "ran"
    (bert.folder / "modeling.py").write_text(f"open({str(mark)!r}, 'w')")
    made.configure(
        bert, model_type="brand-new", auto_map={"AutoConfig": "modeling.Config", "AutoModel": "modeling.Model"}
    )
    with pytest.raises(CheckpointError):
        load(bert, device="cpu")
    assert not mark.exists()


def test_a_decoder_of_an_encoder_decoder_is_never_taken_for_an_encoder(bert: Checkpoint, tmp_path: Path) -> None:
    transformers.BartConfig(d_model=16).save_pretrained(bert.folder)
    with pytest.raises(CheckpointError, match="no embed model for the family 'bart'"):
        load(replace(bert, family="bart"), device="cpu")


def test_quantised_weights_are_refused(bert: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match=r"quantised.*BACKEND=mlx"):
        load(replace(bert, quantization={"bits": 4, "group_size": 64}), device="cpu")


# dense layers


@pytest.mark.parametrize(
    "activation", ["torch.nn.modules.activation.MultiheadAttention", "os.system", "Linear", "x.Tanh"]
)
def test_an_activation_that_torch_does_not_have_is_refused(bert: Checkpoint, tmp_path: Path, activation: str) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"linear.weight": torch.zeros(3, 64)}, file)
    with pytest.raises(CheckpointError, match=r"is not one of torch.nn's"):
        load(replace(bert, dense=(Dense(file, activation, bias=False),)), device="cpu")


def test_a_dense_layer_without_its_bias_is_refused(bert: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"linear.weight": torch.zeros(3, 64)}, file)
    with pytest.raises(CheckpointError, match=r"linear.bias"):
        load(replace(bert, dense=(Dense(file, "Tanh", bias=True),)), device="cpu")
    with pytest.raises(CheckpointError, match="Dense layer"):
        load(replace(bert, dense=(Dense(tmp_path / "none", "Tanh", bias=True),)), device="cpu")
