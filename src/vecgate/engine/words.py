"""What a decoder's tokenizer.json says that decides a row: the special token after a text, the ids of single words."""

from __future__ import annotations

from pathlib import Path

from vecgate.engine.template import open_file, single_template
from vecgate.errors import CheckpointError

SPACES = "\u2581\u0120"
"""How sentencepiece and byte-level tokenizers write the space before a word."""


class Words:
    """One tokenizer, opened; raises CheckpointError where it can't be read."""

    def __init__(self, root: Path) -> None:
        self._path = root / "tokenizer.json"
        self._inner = open_file(self._path)
        tail = single_template(self._inner, self._path).tail
        self.ending: str | None = self._inner.id_to_token(tail[-1]) if tail else None
        """The special token that is put at the end of a text, if there is one."""

    def id_of(self, token: str) -> int:
        found: int | None = self._inner.token_to_id(token)
        if found is None:
            raise CheckpointError(
                f"{self._path} has no token {token!r}, with which each text must end; fetch it again."
            )
        return found

    def single(self, word: str) -> int:
        """The id of a word that is one token."""
        ids = self._inner.encode(word, add_special_tokens=False).ids
        tokens = [str(self._inner.id_to_token(one)) for one in ids]
        if [token.lstrip(SPACES) for token in tokens] != [word]:
            raise CheckpointError(
                f"{self._path} makes {' '.join(tokens) or 'nothing'} of {word!r}; such a reranker scores by one token of yes "
                "and one of no."
            )
        return int(ids[0])
