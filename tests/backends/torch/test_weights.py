"""Loading: the whole model, or one sentence for every way in which files do not make it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.backends import made
from vecgate.backends.torch import load
from vecgate.core import Batch, Checkpoint, Dense, Tokens
from vecgate.engine.checkpoint import read
from vecgate.errors import CheckpointError


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


# the whole model


def test_a_missing_tensor_is_refused_by_name(bert: Checkpoint) -> None:
    made.rewrite(bert, lambda held: held.pop("encoder.layer.1.output.dense.weight"))
    with pytest.raises(
        CheckpointError, match=r"model.safetensors lacks the bert tensor 'encoder.layer.1.output.dense.weight'\.$"
    ):
        load(bert, device="cpu")


def test_several_missing_tensors_are_counted(bert: Checkpoint) -> None:
    lost = [name for name in made.tensors(bert) if name.startswith("encoder.layer.2.")]
    made.rewrite(bert, lambda held: [held.pop(name) for name in lost])
    with pytest.raises(CheckpointError, match=rf"'encoder\.layer\.2\..*' and {len(lost) - 1} more\.$"):
        load(bert, device="cpu")


def test_a_layer_that_the_config_does_not_have_is_refused(bert: Checkpoint) -> None:
    made.configure(bert, num_hidden_layers=2)
    with pytest.raises(CheckpointError, match=r"no place for, the bert tensor 'encoder\.layer\.2\."):
        load(bert, device="cpu")


def test_a_tensor_of_another_shape_is_refused(bert: Checkpoint) -> None:
    made.configure(bert, intermediate_size=40)
    with pytest.raises(CheckpointError) as raised:
        load(bert, device="cpu")
    assert str(raised.value) == (
        f"{bert.weights[0]}: the bert tensor 'encoder.layer.0.intermediate.dense.bias' has the shape "
        f"[{bert.config['intermediate_size']}], config.json asks for [40]."
    )


def test_several_names_for_one_tensor_are_refused(bert: Checkpoint) -> None:
    name = "encoder.layer.1.output.dense.bias"
    made.rewrite(bert, lambda held: held.update({f"bert.{name}": held[name] + 1}))
    with pytest.raises(CheckpointError, match=f"holds 'bert.{name}' with and without 'bert.'"):
        load(bert, device="cpu")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_weights_of_another_kind_of_number_are_refused(bert: Checkpoint, dtype: torch.dtype) -> None:
    """transformers would take them for floats, without a word."""
    name = "encoder.layer.1.output.dense.weight"
    made.rewrite(bert, lambda held: held.update({name: held[name].to(dtype)}))
    with pytest.raises(CheckpointError, match=rf"model.safetensors: the bert tensor '{name}' holds [UIF]\d+"):
        load(bert, device="cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["embeddings.word_embeddings.weight", "encoder.layer.1.output.LayerNorm.bias"])
def test_a_number_that_is_none_is_refused_with_its_place(bert: Checkpoint, name: str, value: float) -> None:
    def damage(held: dict[str, torch.Tensor]) -> None:
        held[name].view(-1)[-1] = value

    made.rewrite(bert, damage)
    with pytest.raises(CheckpointError, match=f"model.safetensors: the bert tensor '{name}' holds NaN or infinity"):
        load(bert, device="cpu")


def test_a_number_too_large_for_the_type_is_told_from_a_damaged_one(bert: Checkpoint) -> None:
    name = "encoder.layer.1.output.dense.weight"
    made.rewrite(bert, lambda held: held.update({name: held[name] * 1e6}))
    with pytest.raises(CheckpointError, match=f"the bert tensor '{name}' overflows in float16; use DTYPE=float32"):
        load(bert, device="cpu", dtype="float16")


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
    with pytest.raises(CheckpointError, match=f"lacks the bert tensor '{lost}'"):
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


def pickled(bert: Checkpoint, value: object) -> Checkpoint:
    """The checkpoint as its reader gives it where pickle was explicitly allowed."""
    path = bert.folder / "pytorch_model.bin"
    torch.save(value, path)
    return replace(bert, weights=(path,))


def test_pickled_weights_give_the_same_rows(bert: Checkpoint) -> None:
    batch = Batch((Tokens(np.array([2, 9, 7, 3], np.int32)),))
    expected = load(bert, device="cpu").forward(batch)
    old = pickled(bert, load_file(bert.weights[0]))
    bert.weights[0].unlink()
    np.testing.assert_array_equal(load(old, device="cpu").forward(batch), expected)
    lost = pickled(
        bert, {name: one for name, one in torch.load(old.weights[0]).items() if "layer.1.output" not in name}
    )
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin lacks the bert tensor 'encoder.layer.1.output"):
        load(lost, device="cpu")


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("it ran",)


@pytest.mark.parametrize("value", [{"a": Bomb()}, [torch.zeros(1)], {"a": 1}])
def test_a_pickle_runs_nothing_and_holds_tensors(
    bert: Checkpoint, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin can't be read \(.*fetch it again\.$"):
        load(pickled(bert, value), device="cpu")
    assert "it ran" not in capsys.readouterr().out


def test_a_cut_file_is_one_line(bert: Checkpoint) -> None:
    whole = bert.weights[0].read_bytes()
    bert.weights[0].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"model.safetensors can't be read \(.*\); fetch it again\.$") as raised:
        load(bert, device="cpu")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value"), [("hidden_size", "wide"), ("num_attention_heads", 7), ("hidden_act", "none")]
)
def test_a_configuration_that_makes_no_model_is_one_line(bert: Checkpoint, key: str, value: object) -> None:
    made.configure(bert, **{key: value})
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


def test_code_of_the_repository_is_never_run(bert: Checkpoint) -> None:
    mark = bert.folder / "ran"
    (bert.folder / "modeling.py").write_text(f"open({str(mark)!r}, 'w')")
    made.configure(bert, auto_map={"AutoConfig": "modeling.Config", "AutoModel": "modeling.Model"})
    assert load(bert, device="cpu").card.dimensions == 64
    made.configure(bert, model_type="brand-new")
    with pytest.raises(CheckpointError, match="transformers can't open it") as raised:
        load(bert, device="cpu")
    assert "\n" not in str(raised.value)
    assert not mark.exists()


def test_a_decoder_of_an_encoder_decoder_is_never_taken_for_an_encoder(bert: Checkpoint) -> None:
    transformers.BartConfig(d_model=16).save_pretrained(bert.folder)
    with pytest.raises(CheckpointError, match="no embed model for the family 'bert'"):
        load(bert, device="cpu")  # as a table with a wrong row would have it


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
    with pytest.raises(CheckpointError, match=r"none.safetensors can't be read \(No such file or directory"):
        load(replace(bert, dense=(Dense(tmp_path / "none.safetensors", "Tanh", bias=True),)), device="cpu")


@pytest.mark.parametrize(
    ("weight", "bias", "said"),
    [
        (torch.zeros(3, 60), torch.zeros(3), "'linear.weight' takes 60 numbers, what is before it gives 64"),
        (torch.zeros(3, 64), torch.zeros(4), r"can't have the shapes \[3, 64\] and \[4\]"),
        (torch.zeros(3), torch.zeros(3), r"can't have the shapes \[3\] and \[3\]"),
        (torch.full((3, 64), float("nan")), torch.zeros(3), "'linear.weight' holds NaN or infinity"),
        (torch.zeros(3, 64), torch.full((3,), float("inf")), "'linear.bias' holds NaN or infinity"),
    ],
)
def test_a_dense_layer_that_does_not_fit_is_refused(
    bert: Checkpoint, tmp_path: Path, weight: torch.Tensor, bias: torch.Tensor, said: str
) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"linear.weight": weight, "linear.bias": bias}, file)
    with pytest.raises(CheckpointError, match=f"model.safetensors: .*{said}"):
        load(replace(bert, dense=(Dense(file, "Tanh", bias=True),)), device="cpu")
