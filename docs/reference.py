"""docs/reference.md from the tables in the code: `python -m docs.reference > docs/reference.md`.

Routes and flags are read from where they are made; of headers, which have no table, HEADERS says what each one tells.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from textwrap import fill

from vecgate import flags
from vecgate.protocols import PROTOCOLS
from vecgate.settings import SETTINGS

WHOSE = {
    "openai": "OpenAI",
    "cohere": "Cohere",
    "ollama": "Ollama",
    "native": "native",
    "tei": "TEI",
    "vllm": "vLLM",
    "ops": "-",
}
SENT = {
    "authorization": "`Bearer KEY`, where the server has keys; or `Basic`, with the key as the password.",
    "api-key": "The same, as Azure's clients send it.",
    "x-api-key": "The same.",
    "x-request-id": "The request's id, which the answer and the log repeat: up to 64 letters, digits, `.`, `_` and `-`; "
    "else the server makes one.",
    "x-vecgate-space": "The vector space that the client expects; of any other the request is refused.",
    "accept": "`application/x-ndjson` makes `/api/v1/rerank/batch` a stream; `/metrics` reads it for OpenMetrics.",
    "if-none-match": "A page's file that did not change is a 304.",
    "x-forwarded-for": "Who the client is, as VECGATE_TRUSTED_PROXIES tell it; for the log.",
    "traceparent": "The trace that the request's span joins, where traces are on.",
}
HEADERS = {
    "x-request-id": "On every answer: the client's own id, or a new one.",
    "x-vecgate-model": "The true name of the model, whatever alias was asked for.",
    "x-vecgate-role": "Whose prompt stood before the texts, where one did.",
    "x-vecgate-space": "The fingerprint of the vector space, once it is known.",
    "x-vecgate-dimensions": "How many numbers a row has.",
    "x-vecgate-truncated": "What was cut, in tokens: `index:before>kept` of the first 32, `query:before>kept` of a query.",
    "server-timing": "`queue`, `tokenise`, `forward` and `encode`, in milliseconds.",
    "retry-after": "Seconds, where waiting helps: with a 429, and a 503 that will pass.",
    "x-should-retry": "`false` with a 5xx that will not go away: OpenAI's SDKs then do not try again.",
    "x-ratelimit-limit-requests": "Requests a minute of this key, where VECGATE_RATE_LIMIT is set.",
    "x-ratelimit-remaining-requests": "How many are left now.",
    "x-ratelimit-reset-requests": "How long until all are there again: `12s`.",
    "x-compute-type": "TEI's routes: the device.",
    "x-compute-time": "TEI's routes: milliseconds in all.",
    "x-compute-characters": "TEI's routes: characters of the inputs.",
    "x-compute-tokens": "TEI's routes: tokens computed.",
    "x-total-time": "TEI's routes: milliseconds in all.",
    "x-tokenization-time": "TEI's routes: milliseconds.",
    "x-queue-time": "TEI's routes: milliseconds.",
    "x-inference-time": "TEI's routes: milliseconds.",
    "x-accel-buffering": "`no` with a stream, so that nginx passes on each line.",
    "x-content-type-options": "`nosniff` with the pages' files.",
    "allow": "With a 405: the methods that the path has.",
    "www-authenticate": "`Bearer`, with a 401.",
    "vary": "`origin`, on every answer.",
    "content-security-policy": "With the pages: they load and run nothing but this server's own files.",
    "referrer-policy": "With the pages: no other site learns of them.",
    "cache-control": "`no-store` with health, metrics and streams; `no-cache` with what may change by a restart.",
    "etag": "With the pages' files, for `if-none-match`.",
    "access-control-allow-origin": "Repeats an Origin that may call.",
    "access-control-expose-headers": "The headers above that a page's script may read.",
    "access-control-allow-methods": "Answers a preflight.",
    "access-control-allow-headers": "Answers a preflight: the headers it asked for.",
    "access-control-allow-private-network": "Answers a preflight of Chromium's to a private network.",
    "access-control-max-age": "Answers a preflight: how long the browser may keep it.",
}
BEGIN = """\
# Reference

