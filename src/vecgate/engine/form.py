"""A pair in the form of a PairTemplate: what is tokenised, what stands fixed around it; cuts no row."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers

from vecgate.core import PairTemplate
from vecgate.engine.giants import longest_whole

FILLERS = ("0", "1 2 3 4")
"""What sentence-transformers puts in the place of both texts to find the ids that every row ends with."""


class Form:
    """head, ending: ids that survive every cut; `inside`: the ending is part of the text and comes back after a cut."""

    def __init__(self, template: PairTemplate, inner: tokenizers.Tokenizer) -> None:
        self._template = template
        self._inner = inner
        self.inside = template.whole
        self.after = template.suffix if self.inside else ""
        self.head: list[int] = [] if self.inside else self.ids(template.prefix)
        self.ending = self._common() if self.inside else self.ids(template.suffix)

    def __len__(self) -> int:
        return len(self.head) + len(self.ending)

    def ids(self, text: str) -> list[int]:
        found: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return found

    def before(self, query: str) -> str:
        """The text before a document."""
        first = self._template.prefix if self.inside else ""
        return f"{first}{self._template.lead}{query.strip() if self._template.strip else query}{self._template.middle}"

    def document(self, text: str) -> str:
        return text.strip() if self._template.strip else text

    def limited(self, texts: Sequence[str], most: int) -> list[tuple[str, int]]:
        """Each text up to the end of its `most`-th token, and how many tokens fell off (of a long one: at least)."""
        chars = longest_whole(most)
        found = self._inner.encode_batch([text[:chars] for text in texts], add_special_tokens=False)
        return [
            (text[: one.offsets[most - 1][1]], len(one.ids) - most) if len(one.ids) > most else (text[:chars], 0)
            for text, one in zip(texts, found)
        ]

    def _common(self) -> list[int]:
        """The last ids of every row, whatever its texts."""
        first, second = (self.ids(self.before(one) + one + self.after) for one in FILLERS)
        count = 0
        while count < min(len(first), len(second)) and first[-count - 1] == second[-count - 1]:
            count += 1
        return first[len(first) - count :] if count < min(len(first), len(second)) else []
