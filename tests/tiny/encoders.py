"""Embedding models that read both ways: BERT and its kin, MPNet, DistilBERT, ModernBERT, NomicBERT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer

from tests.tiny import files, words
from tests.tiny.weights import centre, sizes, vary

BERT_IDS: dict[str, Any] = {"pad_token_id": 0}
XLMR_IDS: dict[str, Any] = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
IDENTITY = "torch.nn.modules.linear.Identity"
TANH = "torch.nn.modules.activation.Tanh"


def bert_config(tokenizer: Tokenizer, **more: Any) -> transformers.BertConfig:
    return transformers.BertConfig(**sizes(tokenizer), **BERT_IDS, max_position_embeddings=128, **more)


def xlmr_config(tokenizer: Tokenizer, **more: Any) -> transformers.XLMRobertaConfig:
    return transformers.XLMRobertaConfig(
        **sizes(tokenizer), **XLMR_IDS, max_position_embeddings=130, type_vocab_size=1, layer_norm_eps=1e-5, **more
    )


def modern_config(tokenizer: Tokenizer, **more: Any) -> transformers.ModernBertConfig:
    named = {"pad": "[PAD]", "cls": "[CLS]", "bos": "[CLS]", "sep": "[SEP]", "eos": "[SEP]"}
    ids: dict[str, Any] = {f"{name}_token_id": tokenizer.token_to_id(token) for name, token in named.items()}
    ids["global_attn_every_n_layers"] = 2
    return transformers.ModernBertConfig(
        **sizes(tokenizer), **ids, max_position_embeddings=256, local_attention=16, **more
    )


MODERN_HUB = {"global_attn_every_n_layers": 2, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0}
MODERN_LATER = ("layer_types", "rope_parameters")
"""ModernBERT's config as the hub has it, and the keys by which transformers 5 says the same."""


def bert(folder: Path) -> None:
    """all-MiniLM: mean, Normalize, 64 tokens by sentence_bert_config.json, position_ids and a pooler in the file."""
    tokenizer = words.wordpiece()
    model = transformers.BertModel(bert_config(tokenizer))
    vary(model)
    centre(model, _last_norm(model), tokenizer, "mean")
    files.save(model, folder, more={"embeddings.position_ids": torch.arange(128)[None]})
    files.save_tokenizer(
        tokenizer, folder, words.BERT_NAMES, types=True, kind="BertTokenizer", do_lower_case=True, model_max_length=128
    )
    files.chain(folder, "Transformer", "Pooling", "Normalize")
    files.pooling(folder, "mean_tokens", include_prompt=None)
    files.limit(folder, 64)
    files.shared(folder)


def bge(folder: Path) -> None:
    """mxbai-embed-large: BERT pooled at [CLS] without Normalize, a prompt for queries, float16 on disk, old norm names."""
    tokenizer = words.wordpiece()
    model = transformers.BertModel(bert_config(tokenizer))
    vary(model)
    centre(model, _last_norm(model), tokenizer, "cls")
    files.save(model, folder, dtype=torch.float16, rename=_old_norms)
    files.save_tokenizer(
        tokenizer, folder, words.BERT_NAMES, types=True, kind="BertTokenizer", do_lower_case=True, model_max_length=96
    )
    files.chain(folder, "Transformer", "Pooling")
    files.pooling(folder, "cls_token")
    files.limit(folder, 96)
    query = "Represent this sentence for searching relevant passages: "
    files.shared(folder, {"query": query, "passage": ""})


