"""Tiny random checkpoints in the real layout: `build(kind, folder)`, or `python tests/tiny.py FOLDER` for all of them.

Tokenizers are whole (normalizer, pre-tokenizer, post-processor) with vocabularies made by hand, seeds are fixed, and
weights are wide enough that different texts give rows with |cosine| < 0.9. Needs torch and transformers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

WORDS = (
    "the a of and to in is that it for as with was on are be this have from or one had by word but not what all were"
    " we when your can said there use an each which she do how their if will up other about out many then them these"
    " so some her would make like him into time has look two more write go see number no way could people my than"
    " first water been call who oil its now find long down day did get come made may part quick brown fox jumps over"
    " lazy dog hello world query document passage cat sat mat berlin paris capital france germany live"
).split()
CHARS = [chr(code) for code in range(33, 127)]
OTHERS = list("äöüßéèçñ你好世界中文深東京日本の首都です한국어مرحباשלוםПриветмирαβγ。、，")
BERT_NAMES = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
XLMR_NAMES = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
QWEN_NAMES = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
SEED = 20
SPREAD = 0.35
"""Standard deviation of the weights; at the usual 0.02 every text of a random model gives nearly the same row."""
SAMPLES = ["", *WORDS[::9], *(" ".join(WORDS[at::7]) for at in range(7)), *OTHERS[::5], *CHARS[::9]]
SAMPLES += ["".join(CHARS[at::6]) for at in range(6)] + ["".join(OTHERS[at : at + 12]) for at in range(0, 48, 12)]
"""Texts whose mean row is taken away from the last layer's bias: what all texts of a random encoder share."""


