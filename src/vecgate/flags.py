"""The commands and their flags, with the help that is worth reading; what they mean is cli.py's matter."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from vecgate import __version__
from vecgate.amounts import count, each, names, positive, seconds
from vecgate.config import add_flags, unknown_flag
from vecgate.deploy import TEMPLATES
from vecgate.errors import ConfigError
from vecgate.examples import ABOUT, EXAMPLES
from vecgate.service.arguments import add_arguments
from vecgate.settings import SETTINGS

MODEL_FLAGS = frozenset(
    "backend device model_name mlx_model_path dtype batch_size max_batch_size batch_tokens device_memory_fraction truncate "
    "cache_dir offline request_timeout api_key api_key_file task pooling prompts allow_pickle ignore_code verify".split()
)
"""The settings that mean something without a server of one's own."""
SHELF_FLAGS = frozenset(
    ("backend", "model_name", "cache_dir", "tiktoken_cache_dir", "task", "allow_pickle", "ignore_code")
)
VERIFY_FLAGS = frozenset(
    "backend device mlx_model_path cross_encoder_model dtype cache_dir offline device_memory_fraction batch_tokens "
    "max_batch_size task pooling prompts allow_pickle ignore_code".split()
)
RAW_FLAGS = MODEL_FLAGS - {"batch_size", "truncate"}
MIXES = ("queries", "chunks", "mixed", "batch", "rerank")
SWEEPS = ("batch", "length", "concurrency", "documents")
SHELLS = ("bash", "zsh", "fish")


