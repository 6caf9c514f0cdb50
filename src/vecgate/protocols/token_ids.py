"""Whose token ids a request holds, the model's own or OpenAI's, and the inputs that they stand for.

The only door to tiktoken, whose tables are read from a folder; `fetch`, which no request reaches, fills it. Knows
traits.Engine, nothing of requests.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException, IncompleteRead
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from vecgate.errors import CheckpointError, ConfigError, InvalidRequest
from vecgate.protocols import Site
from vecgate.traits import Engine

if TYPE_CHECKING:
    import tiktoken

log = logging.getLogger("vecgate.protocols")
T = TypeVar("T")

Name = Literal["cl100k", "o200k"]
Arrays = Sequence[Sequence[int]]

OPENAI_NAMES = ("text-embedding-3-", "text-embedding-ada-")
"""How the names of OpenAI's embedding models begin; all of them read cl100k."""
DECISIVE_IDS = 8
"""From this length on a round trip under the model's tokenizer is proof enough: 0.5 % of cl100k sentences make one under
MiniLM's, but 43 % of single words."""
CHECKED_IDS = 4_096
"""Ids of one array that the round trip looks at. Bounds the text too (an id of cl100k is up to 128 characters): beyond
a million blanks in a row tiktoken's regular expression runs out of its stack."""
CUT_IDS = 8
"""Last ids of an array longer than CHECKED_IDS that are not compared: where it is cut, a word may end differently."""
SLICE_IDS = 65_536
"""Ids of one step of a long round trip: bounds its memory, and between two steps it can be cancelled."""
MOST_CHARACTERS = 1 << 26
"""Of text that one request's ids may stand for: twice the default body, of which ids can make forty times as much."""
MOST_TABLE_BYTES = 1 << 24
"""Of a table that is fetched; the larger of the two has 3.6 MB."""
FETCH_TIMEOUT_S = 30.0
"""For connecting, and for each further piece."""
INLINE_IDS = 2_000
"""Up to this many ids tiktoken works on the loop (about 0.3 ms); more go to a thread."""


@dataclass(frozen=True, slots=True)
class Table:
    """One of OpenAI's tokenizers, as tiktoken_ext/openai_public.py defines it; the merges are the file at `url`."""

    url: str
    sha256: str
    pattern: str
    specials: dict[str, int]

    @property
    def file_name(self) -> str:
        """What tiktoken calls the file in its cache folder."""
        return hashlib.sha1(self.url.encode(), usedforsecurity=False).hexdigest()


TABLES: dict[Name, Table] = {
    "cl100k": Table(
        url="https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken",
        sha256="223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        pattern=(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
            r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
        ),
        specials={
            "<|endoftext|>": 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k": Table(
        url="https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken",
        sha256="446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        pattern=(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
            r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        specials={"<|endoftext|>": 199999, "<|endofprompt|>": 200018},
    ),
}

LARGEST_CL100K = max(TABLES["cl100k"].specials.values())
ADVICE = "Send text instead (LangChain: check_embedding_ctx_length=False), or have the server told whose ids it gets"
OPERATOR = "VECGATE_TOKEN_IDS = model, cl100k or o200k"

_loaded: dict[tuple[Name, Path], tiktoken.Encoding] = {}
_loading = threading.Lock()


def load_encoding(name: Name, folder: Path | None) -> tiktoken.Encoding | None:
    """OpenAI's tokenizer from its table in `folder`; None where there is none or its sha256 is not OpenAI's.

    Reads and hashes up to 4 MB on the first use, about half a second.
    """
    if folder is None:
        return None
    with _loading:
        found = _loaded.get((name, folder))
        if found is None and (ranks := _ranks(TABLES[name], folder)) is not None:
            found = _loaded[name, folder] = _encoding(name, TABLES[name], ranks)
        return found


