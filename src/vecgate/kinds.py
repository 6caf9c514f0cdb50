"""What a setting's value may be: readers of text and TOML values, each with its rule in words.

Knows no setting, no file and no environment; a reader raises ValueError, never saying why: the rule in words says it.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
WORDS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class Kind:
    """allowed: the rule in words. toml: the types a TOML file may give. read: one of those, or text -> the value."""

    allowed: str
    toml: tuple[type, ...]
    read: Callable[[Any], Any]
    metavar: str = ""


def check(holds: bool) -> None:
    """Raises ValueError unless it holds."""
    if not holds:
        raise ValueError


def text(raw: Any) -> str:
    """One printable line that is not empty."""
    line = str(raw).strip()
    check(line != "" and line.isprintable())
    return line


def maybe(raw: Any) -> str | None:
    """One printable line; None for an empty one."""
    return text(raw) if str(raw).strip() else None


def home(path: str) -> Path:
    """The path with a leading ~ expanded, where there is such a user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def folder(raw: Any) -> Path:
    return home(text(raw))


def maybe_folder(raw: Any) -> Path | None:
    return folder(raw) if str(raw).strip() else None


def switch(raw: Any) -> bool:
    word = str(raw).strip().lower()
    check(word in WORDS)
    return WORDS[word]


def size(raw: Any) -> int:
    """Whole bytes: 1048576, 1MiB, 1.5 GB."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([a-z]*)", str(raw).strip().lower())
    if match is None or match[2] not in UNITS:
        raise ValueError
    exact = Decimal(match[1]) * UNITS[match[2]]
    check(exact == int(exact) and 1 <= exact <= 2**40)
    return int(exact)


def items(raw: Any) -> tuple[str, ...]:
    """The items of a list, of JSON text of one, or of text with commas; blanks around them and repeats are dropped.

    Commas alone are refused: keys that a template failed to fill in would leave the server open.
    """
    if isinstance(raw, str):
        check("," not in raw or bool(raw.replace(",", " ").strip()))
        try:
            raw = json.loads(raw) if raw.lstrip().startswith("[") else [item for item in raw.split(",") if item.strip()]
        except RecursionError:
            raise ValueError from None
    check(isinstance(raw, list | tuple) and all(isinstance(item, str) for item in raw))
    return tuple(dict.fromkeys(item.strip() for item in raw))


def host(raw: Any) -> str:
    """A host name or IP address in lower case, without brackets and without the root's dot."""
    name = str(raw).strip().lower()
    if ":" in name:
        return str(ipaddress.IPv6Address(re.sub(r"^\[(.*)\]$", r"\1", name)))
    if re.fullmatch(r"[0-9.]+", name):
        return str(ipaddress.IPv4Address(name))
    check(re.fullmatch(r"[a-z0-9_][a-z0-9_.-]{0,252}", name) is not None)
    return name.rstrip(".")


def hosts(raw: str) -> str:
    """A host, or *. before one for all below it."""
    return "*." + host(raw[2:]) if raw.startswith("*.") else host(raw)


def device(raw: Any) -> str:
    """A device as a backend knows it; which there are, the backend says."""
    name = text(raw).casefold()
    check(re.fullmatch(r"auto|cpu|gpu|mps|cuda(:[0-9]{1,3})?", name) is not None)
    return name


def network(raw: str) -> str:
    """An address, or a network as 10.0.0.0/8; `unix` is who comes over a Unix socket."""
    if raw.lower() == "unix":
        return "unix"
    found = ipaddress.ip_network(raw)
    return str(found.network_address if found.num_addresses == 1 else found)