class Parser(argparse.ArgumentParser):
    """One that refuses as the rest of the command line does, without its usage's dozens of lines."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help.")


def parser() -> Parser:
    top = Parser(
        prog="vecgate",
        description=ABOUT,
        epilog=EXAMPLES[""],
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"vecgate {__version__}")
    _debug(top)
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    add_flags(_command(commands, "serve", "load the model and answer HTTP"))
    _embed(_command(commands, "embed", "texts to vectors, here or by a server"))
    _rerank(_command(commands, "rerank", "order documents by how well they answer a query"))
    _models(_command(commands, "models", "what is on this machine; fetch and remove"))
    _verify(_command(commands, "verify", "whether the models here give the right rows"))
    _bench(_command(commands, "bench", "how fast a server is, and whether its answers are right"))
    doctor = _command(commands, "doctor", "what this machine lacks for serving, and what to do about it")
    doctor.add_argument("--json", dest="as_json", action="store_true", help="the findings as JSON")
    add_flags(doctor)
    _connect(_command(commands, "connect", "let another program embed and rerank here"))
    _deploy(_command(commands, "deploy", "files for containers, Kubernetes, proxies and monitoring"))
    add_arguments(
        _command(commands, "service", "keep a server running in the background, by launchd or systemd"), _debug
    )
    completion = _command(commands, "completion", "a shell's completion script")
    completion.add_argument("shell", choices=SHELLS)
    return top


def _command(commands: Any, name: str, about: str) -> Parser:
    made: Parser = commands.add_parser(
        name,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.",
        epilog=EXAMPLES.get(name),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _debug(made)
    return made


def _debug(parser: Parser) -> None:
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks and what the parts log"
    )


def _embed(embed: Parser) -> None:
    embed.add_argument("texts", metavar="TEXT", nargs="*", help="texts, one file, or -")
    _input(embed)
    embed.add_argument("-o", "--output", metavar="OUT", help="where to write (default: standard output)")
    embed.add_argument(
        "--format", choices=("json", "jsonl", "npy"), help="default: by OUT's ending, else jsonl; npy is float32"
    )
    embed.add_argument("--role", metavar="NAME", help="query, document, or another prompt of the model's")
    embed.add_argument("--dimensions", metavar="N", type=count, help="keep the first N numbers, then renormalise")
    embed.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="rows of length 1 (default), or as the model makes them",
    )
    embed.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="a bar on standard error (default: for a file, where a terminal shows it)",
    )
    _server(embed)
    add_flags(embed, MODEL_FLAGS)


def _rerank(rerank: Parser) -> None:
    rerank.add_argument("query", metavar="QUERY", help="what the documents should answer")
    rerank.add_argument("documents", metavar="DOC", nargs="*", help="texts, one file, or -")
    _input(rerank)
    rerank.add_argument("-o", "--output", metavar="OUT", help="where to write (default: standard output)")
    rerank.add_argument(
        "--format", choices=("text", "json", "jsonl"), help="default: by OUT's ending, else text: score, id, document"
    )
    rerank.add_argument("--json", dest="format", action="store_const", const="json", help="the same as --format json")
    rerank.add_argument("--top-n", metavar="N", type=count, help="how many to show (default: all)")
    rerank.add_argument(
        "--method",
        choices=("auto", "similarity", "cross-encoder", "bi+cross-encoder"),
        default="auto",
        help="auto (default): the reranker if there is one, else similarity; bi+cross-encoder: the reranker on a "
        "shortlist by similarity",
    )
    _server(rerank)
    add_flags(rerank, MODEL_FLAGS | {"cross_encoder_model"})


def _input(parser: Parser) -> None:
    parser.add_argument("--file", metavar="FILE", help="read the texts from this file, whatever its ending; - is stdin")
    parser.add_argument("--input-format", choices=("txt", "jsonl"), help="default: by the file's ending, else txt")
    parser.add_argument("--text-field", metavar="NAME", default="text", help="of a JSON line (default: text)")
    parser.add_argument("--id-field", metavar="NAME", default="id", help="of a JSON line (default: id)")


def _server(parser: Parser) -> None:
    parser.add_argument(
        "--url",
        metavar="URL",
        help="let the server at this address do it; of the settings below count then --model (its name there), --api-key, "
        "--batch-size (texts in a request) and --request-timeout",
    )
    parser.add_argument(
        "--space",
        metavar="SPACE",
        help="refuse an answer of another vector space than this, as x-vecgate-space tells it",
    )


def _models(models: Parser) -> None:
    models.add_argument("--json", dest="as_json", action="store_true", help="the list as JSON")
    add_flags(models, SHELF_FLAGS)
    actions = models.add_subparsers(dest="action", metavar="ACTION", title="actions")
    fetch = actions.add_parser("fetch", help="download a model or a token table", allow_abbrev=False)
    fetch.add_argument("name", metavar="NAME", help="a short name, a hub id (org/name[@revision]), cl100k or o200k")
    remove = actions.add_parser("remove", help="delete a model or a token table", allow_abbrev=False)
    remove.add_argument("name", metavar="NAME", help="as `vecgate models` lists it")
    remove.add_argument("--yes", action="store_true", help="do not ask")
    for action in (fetch, remove):
        _debug(action)
        add_flags(action, SHELF_FLAGS)


def _verify(verify: Parser) -> None:
    verify.add_argument(
        "--model",
        dest="models",
        metavar="MODEL",
        action="append",
        help="a short name, a hub id or a folder; again for each more (default: what serve would serve)",
    )
    verify.add_argument("--json", dest="as_json", action="store_true", help="everything as JSON")
    verify.add_argument("--golden", metavar="FILE", help="compare with the rows that --record wrote there")
    verify.add_argument("--record", metavar="FILE", help="write rows there, the reference's where it is installed")
    verify.add_argument(
        "--against", metavar="MODEL", help="also the cosines with this model's rows: a quantised one's original"
    )
    verify.add_argument(
        "--reference",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare with sentence-transformers where it is installed (default), else with the other backend",
    )
    verify.add_argument(
        "--dtypes",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also measure the rows in the other number types (default)",
    )
    verify.add_argument(
        "--strict",
        action="store_true",
        help="exit status 1 also where something deviates or nobody outside could vouch",
    )
    verify.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="a bar on standard error (default: where a terminal shows it)",
    )
    add_flags(verify, VERIFY_FLAGS)


def _bench(bench: Parser) -> None:
    bench.add_argument("urls", metavar="URL", nargs="*", help="one server, or two to compare; none with --raw")
    bench.add_argument(
        "--mix",
        metavar="NAMES",
        type=names(*MIXES),
        default=("queries", "mixed"),
        help="queries (8-30 tokens), chunks (100-256), mixed (60 %% queries), batch (32 mixed texts a call), rerank (one "
        "query, 50 chunks), or none; several with commas (default: queries,mixed)",
    )
    bench.add_argument(
        "--concurrency", metavar="N,...", type=each(count), default=(1, 8, 64), help="clients (default: 1,8,64)"
    )
    bench.add_argument(
        "--rate", metavar="R,...", type=each(positive), default=(), help="also requests a second at random (Poisson)"
    )
    bench.add_argument("--seconds", metavar="S", type=positive, default=5.0, help="a window's length (default: 5)")
    bench.add_argument("--warm-up", metavar="S", type=seconds, default=2.0, help="of the load before it (default: 2)")
    bench.add_argument("--rounds", metavar="N", type=count, default=3, help="windows of each load (default: 3)")
    bench.add_argument("--seed", metavar="N", type=int, default=0, help="of texts, order and arrivals (default: 0)")
    bench.add_argument("--encoding", choices=("base64", "float"), default="base64", help="of rows (default: base64)")
    bench.add_argument("--name", metavar="NAME", help="the embedding model's at the server (default: its first)")
    bench.add_argument("--rerank-name", metavar="NAME", help="the reranker's at the server (default: its first)")
    bench.add_argument(
        "--bulk", action="store_true", help="also: one client embeds thousands of chunks, another asks single queries"
    )
    bench.add_argument("--bulk-texts", metavar="N", type=count, default=10_000, help="chunks (default: 10000)")
    bench.add_argument(
        "--bulk-calls", metavar="N,...", type=each(count), default=(32,), help="chunks a call (default: 32)"
    )
    bench.add_argument("--bulk-in-flight", metavar="N", type=count, default=8, help="calls at once (default: 8)")
    bench.add_argument(
        "--sweep",
        metavar="WHAT",
        type=names(*SWEEPS, every=True),
        default=(),
        help=f"also texts/s over {', '.join(SWEEPS)}, or all of them",
    )
    bench.add_argument(
        "--raw",
        action="store_true",
        help="also the same texts through --model in this machine, without HTTP, and the most this machine can compute",
    )
    bench.add_argument("--json", metavar="FILE", help="write everything that was measured")
    bench.add_argument("--html", metavar="FILE", help="write a page with tables and plots that needs nothing else")
    bench.add_argument("--plots", metavar="DIR", help="write each of the page's plots as an SVG file into this folder")
    bench.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="a bar on standard error (default: where a terminal shows it)",
    )
    add_flags(bench, RAW_FLAGS)


def _connect(connect: Parser) -> None:
    connect.add_argument("program", choices=("open-webui",), help="what is told")
    connect.add_argument(
        "--url", metavar="URL", required=True, help="Open WebUI's address, such as http://127.0.0.1:3000"
    )
    connect.add_argument(
        "--token", metavar="TOKEN", required=True, help="an administrator's, or - to read it from standard input"
    )
    connect.add_argument(
        "--gateway",
        metavar="URL",
        default="http://127.0.0.1:9000",
        help="this gateway, asked from here (default: %(default)s)",
    )
    connect.add_argument(
        "--seen-as",
        metavar="URL",
        help="this gateway as Open WebUI reaches it, such as http://host.docker.internal:9000 from a container (default: as "
        "--gateway)",
    )
    connect.add_argument("--api-key", metavar="KEY", help="the gateway's, if it has keys")
    connect.add_argument("--model", metavar="NAME", help="the embedding model's at the gateway (default: its first)")
    connect.add_argument(
        "--reranker",
        metavar="NAME",
        help="the reranker's (default: its first), an embedding model's to rank by similarity, or none to leave reranking as it is",
    )
    connect.add_argument(
        "--batch-size", metavar="N", type=count, help="texts in a request (default: as it is, 1 at first)"
    )
    connect.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")


def _deploy(deploy: Parser) -> None:
    deploy.add_argument(
        "template",
        metavar="NAME",
        nargs="?",
        choices=tuple(TEMPLATES),
        help=f"{', '.join(TEMPLATES)} (default: a list that says what each is)",
    )
    deploy.add_argument(
        "-o", "--output", metavar="OUT", help="a new file, or a folder to put it in (default: standard output)"
    )


# what argparse leaves to be done


def taken_in(arguments: argparse.Namespace, unknown: Sequence[str]) -> list[str]:
    """Put texts or addresses that stand behind flags with those before them; what is left is unknown."""
    lists = (getattr(arguments, name, None) for name in ("texts", "documents", "urls"))
    texts = next((one for one in lists if one is not None), None)
    if texts is None or any(one.startswith("-") and one != "-" for one in unknown):
        return list(unknown)
    texts.extend(unknown)
    return []


def refusal(top: Parser, command: str | None, argument: str) -> ConfigError:
    """What to say of a flag that the command does not have, its value not shown."""
    if command in (None, "serve"):
        return unknown_flag(argument, _options(top) if command is None else ("--debug",))
    name, own = argument.partition("=")[0], _options(commands_of(top)[str(command)])
    if name in {setting.option for setting in SETTINGS} - set(own):
        return ConfigError(f"{name} is a flag of vecgate serve and means nothing to vecgate {command}.")
    if not name.startswith("-"):
        return ConfigError(f"{name[:80]!a} is one too many; see vecgate {command} --help.")
    nearest = get_close_matches(name, own, n=1, cutoff=0.0)[0]
    return ConfigError(f"{name} is not a flag of vecgate {command}; the nearest is {nearest}.")


def script(shell: str) -> str:
    """A completion script that needs no Python when a key is pressed."""
    import shtab

    top = parser()
    for one in _all(top):
        for action in one._actions:
            if action.metavar in ("FILE", "OUT", "TEXT", "DOC", "MODEL"):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.metavar == "DIR":
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    return str(shtab.complete(top, shell))


def _all(top: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield top
    for below in commands_of(top).values():
        yield from _all(below)


def commands_of(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """What parses each command right below, by its name."""
    found = [action.choices for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0]) if found else {}


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """The long ones, of what lies below it too."""
    options = [option for one in _all(parser) for action in one._actions for option in action.option_strings]
    return [option for option in options if option.startswith("--")]
