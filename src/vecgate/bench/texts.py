"""Texts that look like questions and documents, made of a seed and nothing else: no file, no network.

Sizes are in a word-piece tokenizer's tokens, which a client does not have: it reckons with TOKENS_A_WORD.
"""

from __future__ import annotations

from random import Random

TOKENS_A_WORD = 1.22
"""Of these texts for MiniLM's tokenizer, marks and both specials counted; tests/bench/test_texts.py measures it."""
QUERY_TOKENS = (8, 30)
CHUNK_TOKENS = (100, 256)
SENTENCE_WORDS = (6, 18)
QUESTIONS = (
    "what is the|how does the|why did a|which|where can I find the|when should the|who wrote the|is there a".split("|")
)
LINKS = (
    "the of and to in a is that for it as was with be by on not he from are at this but have an they which or had we were "
    "their been has would there can if more will about when its into some than may then other only them over also two"
).split()
COMMON = (
    "time people water system world number part work place case week company group problem fact hand government point "
    "student night state story area family money month book eye job word business issue side kind head house power rate "
    "price market report result change reason research level office door health person art war history party control "
    "value record season paper ground energy river theory method table letter memory forest island engine signal border "
    "harvest teacher village museum bridge patient climate language science network battery protein election budget"
).split()
VERBS = (
    "shows makes finds gives takes leads holds turns helps begins builds carries explains follows grows keeps measures "
    "moves needs offers opens produces raises reaches reduces returns supports uses describes replaced improved measured "
    "rejected translated estimated calibrated deployed archived negotiated"
).split()
QUALITIES = (
    "new old small large public early late common recent local national clear simple strong different important possible "
    "available economic medical natural political similar technical annual reliable northern coastal mechanical digital "
    "experimental seasonal photovoltaic"
).split()
RARE = (
    "asynchronous tokenizer mitochondria Byzantine Reykjavik thermodynamics kubernetes Shostakovich amortisation zoning "
    "phosphorylation Wittgenstein interferometer basalt hydroponics Tchaikovsky semiconductor polymerase idempotent 1987 "
    "2.4 37% EUR v3.11 COVID-19 GPT BM25 RFC-9110"
).split()
KINDS = ((LINKS, 40), (COMMON, 32), (QUALITIES, 12), (VERBS, 12), (RARE, 4))


def query(rng: Random) -> str:
    """A question of 8 to 30 tokens."""
    begin = rng.choice(QUESTIONS).split()
    return _cased([*begin, *_words(rng, max(1, _count(rng, QUERY_TOKENS) - len(begin)))]) + "?"


def chunk(rng: Random) -> str:
    """Sentences of 100 to 256 tokens together."""
    return of_tokens(rng, rng.randint(*CHUNK_TOKENS))


def mixed(rng: Random) -> str:
    """A question with a chance of 60 %, else a chunk."""
    return query(rng) if rng.random() < 0.6 else chunk(rng)


def of_tokens(rng: Random, tokens: int) -> str:
    """Sentences of about so many tokens."""
    left = max(1, round((tokens - 2) / TOKENS_A_WORD))
    sentences = []
    while left > 0:
        words = min(left, rng.randint(*SENTENCE_WORDS))
        sentences.append(_cased(_words(rng, words)) + ".")
        left -= words
    return " ".join(sentences)


def _count(rng: Random, tokens: tuple[int, int]) -> int:
    return round((rng.randint(*tokens) - 2) / TOKENS_A_WORD)


def _words(rng: Random, count: int) -> list[str]:
    lists = rng.choices([words for words, _ in KINDS], [weight for _, weight in KINDS], k=count)
    return [rng.choice(words) + ("," if rng.random() < 0.06 else "") for words in lists]


def _cased(words: list[str]) -> str:
    text = " ".join(words).rstrip(",")
    return text[:1].upper() + text[1:]
