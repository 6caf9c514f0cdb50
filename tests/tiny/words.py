"""Whole tokenizers (normalizer, pre-tokenizer, post-processor) with vocabularies made by hand; knows no model."""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

WORDS = (
    "the a of and to in is that it for as with was on are be this have from or one had by word but not what all were"
    " we when your can said there use an each which she do how their if will up other about out many then them these"
    " so some her would make like him into time has look two more write go see number no way could people my than"
    " first water been call who oil its now find long down day did get come made may part quick brown fox jumps over"
    " lazy dog hello world query document passage cat sat mat berlin paris capital france germany live"
).split()
CHARS = [chr(code) for code in range(33, 127)]
OTHERS = list("äöüßéèçñ你好世界中文深東京日本の首都です한국어مرحباשלוםПриветмирαβγ。、，")
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's pre-tokenizer: words, single digits, punctuation, line ends."""
BERT_NAMES = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
XLMR_NAMES = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
QWEN_NAMES = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
GEMMA_NAMES = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
LLAMA_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
LLAMA3_NAMES = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}


def wordpiece() -> Tokenizer:
    """BERT's: lower case, punctuation and CJK split, [CLS] A [SEP] B [SEP] with types 0 and 1; 128 tokens baked in."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = _wordpieces(specials, "[UNK]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def mpnet() -> Tokenizer:
    """MPNet's: BERT's pieces between RoBERTa's specials; 48 tokens baked in, fewer than its model takes."""
    tokenizer = _wordpieces(["<s>", "<pad>", "</s>", "[UNK]", "<mask>"], "[UNK]", 48)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    return tokenizer


def _wordpieces(specials: list[str], unknown: str, baked: int = 128) -> Tokenizer:
    lowered = [*WORDS, *(char for char in CHARS if not char.isupper()), *OTHERS]
    pieces = dict.fromkeys([*lowered, *(f"##{one}" for one in [*CHARS[64:90], *CHARS[15:25], *OTHERS, "ing", "ed"])])
    vocab = {token: at for at, token in enumerate([*specials, *pieces])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=unknown, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens(specials)
    tokenizer.enable_truncation(baked)
    tokenizer.enable_padding(length=baked)
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


def roberta() -> Tokenizer:
    """RoBERTa's: GPT-2's bytes, specials first, <s> A </s></s> B </s>."""
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = _bytes([*specials], ["<mask>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    return tokenizer


def modern() -> Tokenizer:
    """ModernBERT's: GPT-NeoX's bytes, specials last, [CLS] A [SEP] B [SEP] without types."""
    tokenizer = _bytes([], ["[PAD]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _templated(tokenizer, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ["[CLS]", "[SEP]"])


def qwen(*, end: bool = True) -> Tokenizer:
    """Qwen's: end: <|endoftext|> after each text, as the embedding models have it; the rerankers have no template."""
    tokenizer = _bytes([], ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], whole=("yes", "no", "Yes"))
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "</think>")])
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    if not end:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        return tokenizer
    return _templated(tokenizer, "$A <|endoftext|>", "$A $B <|endoftext|>", ["<|endoftext|>"])


def llama3() -> Tokenizer:
    """Llama 3's: bytes after <|begin_of_text|>, nothing at the end."""
    tokenizer = _bytes([], ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    start = "<|begin_of_text|>"
    return _templated(tokenizer, f"{start} $A", f"{start} $A {start} $B", [start])


def llama() -> Tokenizer:
    """Llama 2's and Mistral's: sentencepiece pairs with bytes to fall back on; <s> A, and no </s>: what e5-mistral's
    file says, though the model was trained with one."""
    tokenizer = _pairs(["<unk>", "<s>", "</s>"], "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def gemma() -> Tokenizer:
    """Gemma's: sentencepiece pairs without a space in front, <bos> A <eos>."""
    tokenizer = _pairs(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"], "")
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>",
        pair="<bos> $A <eos> <bos>:1 $B:1 <eos>:1",
        special_tokens=[("<bos>", 2), ("<eos>", 1)],
    )
    return tokenizer


def _bytes(before: list[str], after: list[str], whole: tuple[str, ...] = ()) -> Tokenizer:
    """Byte-level pairs: nothing is unknown, and no space is lost. `whole`: words that are one token without a space."""
    vocab = {token: at for at, token in enumerate([*before, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    merges = _merges(vocab, [*(f"Ġ{word}" for word in WORDS), *whole])
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*before, *after])
    return tokenizer


def _pairs(specials: list[str], start: str) -> Tokenizer:
    """Sentencepiece's pairs: U+2581 for a space, <0xNN> for the bytes of what is unknown."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {token: at for at, token in enumerate(dict.fromkeys([*specials, *fallback, "▁", *CHARS, *OTHERS]))}
    merges = _merges(vocab, [*(f"▁{word}" for word in WORDS)])
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if start else [])])
    tokenizer.add_special_tokens(specials)
    return tokenizer


def _merges(vocab: dict[str, int], words: list[str]) -> list[tuple[str, str]]:
    """The merges that make each word one token, from its left; what they make is added to the vocabulary."""
    merges: list[tuple[str, str]] = []
    for word in words:
        left = word[0]
        for char in word[1:]:
            if left + char not in vocab:
                merges.append((left, char))
                vocab[left + char] = len(vocab)
            left += char
    return merges


def _templated(tokenizer: Tokenizer, single: str, pair: str, specials: list[str]) -> Tokenizer:
    ids = [(token, tokenizer.token_to_id(token)) for token in specials]
    step = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), step])
    return tokenizer


def id_of(tokenizer: Tokenizer, token: str) -> int:
    found: int | None = tokenizer.token_to_id(token)
    assert found is not None, token
    return found