Written by `python -m docs.reference > docs/reference.md` from the code; a test holds that it still says what the code says.
Settings are in the [README](../README.md#settings), metrics in [operations.md](operations.md#metrics), and bodies, answers and
examples of every route at `/docs` of a running server."""
ROUTES = """\
## Routes

Each also works with doubled or trailing slashes and with a version too many (`/v1/v1/embeddings`), and never redirects; GET
includes HEAD. Where one path stands in several rows, a key of the body says whose it is."""
COMMANDS = """\
## Commands

Every command also takes `--help` and `--debug` (tracebacks, and what the parts log); `vecgate --version` says what is installed.
"Settings" names the flags of the README's table that mean something to the command; one that is true or false also has its
opposite, `--no-offline`."""
RESPONSES = """\
## Headers of answers

Names are in lower case; HTTP does not care."""


def document() -> str:
    parts = [BEGIN, ROUTES, table(("Route", "Key in the body", "Protocol", "What it does"), routes()), COMMANDS]
    said = purposes()
    parts += [part for name, parser in commands() for part in command(name, said[name], parser)]
    parts += ["## Headers of requests", headers(SENT), RESPONSES, headers(HEADERS)]
    return "\n\n".join(parts) + "\n"


def routes() -> Iterator[tuple[str, ...]]:
    for name, module in PROTOCOLS.items():
        for route in import_module(module).ROUTES:
            paths = ", ".join(f"`{route.method} {plain(path)}`" for path in route.paths)
            yield paths, f"`{route.key}`" if route.key else "", WHOSE[name], route.summary


def plain(path: str) -> str:
    """A template without the types of its parameters: /docs/{asset}."""
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", path)


def commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command by its whole name, and what parses it."""
    for name, parser in flags.commands_of(flags.parser()).items():
        yield name, parser
        yield from ((f"{name} {action}", below) for action, below in flags.commands_of(parser).items())


def purposes() -> dict[str, str]:
    """What each command is for: in its own words, or in those of the command that it is part of."""
    said: dict[str, str] = {}
    for name, parser in commands():
        said.setdefault(name, parser.description or "")
        for action in parser._actions:
            for part in action._get_subactions() if isinstance(action, argparse._SubParsersAction) else ():
                text = part.help or ""
                said[f"{name} {part.dest}"] = f"{text[:1].upper()}{text[1:]}."
    return said


def command(name: str, purpose: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    settings = next((group._group_actions for group in parser._action_groups if group.title == "settings"), [])
    shared = {"--help", "--debug", *(option for action in settings for option in action.option_strings)}
    own = [action for action in parser._actions if not shared & {*action.option_strings} and not action_of_many(action)]
    yield f"### vecgate {name}"
    yield purpose
    if own:
        yield table(("Argument", "What it says"), ((spelled(action), told(action)) for action in own))
    names = [f"`{action.option_strings[0]}`" for action in settings]
    if len(names) > len(SETTINGS):
        yield "Settings: all."
    elif names:
        yield fill(f"Settings: {', '.join(names)}.", 120, break_on_hyphens=False)


def action_of_many(action: argparse.Action) -> bool:
    """Whether it is where the actions below a command hang."""
    return isinstance(action, argparse._SubParsersAction)


def spelled(action: argparse.Action) -> str:
    """As it is typed: `--mix NAMES`, `-o, --output OUT`, `[TEXT ...]`."""
    value = "" if action.nargs == 0 else action.metavar or "|".join(map(str, action.choices or ()))
    if not action.option_strings:
        return f"`[{value} ...]`" if action.nargs == "*" else f"`{value}`"
    names = "`, `".join(action.option_strings)
    return f"`{names} {value}`" if value else f"`{names}`"


def told(action: argparse.Action) -> str:
    return (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")


def headers(about: Mapping[str, str]) -> str:
    return table(("Header", "What it says"), ((f"`{name}`", text) for name, text in about.items()))


def table(names: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [names, ("---",) * len(names), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(document())
