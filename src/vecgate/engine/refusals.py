"""What a text or a list of ids is refused for, in a sentence that names its place and the limit; knows no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from vecgate.engine.giants import Body
from vecgate.errors import InputTooLong, InvalidRequest


def no_room(max_tokens: int, specials: int, prompt: int = 0) -> InvalidRequest:
    """What to raise where the limit leaves nothing beside the special tokens and the prompt's."""
    taken = f"the special tokens ({specials})" + (f" and the prompt's ({prompt})" if prompt else "")
    return InvalidRequest(f"A limit of {max_tokens} tokens leaves no room for text beside {taken}.", "max_tokens")


def called(param: str, index: int) -> str:
    """An input as a sentence begins with it."""
    return {"query": "The query", "documents": f"Document {index}"}.get(param, f"Input {index}")


def refuse_over(what: str, body: Body, specials: int, max_tokens: int, param: str) -> None:
    """Raises InputTooLong where the body and its specials are over the limit, or nobody knows how long it is."""
    count = body.total + specials
    if count > max_tokens:
        least = "" if body.exact else "at least "
        raise InputTooLong(f"{what} has {least}{count} tokens; the limit is {max_tokens}.", param)
    if body.gave_up:
        limit = f"{body.gave_up} characters, the most that are looked at for a limit of {max_tokens} tokens"
        raise InputTooLong(f"{what} has more than {limit}.", param)


def refuse_longer(sizes: Sequence[int], most: int, message: str) -> None:
    """Raises InputTooLong for the first size over `most`; message: with places for its index and the size."""
    for index, size in enumerate(sizes):
        if size > most:
            raise InputTooLong(f"{message.format(index, size)} {most}.", "input")


def valid_texts(inputs: Sequence[str | Sequence[int]], param: str, first: int = 0) -> list[str]:
    """The texts among them; raises InvalidRequest for one that UTF-8 can't carry (JSON can spell half a character)."""
    for index, text in enumerate(inputs, first):
        if isinstance(text, str) and not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                code = f"U+{ord(text[error.start]):04X}"
                raise InvalidRequest(
                    f"Text {index} is not valid Unicode: it holds the lone surrogate {code}.", param
                ) from error
    return [text for text in inputs if isinstance(text, str)]