def fetch(name: Name, folder: Path) -> Path:
    """The file of OpenAI's table, downloaded into `folder` unless it is there already; whole or absent at any moment.

    Raises ConfigError where the folder can't be written to, CheckpointError where the download fails or is not the table.
    """
    table = TABLES[name]
    path = folder / table.file_name
    if _holds(path, table):
        return path
    data = _download(name, table, path)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(data)
        fresh.replace(path)
    except OSError as error:
        raise ConfigError(
            f"{folder} can't be written to ({error.strerror}): set TIKTOKEN_CACHE_DIR to a folder that can."
        ) from error
    finally:
        with suppress(OSError):  # moved, or never made
            fresh.unlink()
    return path


def _holds(path: Path, table: Table) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == table.sha256
    except OSError:
        return False


def _download(name: Name, table: Table, path: Path) -> bytes:
    """The checked bytes of the table; `path` is for the advice to whoever has no connection."""
    remedy = f"run `vecgate models fetch {name}` again, or put that file at {path} yourself"
    try:
        with urlopen(table.url, timeout=FETCH_TIMEOUT_S) as answer:
            data: bytes = answer.read(MOST_TABLE_BYTES)
            if answer.length:
                raise IncompleteRead(data, answer.length)
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()  # it holds the connection
        reason = error.reason if type(error) is URLError else error  # urllib's own words are <urlopen error ...>
        raise CheckpointError(f"{table.url} could not be fetched ({reason}): {remedy}.") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != table.sha256:
        raise CheckpointError(f"{table.url} gave {len(data)} bytes of sha256 {digest}, not {table.sha256}: {remedy}.")
    return data


