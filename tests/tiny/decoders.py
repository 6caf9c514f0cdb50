"""Embedding models made of decoders: Qwen3, EmbeddingGemma, Mistral, Qwen2, Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer

from tests.tiny import files, words
from tests.tiny.encoders import IDENTITY
from tests.tiny.weights import hush, sizes, vary

WEB_SEARCH = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
GROUPED: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 16}


def qwen3_config(tokenizer: Tokenizer, *, tied: bool = True, **more: Any) -> transformers.Qwen3Config:
    return transformers.Qwen3Config(
        **sizes(tokenizer),
        **GROUPED,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.token_to_id("<|endoftext|>"),
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
        **more,
    )


QWEN3_HUB: dict[str, Any] = {"rope_theta": 1000000, "rope_scaling": None, "sliding_window": None}
QWEN3_LATER = ("rope_parameters", "layer_types", "pad_token_id")


def qwen3(folder: Path) -> None:
    """Qwen3-Embedding-0.6B: flat keys, tied, bfloat16 on disk, <|endoftext|> after each text, pooled there."""
    tokenizer = words.qwen()
    model = transformers.Qwen3Model(qwen3_config(tokenizer))
    _finish_qwen3(model, tokenizer)
    files.save(model, folder, "Qwen3ForCausalLM", dtype=torch.bfloat16, config=_qwen3_hub(), without=QWEN3_LATER)
    _qwen3_files(folder, tokenizer)


def qwen3_untied(folder: Path) -> None:
    """Qwen3-Embedding-8B: untied, and yet without a head; in shards."""
    tokenizer = words.qwen()
    model = transformers.Qwen3Model(qwen3_config(tokenizer, tied=False))
    _finish_qwen3(model, tokenizer)
    files.save(model, folder, "Qwen3ForCausalLM", config=_qwen3_hub(), without=QWEN3_LATER, shard="200KB")
    _qwen3_files(folder, tokenizer)


def _finish_qwen3(model: Any, tokenizer: Tokenizer) -> None:
    vary(model)
    hush(model, words.id_of(tokenizer, "<|endoftext|>"))


def _qwen3_hub() -> dict[str, Any]:
    return {**QWEN3_HUB, "torch_dtype": "bfloat16"}


def _qwen3_files(folder: Path, tokenizer: Tokenizer) -> None:
    files.save_tokenizer(tokenizer, folder, words.QWEN_NAMES, kind="Qwen2Tokenizer", model_max_length=192)
    files.chain(folder, "Transformer", "Pooling", "Normalize")
    files.pooling(folder, "lasttoken")
    files.shared(folder, {"query": WEB_SEARCH, "document": ""})


def gemma3(folder: Path) -> None:
    """EmbeddingGemma: reads both ways, a window of 16 in the file that means |i-j| < 9, the last layer global, mean,
    two Dense without a bias, Normalize."""
    tokenizer = words.gemma()
    config = transformers.Gemma3TextConfig(
        **sizes(tokenizer),
        num_key_value_heads=1,
        head_dim=24,
        query_pre_attn_scalar=20,
        max_position_embeddings=160,
        use_bidirectional_attention=True,
        sliding_window=16,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    model = transformers.Gemma3TextModel(config)
    vary(model)
    hub = {
        "sliding_window": 16,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "_sliding_window_pattern": 6,
    }
    files.save(model, folder, "Gemma3TextModel", config=hub, without=("rope_parameters",))
    files.save_tokenizer(tokenizer, folder, words.GEMMA_NAMES, kind="GemmaTokenizer", model_max_length=160)
    files.chain(folder, "Transformer", "Pooling", "Dense", "Dense", "Normalize")
    files.pooling(folder, "mean_tokens")
    files.dense(folder, "2_Dense", 64, 96, IDENTITY, bias=False)
    files.dense(folder, "3_Dense", 96, 64, IDENTITY, bias=False)
    files.limit(folder, 128)
    prompts = {
        "query": "task: search result | query: ",
        "document": "title: none | text: ",
        "Clustering": "task: clustering | query: ",
        "STS": "task: sentence similarity | query: ",
    }
    files.shared(folder, prompts)


def mistral(folder: Path) -> None:
    """e5-mistral: float16 on disk, pooled at the last token, which should be the </s> that tokenizer.json forgets and
    tokenizer_config.json asks for; its window is no shorter than its limit."""
    tokenizer = words.llama()
    config = transformers.MistralConfig(
        **sizes(tokenizer),
        **GROUPED,
        max_position_embeddings=256,
        sliding_window=96,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        rms_norm_eps=1e-5,
    )
    model = transformers.MistralModel(config)
    vary(model)
    hush(model, 2)
    hub = {"rope_theta": 10000.0, "torch_dtype": "float16"}
    files.save(model, folder, dtype=torch.float16, config=hub, without=("rope_parameters", "head_dim"))
    files.save_tokenizer(
        tokenizer,
        folder,
        words.LLAMA_NAMES | {"pad_token": "</s>"},
        kind="LlamaTokenizer",
        add_bos_token=True,
        add_eos_token=True,
        model_max_length=1000000000000000019884624838656,
    )
    files.chain(folder, "Transformer", "Pooling", "Normalize")
    files.pooling(folder, "lasttoken", include_prompt=None)
    files.limit(folder, 96)
    query = f"{WEB_SEARCH} "
    sts = "Instruct: Retrieve semantically similar text.\nQuery: "
    files.shared(folder, {"web_search_query": query, "sts_query": sts})


def qwen2(folder: Path) -> None:
    """gte-Qwen2: reads both ways (is_causal false), biases on q, k and v, pooled at <|endoftext|>."""
    tokenizer = words.qwen()
    config = transformers.Qwen2Config(
        **sizes(tokenizer),
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.token_to_id("<|endoftext|>"),
        eos_token_id=tokenizer.token_to_id("<|endoftext|>"),
    )
    model = transformers.Qwen2Model(config)
    vary(model)
    hush(model, words.id_of(tokenizer, "<|endoftext|>"))
    hub = {"is_causal": False, "rope_theta": 1000000.0, "sliding_window": 256, "use_sliding_window": False}
    without = ("rope_parameters", "layer_types", "pad_token_id")
    files.save(model, folder, "Qwen2ForCausalLM", config=hub, without=without)
    named = {"pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    files.save_tokenizer(tokenizer, folder, named, kind="Qwen2Tokenizer", model_max_length=192)
    files.chain(folder, "Transformer", "Pooling", "Normalize")
    files.pooling(folder, "lasttoken")
    files.limit(folder, 160)
    files.shared(folder, {"query": f"{WEB_SEARCH} "})


def llama(folder: Path) -> None:
    """A Llama 3 embedder: `model.` before each key, its head beside them, positions scaled by rope_scaling."""
    tokenizer = words.llama3()
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = transformers.LlamaConfig(
        **sizes(tokenizer),
        **GROUPED,
        max_position_embeddings=256,
        rope_parameters={"rope_theta": 500000.0, **scaling},
        bos_token_id=tokenizer.token_to_id("<|begin_of_text|>"),
        eos_token_id=tokenizer.token_to_id("<|eot_id|>"),
    )
    model = transformers.LlamaForCausalLM(config)
    vary(model)
    hub = {"rope_theta": 500000.0, "rope_scaling": scaling, "torch_dtype": "bfloat16"}
    files.save(model, folder, dtype=torch.bfloat16, config=hub, without=("rope_parameters", "pad_token_id"))
    files.save_tokenizer(tokenizer, folder, words.LLAMA3_NAMES | {"pad_token": "<|end_of_text|>"}, model_max_length=128)
    files.chain(folder, "Transformer", "Pooling", "Normalize")
    files.pooling(folder, "mean_tokens")
    files.shared(folder, {"query": "query: ", "passage": "passage: "})
