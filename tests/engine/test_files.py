"""What the files beside the weights say that can't be followed exactly: one sentence with the file and the key."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine import decoder
from vecgate.engine.checkpoint import read
from vecgate.errors import CheckpointError


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"query_length": 32}, "sets query_length to '32', which can't be followed: vecgate serves one vector a text"),
        ({"query_expansion": {"length": 32}}, "sets query_expansion"),
        ({"transformer_task": "fill-mask"}, "sets transformer_task to 'fill-mask'.*to embed it is feature-extraction"),
        ({"processing_kwargs": {"text": {"max_length": 4}}}, "sets processing_kwargs.*only chat_template is followed"),
        ({"modality_config": {"message": {"method": "forward"}}}, "sets modality_config.*an embedding model texts"),
    ],
)
def test_settings_of_the_transformer(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = decoder.make(tmp_path / "m")
    decoder.write(folder / "sentence_bert_config.json", settings)
    with pytest.raises(CheckpointError, match=rf"sentence_bert_config\.json {words}"):
        read(folder, task="embed")


def test_settings_that_change_nothing(tmp_path: Path) -> None:
    folder = decoder.make(tmp_path / "m")
    form = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    said = {"transformer_task": "feature-extraction", "modality_config": form, "module_output_name": "token_embeddings"}
    decoder.write(
        folder / "sentence_bert_config.json", {**said, "query_length": None, "processing_kwargs": {"text": {}}}
    )
    assert read(folder, task="embed").task == "embed"


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "mxfp4"])
def test_other_quantisations_than_mlxs_are_refused_by_name(method: str, tmp_path: Path) -> None:
    folder = decoder.make(tmp_path / "m", quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(CheckpointError, match=rf"config\.json sets quant_method to '{method}', which no backend reads"):
        read(folder, task="embed")


def test_a_quantisation_that_says_nothing_mlx_knows_is_refused(tmp_path: Path) -> None:
    folder = decoder.make(tmp_path / "m", quantization_config={"load_in_8bit": True})
    with pytest.raises(CheckpointError, match=r"config\.json says quantization_config, but neither bits nor a mode"):
        read(folder, task="embed")


def test_mlxs_quantisation_is_told(tmp_path: Path) -> None:
    said = {"group_size": 64, "bits": 4, "model.layers.0.mlp": False}
    for config in (
        {"quantization": said},
        {"quantization_config": said},
        {"quantization": said, "quantization_config": {"quant_method": "x"}},
    ):
        assert read(decoder.make(tmp_path / "m", **config), task="embed").quantization == said
    with pytest.raises(CheckpointError, match=r"config\.json must hold quantization as an object"):
        read(decoder.make(tmp_path / "m", quantization=4), task="embed")


def test_code_is_ignored_where_that_is_said(tmp_path: Path) -> None:
    folder = decoder.make(tmp_path / "m", auto_map={"AutoModel": "modeling.Evil"}, model_file="evil.py")
    with pytest.raises(
        CheckpointError, match=r"config\.json asks for code .*auto_map.*serve it by ours with --ignore-code"
    ):
        read(folder, task="embed")
    found = read(folder, task="embed", ignore_code=True)
    assert not {"auto_map", "model_file"} & found.config.keys()


@pytest.mark.parametrize(("name", "served"), [("Transformer", True), ("Reranker", False)])
def test_classes_of_the_repositorys_own(name: str, served: bool, tmp_path: Path) -> None:
    folder = decoder.make(tmp_path / "m")
    pooling = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    decoder.write(folder / "modules.json", [{"path": "", "type": f"custom_st.{name}"}, pooling])
    decoder.write(folder / "1_Pooling" / "config.json", {"pooling_mode": "lasttoken"})
    with pytest.raises(
        CheckpointError, match=f"names 'custom_st.{name}', code of the repository's own, which is never run"
    ):
        read(folder)
    said = []
    try:
        said.append(read(folder, ignore_code=True).pooling == ("last",))
    except CheckpointError:
        said.append(False)
    assert said == [served]


def test_the_type_of_pickle_is_the_configs(tmp_path: Path) -> None:
    folder = decoder.make(tmp_path / "m", torch_dtype="bfloat16")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    found = read(folder, task="embed", allow_pickle=True)
    assert (found.stored_dtype, found.weights, found.weight_bytes > 0) == (
        "bfloat16",
        (folder / "pytorch_model.bin",),
        True,
    )
    with pytest.raises(CheckpointError, match=r"only as pickle, which can run code and is not loaded.*--allow-pickle"):
        read(folder, task="embed")
