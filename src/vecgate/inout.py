"""What `vecgate embed` and `vecgate rerank` read and write: from their flags to texts, files and streams.

Knows flags and formats, no settings and no engine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vecgate.errors import ConfigError

if TYPE_CHECKING:
    from vecgate import ask


def source(arguments: argparse.Namespace, given: Sequence[str], purpose: str) -> ask.Source:
    """The texts given, or the file or stream they name."""
    from vecgate import ask, texts

    fields, form, file = texts.Fields(arguments.text_field, arguments.id_field), arguments.input_format, arguments.file
    if file is not None and given:
        raise ConfigError(f"--file {file!a} stands beside texts: give one or the other.")
    if file is None and len(given) == 1 and _is_file(given[0]):
        file, given = given[0], ()
    if file not in (None, "-"):
        path = Path(file)
        if path.is_dir() or not path.exists():
            raise ConfigError(f"There is no file {file!a}: a text of that name can come by standard input.")
        return ask.Source(file=path, form=form or texts.form_of(path), fields=fields)
    if given and list(given) != ["-"]:
        return ask.Source(given=tuple(given))
    if not given and file is None and sys.stdin.isatty():
        raise ConfigError(f"There is nothing {purpose}: give texts, a file, or - for standard input.")
    return ask.Source(form=form or "txt", fields=fields)


def _is_file(argument: str) -> bool:
    """Whether a lone argument names a file; raises ConfigError where it may be meant to."""
    from vecgate import texts

    path = Path(argument)
    if path.suffix.lower() in (*texts.ENDINGS, ".json"):
        return True
    try:
        there = path.is_file()
    except (OSError, ValueError):  # a text too long for a name
        return False
    if there:
        raise ConfigError(f"{argument!a} is a file: --file reads its lines; a text of that name can come by - instead.")
    return False


def target(arguments: argparse.Namespace, endings: dict[str, Any], default: str) -> tuple[Any, Path | None]:
    """The format and the file (None: standard output); raises ConfigError."""
    if arguments.output in (None, "-"):
        return arguments.format or default, None
    target = Path(arguments.output)
    form = arguments.format or endings.get(target.suffix.lower())
    if form is None:
        raise ConfigError(
            f"-o {arguments.output!a} has no ending that says a format: --format, or {', '.join(endings)}."
        )
    if target.is_dir() or not target.parent.is_dir():
        what = "is a folder" if target.is_dir() else "lies in a folder that does not exist"
        raise ConfigError(f"-o {arguments.output!a} {what}: name a file in one that does.")
    return form, target


def apart(source: ask.Source, target: Path | None) -> None:
    """Raises ConfigError where one file would be read and written."""
    if source.file and target and target.exists() and target.samefile(source.file):
        raise ConfigError(f"-o {str(target)!a} is the input: name another file.")


@contextmanager
def opened(target: Path | None) -> Iterator[Path | BinaryIO]:
    """The path itself where a file can be taken up again, else what to write to (/dev/null, a pipe)."""
    if target is None:
        yield sys.stdout.buffer
    elif target.exists() and not target.is_file():
        with target.open("wb") as stream:
            yield stream
    else:
        yield target
