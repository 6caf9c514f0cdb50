"""What a flag's text may be where it is no setting: names and numbers, one or several; each raises ArgumentTypeError.

Knows no flag.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

N = TypeVar("N", int, float)


def names(*known: str, every: bool = False) -> Callable[[str], tuple[str, ...]]:
    """Some of them, separated by commas; `every`: "all" stands for all of them, else "none" for none."""

    def read(text: str) -> tuple[str, ...]:
        if text == ("all" if every else "none"):
            return known if every else ()
        found = tuple(text.split(","))
        if len(set(found)) < len(found) or not set(found) <= set(known):
            allowed = f"{', '.join(known)}, each once, or {'all' if every else 'none'}"
            raise argparse.ArgumentTypeError(f"{text[:80]!a} is not known; allowed: {allowed}")
        return found

    return read


def each(one: Callable[[str], N]) -> Callable[[str], tuple[N, ...]]:
    """Numbers separated by commas."""
    return lambda text: tuple(one(part) for part in text.split(","))


def positive(text: str) -> float:
    """Of seconds, or of requests a second."""
    value = seconds(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text[:40]!a} is not over 0")
    return value


def seconds(text: str) -> float:
    """At most a day of them."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text[:40]!a} is no number from 0 to 86400")
    return value


def count(text: str) -> int:
    """At least one."""
    if not (text.isascii() and text.isdigit() and 0 < int(text[:10]) < 2**31 and len(text) < 11):
        raise argparse.ArgumentTypeError(f"{text[:40]!a} is no whole number from 1 to 2147483647")
    return int(text)