def root_path(raw: Any) -> str | None:
    """/a/b without a slash at the end, of what stands in a URL as it is; None for an empty one and for /."""
    path = str(raw).strip().rstrip("/")
    check(re.fullmatch(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*", path) is not None)
    return path or None


def origin(raw: str) -> str:
    """An origin as browsers send it: lower case, no default port, no slash at the end."""
    match = re.fullmatch(r"([a-z][a-z0-9+.-]*)://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?/?", raw.lower())
    if match is None:
        raise ValueError
    scheme, name, port = match.groups()
    usual = {"http": "80", "https": "443"}.get(scheme)
    return f"{scheme}://{name}" + (f":{int(port)}" if port and port != usual else "")


def key(raw: str) -> str:
    """What an Authorization header can carry as it stands."""
    check(re.fullmatch(r"[\x21-\x7e]+", raw) is not None)
    return raw


def key_line(raw: str) -> str:
    """A line of a key file, KEY or NAME KEY, with one blank between; raises ValueError."""
    name, key_of_it = ["", *raw.split()][-2:]
    check(len(raw.split()) <= 2 and re.fullmatch(r"[\w.@-]{0,64}", name) is not None and name.isascii())
    return f"{name} {key(key_of_it)}".strip()


def mode(raw: Any) -> int:
    """Octal permissions, as chmod takes them, that leave the owner able to read and write.

    TOML's 0o660, which arrives as 432, is refused as all of its kind are: the owner's digit is never a 6 or 7.
    """
    digits = str(raw).strip().lower().removeprefix("0o")
    check(re.fullmatch(r"0?[0-7]{3}", digits) is not None and int(digits, 8) & 0o600 == 0o600)
    return int(digits, 8)


def aliases(raw: Any) -> tuple[tuple[str, str, int | None], ...]:
    """(name, what it stands for, dimensions) of a table, its JSON, or "name = target[, dimensions=N]; ..."."""
    if isinstance(raw, str) and raw.lstrip().startswith("{"):
        try:
            raw = json.loads(raw)
        except RecursionError:
            raise ValueError from None
    pairs = [one.partition("=")[::2] for one in raw.split(";") if one.strip()] if isinstance(raw, str) else _flat(raw)
    found = tuple((text(name), *_target(target)) for name, target in pairs)
    check(len({name.casefold() for name, _, _ in found}) == len(found))
    return found


def _flat(table: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """A table's leaves; TOML reads an unquoted `rerank-v3.5 = ...` as a table in a table."""
    check(isinstance(table, dict))
    return [
        pair
        for name, value in table.items()
        for pair in (_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)])
    ]


def _target(raw: Any) -> tuple[str, int | None]:
    """The text of a target, and its dimensions: "minilm, dimensions=256"."""
    check(isinstance(raw, str))
    target, comma, option = raw.partition(",")
    match = re.fullmatch(r"\s*dimensions\s*=\s*([0-9]{1,6})\s*", option)
    check(not comma or (match is not None and int(match[1]) > 0))
    return text(target), int(match[1]) if match else None


def prompts(raw: Any) -> tuple[tuple[str, str], ...]:
    """(name, text) of a table, its JSON, one NAME=TEXT or a list of these; a text stays as it is, blanks included."""
    pairs = [pair for part in (raw if isinstance(raw, list) else [raw]) for pair in _prompts(part)]
    for name, said in pairs:
        check(re.fullmatch(r"[\w./-]{1,64}", name) is not None and isinstance(said, str))
        said.encode()  # UnicodeEncodeError, which is a ValueError, for half a character
    check(len({name for name, _ in pairs}) == len(pairs))
    return tuple(pairs)


def _prompts(part: Any) -> list[tuple[str, Any]]:
    if isinstance(part, str) and not part.lstrip().startswith("{"):
        name, sign, said = part.partition("=")
        check(bool(sign))
        return [(name.strip(), said)]
    try:
        table = json.loads(part) if isinstance(part, str) else part
    except RecursionError:
        raise ValueError from None
    check(isinstance(table, dict))
    return list(table.items())


def whole(low: int, high: int) -> Kind:
    def read(raw: Any) -> int:
        digits = str(raw).strip()
        check(re.fullmatch(r"[0-9]{1,18}", digits) is not None and low <= int(digits) <= high)
        return int(digits)

    return Kind(f"a whole number from {low} to {high}", (int,), read, "N")


def number(allowed: str, holds: Callable[[float], bool], metavar: str) -> Kind:
    def read(raw: Any) -> float:
        digits = str(raw).strip()
        check(re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", digits) is not None)
        check(holds(float(digits)))
        return float(digits)

    return Kind(allowed, (int, float), read, metavar)


def one_of(*choices: str, note: str = "") -> Kind:
    by_fold = {choice.casefold(): choice for choice in choices}

    def read(raw: Any) -> str:
        folded = str(raw).strip().casefold()
        check(folded in by_fold)
        return by_fold[folded]

    return Kind(f"{', '.join(choices[:-1])} or {choices[-1]}{note}", (str,), read, "NAME")


def list_of(allowed: str, item: Callable[[str], str], metavar: str, *, star: bool = False, some: bool = False) -> Kind:
    """Several of `item`, as JSON, with commas or as a TOML array; `star`: * is an item too; `some`: one at least."""

    def read(raw: Any) -> tuple[str, ...]:
        found = tuple(dict.fromkeys("*" if star and each == "*" else item(each) for each in items(raw)))
        check(len(found) > 0 or not some)
        return found

    return Kind(f"{allowed}; several as a JSON list or with commas", (str, list), read, metavar)