def wordpiece() -> Tokenizer:
    """BERT's: lower case, punctuation and CJK split, [CLS] A [SEP] B [SEP] with types 0 and 1; 128 tokens baked in."""
    lowered = [*WORDS, *(char for char in CHARS if not char.isupper()), *OTHERS]
    pieces = dict.fromkeys([*lowered, *(f"##{one}" for one in [*CHARS[64:90], *CHARS[15:25], *OTHERS, "ing", "ed"])])
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {token: at for at, token in enumerate([*specials, *pieces])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding(length=128)
    return tokenizer


def unigram() -> Tokenizer:
    """XLM-R's: sentencepiece unigrams, spaces as U+2581, <s> A </s></s> B </s> without types."""
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = dict.fromkeys(["▁", *(f"▁{word}" for word in WORDS), *CHARS, *OTHERS, "ing", "ed", "深深"])
    scored = [(token, 0.0) for token in specials]
    scored += [(token, -float(8 if len(token) == 1 else 5) - at / 1000) for at, token in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram([*scored, ("<mask>", 0.0)], unk_id=3))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([*specials, AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def bytelevel(*, template: dict[str, str], specials: list[str]) -> Tokenizer:
    """Byte-level BPE as GPT-2 split it: nothing is unknown, and no space is lost. Specials come last."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: at for at, char in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for word in [f"Ġ{word}" for word in WORDS]:
        left = word[0]
        for char in word[1:]:
            if left + char not in vocab:
                merges.append((left, char))
                vocab[left + char] = len(vocab)
            left += char
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    ids = [(token, tokenizer.token_to_id(token)) for token in specials]
    step = processors.TemplateProcessing(special_tokens=ids, **template)
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), step])
    return tokenizer


def modern_tokenizer() -> Tokenizer:
    return bytelevel(
        template={"single": "[CLS] $A [SEP]", "pair": "[CLS] $A [SEP] $B [SEP]"},
        specials=["[PAD]", "[CLS]", "[SEP]", "[MASK]"],
    )


def qwen_tokenizer() -> Tokenizer:
    """Qwen3-Embedding's: the end of the text is marked, nothing else."""
    return bytelevel(
        template={"single": "$A <|endoftext|>", "pair": "$A $B <|endoftext|>"}, specials=["<|endoftext|>", "<|im_end|>"]
    )


def bert_embedder(folder: Path) -> None:
    """Mean pooling, Normalize, 64 tokens by sentence_bert_config.json."""
    tokenizer = wordpiece()
    model = transformers.BertModel(_bert(tokenizer))
    _vary(model)
    _centre(model, tokenizer, lambda hidden: hidden.mean(0))
    _save(model, folder)
    _save_tokenizer(tokenizer, folder, BERT_NAMES, types=True, model_max_length=128)
    _sentence_transformer(folder, {"pooling_mode_mean_tokens": True}, normalize=True, old_paths=True)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": False})


def xlmr_embedder(folder: Path) -> None:
    """Pooling at <s>, Normalize, prompts, 128 tokens: a position table of 130 rows."""
    tokenizer = unigram()
    model = transformers.XLMRobertaModel(_xlmr(tokenizer))
    _vary(model)
    _centre(model, tokenizer, lambda hidden: hidden[0])
    _save(model, folder)
    _save_tokenizer(tokenizer, folder, XLMR_NAMES, types=False, model_max_length=128)
    _sentence_transformer(folder, {"pooling_mode": "cls"}, normalize=True)
    prompts = {"query": "query: ", "document": "passage: "}
    _write(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": None})


def modernbert_embedder(folder: Path) -> None:
    """Pooling at [CLS], no Normalize; a local window of 16, so that only texts over 9 tokens show a missing mask."""
    tokenizer = modern_tokenizer()
    named = {"pad": "[PAD]", "cls": "[CLS]", "bos": "[CLS]", "sep": "[SEP]", "eos": "[SEP]"}
    ids: dict[str, Any] = {f"{name}_token_id": tokenizer.token_to_id(token) for name, token in named.items()}
    ids["global_attn_every_n_layers"] = 2
    config = transformers.ModernBertConfig(**_size(tokenizer), **ids, max_position_embeddings=256, local_attention=16)
    model = transformers.ModernBertModel(config)
    _vary(model)
    _save(model, folder)
    _save_tokenizer(tokenizer, folder, BERT_NAMES, types=False, model_max_length=256)
    _sentence_transformer(folder, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, normalize=False)


def qwen3_embedder(folder: Path) -> None:
    """Causal, pooled at the last token, Normalize, bfloat16 on disk, Qwen3-Embedding's query prompt."""
    tokenizer = qwen_tokenizer()
    config = transformers.Qwen3Config(
        **_size(tokenizer), num_key_value_heads=2, head_dim=16, max_position_embeddings=256, tie_word_embeddings=True
    )
    model: Any = transformers.Qwen3Model(config)
    _vary(model)
    _save(model.to(torch.bfloat16), folder, architecture="Qwen3ForCausalLM")
    _save_tokenizer(tokenizer, folder, QWEN_NAMES, types=False, model_max_length=192)
    _sentence_transformer(folder, {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, normalize=True)
    query = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
    _write(folder / "config_sentence_transformers.json", {"prompts": {"query": query, "document": ""}})


def bert_reranker(folder: Path) -> None:
    """One logit, token types 0 and 1, no activation (as ms-marco-MiniLM)."""
    tokenizer = wordpiece()
    config = _bert(tokenizer, num_labels=1)
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    model = transformers.BertForSequenceClassification(config)
    _vary(model)
    _save(model, folder)
    _save_tokenizer(tokenizer, folder, BERT_NAMES, types=True, model_max_length=96)


def xlmr_reranker(folder: Path) -> None:
    """One logit, no token types, nothing said of an activation (as bge-reranker)."""
    tokenizer = unigram()
    model = transformers.XLMRobertaForSequenceClassification(_xlmr(tokenizer, num_labels=1))
    _vary(model)
    _save(model, folder)
    _save_tokenizer(tokenizer, folder, XLMR_NAMES, types=False, model_max_length=96)


KINDS: dict[str, Callable[[Path], None]] = {
    "bert": bert_embedder,
    "xlmr": xlmr_embedder,
    "modernbert": modernbert_embedder,
    "qwen3": qwen3_embedder,
    "bert-reranker": bert_reranker,
    "xlmr-reranker": xlmr_reranker,
}


def build(kind: str, folder: Path) -> Path:
    """The folder, filled with that checkpoint; the same bytes of weights each time."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        KINDS[kind](folder)
    return folder


def _size(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "initializer_range": SPREAD,
    }


def _bert(tokenizer: Tokenizer, **more: Any) -> transformers.BertConfig:
    return transformers.BertConfig(**_size(tokenizer), max_position_embeddings=128, pad_token_id=0, **more)


def _xlmr(tokenizer: Tokenizer, **more: Any) -> transformers.XLMRobertaConfig:
    ids: dict[str, Any] = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    return transformers.XLMRobertaConfig(
        **_size(tokenizer), **ids, max_position_embeddings=130, type_vocab_size=1, layer_norm_eps=1e-5, **more
    )


def _vary(model: Any) -> None:
    """Biases and norms are initialised to 0 and 1, which would hide a mapping that forgets them."""
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)


def _centre(model: Any, tokenizer: Tokenizer, pool: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Take the mean row of SAMPLES away from every row, through the last norm's bias; pool: (L, H) -> (H,)."""
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.no_padding()
    with torch.no_grad():
        ids = [torch.tensor([tokenizer.encode(text).ids]) for text in SAMPLES]
        rows = torch.stack([pool(model(input_ids=one).last_hidden_state[0]) for one in ids])
        model.encoder.layer[-1].output.LayerNorm.bias.sub_(rows.mean(0))


def _save(model: Any, folder: Path, architecture: str | None = None) -> None:
    model.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["architectures"] = [architecture or type(model).__name__]
    _write(path, config)


def _save_tokenizer(tokenizer: Tokenizer, folder: Path, named: dict[str, str], *, types: bool, **more: Any) -> None:
    """With a class that transformers takes from the file as it stands, instead of building its own."""
    tokenizer.save(str(folder / "tokenizer.json"))
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if types else ["input_ids", "attention_mask"]
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": inputs}
    _write(folder / "tokenizer_config.json", settings | named | more)


def _sentence_transformer(folder: Path, pooling: dict[str, Any], *, normalize: bool, old_paths: bool = False) -> None:
    """modules.json and 1_Pooling, with the class paths of before or after sentence-transformers 5.4."""
    where = {name: f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Normalize")}
    if not old_paths:
        where["Transformer"] = "sentence_transformers.base.modules.transformer.Transformer"
        where["Pooling"] = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
        where["Normalize"] = "sentence_transformers.base.modules.normalize.Normalize"
    names = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [{"idx": at, "name": str(at), "path": paths[at], "type": where[name]} for at, name in enumerate(names)]
    _write(folder / "modules.json", modules)
    _write(folder / "1_Pooling" / "config.json", {"embedding_dimension": 64, **pooling})


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2))


if __name__ == "__main__":
    for one in KINDS:
        print(build(one, Path(sys.argv[1]) / one))