def _ranks(table: Table, folder: Path) -> dict[bytes, int] | None:
    path = folder / table.file_name
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("The tokenizer table %s can't be read: %s.", path, error.strerror)
        return None
    if hashlib.sha256(data).hexdigest() != table.sha256:
        log.warning("The tokenizer table %s is not used: its sha256 is not %s.", path, table.sha256)
        return None
    pairs = (line.split() for line in data.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def _encoding(name: str, table: Table, ranks: dict[bytes, int]) -> tiktoken.Encoding:
    import tiktoken  # at first use: most servers never need it

    return tiktoken.Encoding(name, pat_str=table.pattern, mergeable_ranks=ranks, special_tokens=table.specials)


async def inputs_of(engine: Engine, site: Site, model: str | None, arrays: Arrays) -> Sequence[str] | Arrays:
    """What to embed for these ids: the same arrays when they are the model's own, the texts when they are OpenAI's.

    Decided once for all of them, by the TOKEN_IDS setting. Raises InvalidRequest where it can't be told, where ids are
    refused, and where the table that would read them is missing.
    """
    if site.token_ids == "refuse":
        raise InvalidRequest(
            "This server takes no token ids. Send text (LangChain: check_embedding_ctx_length=False); the server's "
            "operator can allow them with VECGATE_TOKEN_IDS.",
            "input",
        )
    whose = await _whose(engine, site, model, arrays) if site.token_ids == "auto" else site.token_ids
    if whose == "model":
        return arrays
    return await _texts(await _encoding_of(whose, site), arrays)


async def _whose(engine: Engine, site: Site, model: str | None, arrays: Arrays) -> Literal["model", "cl100k"]:
    if _is_openai_name(model):
        return "cl100k"
    opening, closing = await _specials(engine, model)
    if all(_framed(ids, opening, closing) for ids in arrays):
        return "model"
    is_models = await _is_models(engine, model, arrays)
    if is_models and (max(map(len, arrays)) >= DECISIVE_IDS or max(map(max, arrays)) > LARGEST_CL100K):
        return "model"
    encoding = await _encoding_of("cl100k", site)
    is_openais = await _is_openais(encoding, arrays)
    if is_models != is_openais:
        return "model" if is_models else "cl100k"
    reason = (
        "are too short to tell the model's own from OpenAI's" if is_models else "are not the model's own nor cl100k's"
    )
    raise InvalidRequest(f"The token ids of this request {reason}. {ADVICE} ({OPERATOR}).", "input")


def _is_openai_name(model: str | None) -> bool:
    return model is not None and model.strip().casefold().rpartition("/")[2].startswith(OPENAI_NAMES)


async def _specials(engine: Engine, model: str | None) -> tuple[list[int], list[int]]:
    """The ids that the model's tokenizer puts before and after every text."""
    nothing, something = (list(pieces.ids) for pieces in await engine.tokenize(model, ["", "a"], specials=True))
    shared = 0
    while shared < len(nothing) and nothing[shared] == something[shared]:
        shared += 1
    return nothing[:shared], nothing[shared:]


def _framed(ids: Sequence[int], opening: list[int], closing: list[int]) -> bool:
    """Both ends are needed: one id alone (T5's </s> is OpenAI's quotation mark) proves nothing."""
    if not opening or not closing or len(ids) < len(opening) + len(closing):
        return False
    return list(ids[: len(opening)]) == opening and list(ids[-len(closing) :]) == closing


async def _is_models(engine: Engine, model: str | None, arrays: Arrays) -> bool:
    async def again(part: Arrays) -> list[Sequence[int]]:
        texts = await engine.decode(model, part, skip_specials=False)
        return [pieces.ids for pieces in await engine.tokenize(model, texts, specials=False)]

    try:
        return await _round_trip(arrays, again)
    except InvalidRequest:  # an id that the model does not have
        return False


async def _is_openais(encoding: tiktoken.Encoding, arrays: Arrays) -> bool:
    def again(part: Arrays) -> list[Sequence[int]]:
        return [encoding.encode_ordinary(_text(encoding, ids)) for ids in part]

    try:
        return await _round_trip(arrays, lambda part: _off_loop(part, again))
    except InvalidRequest:  # an id that cl100k does not have
        return False


async def _round_trip(arrays: Arrays, again: Callable[[Arrays], Awaitable[Sequence[Sequence[int]]]]) -> bool:
    """Whether encode(decode(ids)) == ids for every array (its first CHECKED_IDS); ends at the first that fails."""
    for part in _slices([ids[:CHECKED_IDS] for ids in arrays]):
        for ids, back in zip(part, await again(part), strict=True):
            firm = len(ids) if len(ids) < CHECKED_IDS else CHECKED_IDS - CUT_IDS
            if list(back if firm == len(ids) else back[:firm]) != list(ids[:firm]):
                return False
    return True


async def _texts(encoding: tiktoken.Encoding, arrays: Arrays) -> list[str]:
    texts: list[str] = []
    characters = 0
    for part in _slices(arrays):
        texts += await _off_loop(part, lambda part: [_text(encoding, ids) for ids in part])
        characters += sum(map(len, texts[-len(part) :]))
        if characters > MOST_CHARACTERS:
            raise InvalidRequest(f"input's token ids stand for over {MOST_CHARACTERS} characters, the limit.", "input")
    return texts


def _text(encoding: tiktoken.Encoding, ids: Sequence[int]) -> str:
    try:
        return encoding.decode(ids)
    except (KeyError, OverflowError) as error:
        raise InvalidRequest(
            f"input holds token ids that are not {encoding.name}'s (0 to {encoding.max_token_value}). {ADVICE} "
            f"({OPERATOR}).",
            "input",
        ) from error


async def _encoding_of(name: Name, site: Site) -> tiktoken.Encoding:
    encoding = _loaded.get((name, site.tiktoken_dir)) if site.tiktoken_dir is not None else None
    encoding = encoding or await asyncio.to_thread(load_encoding, name, site.tiktoken_dir)
    if encoding is None:
        raise InvalidRequest(
            f"The token ids of this request can't be shown to be the model's own, and this server has no {name} table "
            f"to read them with. {ADVICE} ({OPERATOR}), or have it given the table: `vecgate models fetch {name}`, or "
            "TIKTOKEN_CACHE_DIR set to a folder that holds it.",
            "input",
        )
    return encoding


async def _off_loop(part: Arrays, work: Callable[[Arrays], T]) -> T:
    if sum(map(len, part)) <= INLINE_IDS:
        return work(part)
    return await asyncio.to_thread(work, part)


def _slices(arrays: Arrays) -> Iterator[list[Sequence[int]]]:
    """The arrays in runs of at most SLICE_IDS ids, a longer array alone."""
    part: list[Sequence[int]] = []
    size = 0
    for ids in arrays:
        if part and size + len(ids) > SLICE_IDS:
            yield part
            part, size = [], 0
        part.append(ids)
        size += len(ids)
    yield part