def _old_norms(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def roberta(folder: Path) -> None:
    """all-roberta: mean, Normalize, `roberta.` before each key and the head of its training after them; a default prompt,
    and texts in lower case, which its tokenizer does not see to."""
    tokenizer = words.roberta()
    config = transformers.RobertaConfig(
        **sizes(tokenizer), **XLMR_IDS, max_position_embeddings=130, type_vocab_size=1, layer_norm_eps=1e-5
    )
    model = transformers.RobertaForMaskedLM(config)
    vary(model)
    centre(model.roberta, _last_norm(model.roberta), tokenizer, "mean", "sts: ")
    files.save(model, folder)
    files.save_tokenizer(tokenizer, folder, words.XLMR_NAMES | {"mask_token": "<mask>"}, model_max_length=128)
    files.chain(folder, "Transformer", "Pooling", "Normalize", new=True)
    files.new_pooling(folder, "mean")
    files.limit(folder, 96, lower=True, name="roberta")
    prompts = {"question": "Question: ", "sts": "sts: "}
    files.shared(folder, prompts, default_prompt_name="sts", similarity_fn_name="dot")


def xlmr(folder: Path) -> None:
    """bge-m3: pooled at <s>, Normalize, 128 tokens of a position table of 130; with multilingual-e5's prompts."""
    tokenizer = words.unigram()
    model = transformers.XLMRobertaModel(xlmr_config(tokenizer))
    vary(model)
    centre(model, _last_norm(model), tokenizer, "cls")
    files.save(model, folder)
    files.save_tokenizer(tokenizer, folder, words.XLMR_NAMES, model_max_length=128)
    files.chain(folder, "Transformer", "Pooling", "Normalize", new=True)
    files.new_pooling(folder, "cls")
    files.shared(folder, {"query": "query: ", "document": "passage: "})


def modernbert(folder: Path) -> None:
    """gte-modernbert: pooled at [CLS], no Normalize, float16 on disk; a local window of 16, so that only texts over 9
    tokens show a missing mask. Its config's classifier_pooling is not the pooling."""
    tokenizer = words.modern()
    model: Any = transformers.ModernBertModel(modern_config(tokenizer, classifier_pooling="mean"))
    vary(model)
    with torch.no_grad():
        for layer in model.layers:
            layer.attn.Wo.weight.mul_(1.5)  # or [CLS] would tell of itself more than of its text
    files.save(model, folder, dtype=torch.float16, config=MODERN_HUB, without=MODERN_LATER)
    files.save_tokenizer(tokenizer, folder, words.BERT_NAMES, model_max_length=1000000000000000019884624838656)
    files.chain(folder, "Transformer", "Pooling")
    files.pooling(folder, "cls_token")
    files.limit(folder, 256)
    files.shared(folder, {})


def modernbert_mean(folder: Path) -> None:
    """nomic's modernbert-embed: mean, Normalize, its prompts, and the config as transformers 5 writes it."""
    tokenizer = words.modern()
    model = transformers.ModernBertModel(modern_config(tokenizer))
    vary(model)
    files.save(model, folder)
    files.save_tokenizer(tokenizer, folder, words.BERT_NAMES, model_max_length=256)
    files.chain(folder, "Transformer", "Pooling", "Normalize", new=True)
    files.pooling(folder, "mean_tokens")
    files.shared(folder, {"query": "search_query: ", "document": "search_document: "})


NOMIC_HUB: dict[str, Any] = {
    "model_type": "nomic_bert",
    "architectures": ["NomicBertModel"],
    "activation_function": "swiglu",
    "n_embd": 64,
    "n_head": 4,
    "n_layer": 3,
    "n_inner": 128,
    "n_positions": 128,
    "layer_norm_epsilon": 1e-12,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "max_trained_positions": 128,
    "prenorm": False,
    "parallel_block": False,
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "use_rms_norm": False,
    "use_flash_attn": True,
    "causal": False,
    "tie_word_embeddings": True,
    "type_vocab_size": 2,
    "pad_vocab_size_multiple": 64,
    "torch_dtype": "float32",
}
"""NomicBERT's config as the hub has it, less its auto_map."""


def nomic_bert(folder: Path) -> None:
    """nomic-embed-text: the hub's keys and config, a vocabulary padded to a multiple of 64, mean, Normalize, prompts."""
    vocabulary = _nomic(folder)
    files.write(folder / "config.json", NOMIC_HUB | {"vocab_size": vocabulary})


def nomic_bert_native(folder: Path) -> None:
    """The same weights with the config of transformers' own class."""
    _nomic(folder)


def _nomic(folder: Path) -> int:
    tokenizer = words.wordpiece()
    vocabulary = -(-tokenizer.get_vocab_size() // 64) * 64
    config = transformers.NomicBertConfig(**sizes(tokenizer) | {"vocab_size": vocabulary}, max_position_embeddings=128)
    model = transformers.NomicBertModel(config)
    vary(model)
    files.save(model, folder)
    files.save_tokenizer(
        tokenizer, folder, words.BERT_NAMES, types=True, kind="BertTokenizer", do_lower_case=True, model_max_length=8192
    )
    files.chain(folder, "Transformer", "Pooling", "Normalize")
    files.pooling(folder, "mean_tokens", include_prompt=None)
    files.limit(folder, 128)
    prompts = {"search_query": "search_query: ", "search_document": "search_document: ", "clustering": "clustering: "}
    files.shared(folder, prompts | {"query": "search_query: ", "document": "search_document: "})
    return vocabulary


def mpnet(folder: Path) -> None:
    """all-mpnet-base-v2: mean, Normalize, positions offset as RoBERTa's, relative positions in every layer's scores."""
    tokenizer = words.mpnet()
    config = transformers.MPNetConfig(
        **sizes(tokenizer),
        **XLMR_IDS,
        max_position_embeddings=130,
        layer_norm_eps=1e-5,
        relative_attention_num_buckets=32,
    )
    model = transformers.MPNetModel(config)
    vary(model)
    with torch.no_grad():
        model.encoder.relative_attention_bias.weight.mul_(4)
    centre(model, _last_norm(model), tokenizer, "mean")
    files.save(model, folder)
    named = words.XLMR_NAMES | {"unk_token": "[UNK]", "mask_token": "<mask>"}
    files.save_tokenizer(tokenizer, folder, named, kind="MPNetTokenizer", do_lower_case=True, model_max_length=128)
    files.chain(folder, "Transformer", "Pooling", "Normalize")
    files.pooling(folder, "mean_tokens", include_prompt=None)
    files.limit(folder, 96)
    files.shared(folder)


def distilbert(folder: Path) -> None:
    """msmarco-distilbert-tas-b: pooled at [CLS], no Normalize, `distilbert.` before each key."""
    tokenizer = words.wordpiece()
    model = transformers.DistilBertModel(_distil_config(tokenizer))
    vary(model)
    centre(model, _distil_norm(model), tokenizer, "cls")
    files.save(model, folder, "DistilBertForMaskedLM", rename=lambda name: f"distilbert.{name}")
    files.save_tokenizer(
        tokenizer, folder, words.BERT_NAMES, kind="DistilBertTokenizer", do_lower_case=True, model_max_length=128
    )
    files.chain(folder, "Transformer", "Pooling")
    files.pooling(folder, "cls_token", include_prompt=None)
    files.limit(folder, 96, name="distilbert")
    files.shared(folder)


def distiluse(folder: Path) -> None:
    """distiluse: DistilBERT, mean, a Dense of another width with a bias and Tanh, no Normalize."""
    tokenizer = words.wordpiece()
    model = transformers.DistilBertModel(_distil_config(tokenizer))
    vary(model)
    centre(model, _distil_norm(model), tokenizer, "mean")
    files.save(model, folder)
    files.save_tokenizer(
        tokenizer, folder, words.BERT_NAMES, kind="DistilBertTokenizer", do_lower_case=True, model_max_length=128
    )
    files.chain(folder, "Transformer", "Pooling", "Dense")
    files.pooling(folder, "mean_tokens", include_prompt=None)
    files.dense(folder, "2_Dense", 64, 48, TANH, bias=True)
    files.limit(folder, 64)
    files.shared(folder)


def _distil_config(tokenizer: Tokenizer) -> transformers.DistilBertConfig:
    return transformers.DistilBertConfig(
        vocab_size=tokenizer.get_vocab_size(), dim=64, hidden_dim=128, n_layers=3, n_heads=4,
        max_position_embeddings=128, pad_token_id=0, initializer_range=sizes(tokenizer)["initializer_range"],
    )  # fmt: skip


def _distil_norm(model: Any) -> torch.nn.Module:
    norm: torch.nn.Module = model.transformer.layer[-1].output_layer_norm
    return norm


def pooled(folder: Path) -> None:
    """BERT with several poolings side by side, one of each kind."""
    _plain(folder)
    files.chain(folder, "Transformer", "Pooling", "Normalize", new=True)
    files.new_pooling(folder, ["cls", "max", "weightedmean", "lasttoken"])


def pooled_old(folder: Path) -> None:
    """The same in the old spelling, with the two means; the order is the library's, not the file's."""
    _plain(folder)
    files.chain(folder, "Transformer", "Pooling")
    files.pooling(folder, "mean_sqrt_len_tokens", "mean_tokens", "cls_token")


def instructor(folder: Path) -> None:
    """INSTRUCTOR's chain over BERT: the prompt takes part in attention and not in the mean; Dense without a bias."""
    _plain(folder)
    files.chain(folder, "Transformer", "Pooling", "Dense", "Normalize")
    files.pooling(folder, "mean_tokens", include_prompt=False)
    files.dense(folder, "2_Dense", 64, 64, IDENTITY, bias=False)
    files.shared(folder, {"query": "Represent the question: ", "document": "Represent the document: "})


def _plain(folder: Path) -> None:
    """BERT whose 96 tokens are the tokenizer's."""
    tokenizer = words.wordpiece()
    model = transformers.BertModel(bert_config(tokenizer))
    vary(model)
    centre(model, _last_norm(model), tokenizer, "mean")
    files.save(model, folder)
    files.save_tokenizer(
        tokenizer, folder, words.BERT_NAMES, types=True, kind="BertTokenizer", do_lower_case=True, model_max_length=96
    )


def _last_norm(model: Any) -> torch.nn.Module:
    norm: torch.nn.Module = model.encoder.layer[-1].output.LayerNorm
    return norm
