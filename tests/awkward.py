"""40 texts that find mistakes: empty, blank, one character, every script, very long, doubled, of mixed lengths."""

from __future__ import annotations

SENTENCE = "The quick brown fox jumps over the lazy dog while seven wizards quietly vex the jolt. "

TEXTS: list[str] = [
    "",
    " ",
    "\n",
    "\t \r\n  ",
    "a",
    "A",
    ".",
    "0",
    "🙂",
    "👩‍👩‍👧‍👦🏳️‍🌈🇨🇭",
    "你好，世界。今天天气很好。",
    "東京は日本の首都です。",
    "대한민국의 수도는 서울입니다.",
    "مرحبا بالعالم، كيف حالك اليوم؟",
    "שלום עולם",
    "नमस्ते दुनिया",
    "Привет, мир! Как дела?",
    "Γειά σου Κόσμε",
    "Čeština, ščřžýáíé; Türkçe: ığüşöç; Việt Nam",
    "cafe\u0301 against caf\u00e9 and ﬁne ligatures",
    "import os\nimport sys\n\n\ndef main() -> int:\n    return 0\n",
    "SELECT * FROM users WHERE id = 1; DROP TABLE users; --",
    "<p>Hello <b>world</b> &amp; others</p>",
    '{"key": [1, 2.5, null, true], "nested": {"a": "b"}}',
    "https://example.com/a/very/long/path?with=query&and=more#fragment",
    "[CLS] literal special tokens [SEP] in the text [MASK] [PAD] [UNK]",
    "\u200b\u200czero\u200dwidth\ufeff",
    "control \x00 \x01 \x7f characters",
    "\ud7ff\ue000\ufffd private use",
    "antidisestablishmentarianism" * 4,
    "x" * 10_000,
    "word " * 2_000,
    (SENTENCE * 120)[:10_000],
    "深" * 10_000,
    "same text twice",
    "same text twice",
    SENTENCE,
    SENTENCE * 3,
    SENTENCE * 9,
    "How many people live in Berlin?",
]

assert len(TEXTS) == 40
