"""Settings: flags over the environment over `.env` over a TOML file over defaults.

Reads only what it is handed (flags, environ, cwd) and the two files they name; knows no other part of vecgate.
"""

from __future__ import annotations

import argparse
import ipaddress
import re
import tomllib
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from dotenv.parser import parse_stream

from vecgate import kinds
from vecgate.errors import ConfigError
from vecgate.kinds import Kind, list_of, number, one_of, whole

PREFIX = "VECGATE_"
CONFIG = "VECGATE_CONFIG"
NO_MODEL = "none"
"""MODEL_NAME of a server that only reranks; a folder of that name is ./none."""
MIB = 1024 * 1024

BackendName = Literal["auto", "mlx", "torch", "fake"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
LogFormat = Literal["json", "console"]
Truncate = Literal["end", "refuse"]
TokenIds = Literal["auto", "model", "cl100k", "o200k", "refuse"]
Task = Literal["embed", "rerank"]
Pooling = Literal["cls", "mean", "max", "mean_sqrt_len", "weightedmean", "last"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting, checked. The defaults stand here and nowhere else; `SETTINGS` says what each one does."""

    backend: BackendName = "auto"
    model_name: str = "minilm"
    mlx_model_path: str | None = None
    cross_encoder_model: str | None = None
    task: Task | None = None
    pooling: Pooling | None = None
    prompts: tuple[tuple[str, str], ...] = ()
    allow_pickle: bool = False
    ignore_code: bool = False
    served_name: str | None = None
    aliases: tuple[tuple[str, str, int | None], ...] = ()
    host: str = "127.0.0.1"
    port: int = 9000
    reload: bool = False
    offline: bool = False
    batch_size: int = 32
    max_batch_size: int = 128
    batch_tokens: int | None = None
    max_texts_per_request: int = 100
    max_passages_per_rerank: int = 1000
    max_inputs: int = 2048
    max_in_flight: int = 4096
    body_limit_bytes: int = 32 * MIB
    body_memory_bytes: int = 512 * MIB
    request_timeout_s: float = 300.0
    drain_timeout_s: float = 12.0
    device_memory_fraction: float = 0.8
    dtype: DType = "auto"
    truncate: Truncate = "end"
    token_ids: TokenIds = "auto"
    cache_dir: Path = Path("~/.cache/vecgate")
    tiktoken_dir: Path | None = None
    log_level: LogLevel = "INFO"
    log_format: LogFormat = "json"
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    api_key: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table.

    name: the variable, which also works with VECGATE_ before it. attribute: the field of Settings. flag: where it is
    not the variable in kebab-case. unset: how a default of None or () reads. secret: its value is never shown.
    """

    name: str
    kind: Kind
    what: str
    attribute: str = ""
    flag: str = ""
    unset: str = "none"
    secret: bool = False

    @property
    def key(self) -> str:
        """Its name in the TOML file and among the parsed flags."""
        return self.name.removeprefix(PREFIX).lower()

    @property
    def field(self) -> str:
        return self.attribute or self.key

    @property
    def option(self) -> str:
        return self.flag or "--" + self.key.replace("_", "-")

    @property
    def prefixed(self) -> str:
        """The variable that beats the plain one within the same layer."""
        return PREFIX + self.name.removeprefix(PREFIX)

    @property
    def default(self) -> Any:
        return _DEFAULTS[self.field]


_DEFAULTS: dict[str, Any] = {entry.name: entry.default for entry in fields(Settings)}

BACKENDS = one_of("auto", "mlx", "torch", "fake", note=" (fake is for tests)")
DTYPES = one_of("auto", "float32", "bfloat16", "float16")
LEVELS = one_of("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
FORMATS = one_of("json", "console")
CUTS = one_of("end", "refuse")
TASKS = one_of("embed", "rerank")
POOLINGS = one_of("cls", "mean", "max", "mean_sqrt_len", "weightedmean", "last")
ID_TABLES = one_of("auto", "model", "cl100k", "o200k", "refuse")
COUNT = whole(1, 1_000_000)
TOKENS = whole(1, 100_000_000)
PORT = whole(0, 65535)
MODEL = Kind("a short name, a hub id or a folder; none where there is a reranker", (str,), kinds.text, "MODEL")
OTHER_MODEL = Kind("a short name, a hub id or a folder", (str,), kinds.maybe, "MODEL")
NAME = Kind("one line of text", (str,), kinds.maybe, "NAME")
ALIASES = Kind(
    'NAME = "TARGET[, dimensions=N]" as a table or its JSON; several in one text with semicolons',
    (dict, str),
    kinds.aliases,
    "NAME=TARGET",
)
PROMPTS = Kind(
    "NAME=TEXT, the text as it stands; several as a table of names and texts, or its JSON",
    (dict, list, str),
    kinds.prompts,
    "NAME=TEXT",
)
FOLDER = Kind("a folder", (str,), kinds.folder, "DIR")
OTHER_FOLDER = Kind("a folder", (str,), kinds.maybe_folder, "DIR")
SWITCH = Kind("true or false", (bool,), kinds.switch)
SIZE = Kind("bytes, or a number with KB, MB, GB, KiB, MiB or GiB, from 1 to 1024GiB", (int, str), kinds.size, "BYTES")
HOST = Kind("a host name or an IP address, without scheme and port", (str,), kinds.host, "HOST")
HOSTS = list_of(
    "host names without scheme and port, *.example.org for all below one, or *", kinds.hosts, "HOSTS", star=True
)
ORIGINS = list_of("origins such as https://app.example.com, or *", kinds.origin, "ORIGINS", star=True)
KEYS = list_of("keys of visible ASCII characters without spaces", kinds.key, "KEYS")
FRACTION = number("a number over 0, up to 1", lambda value: 0 < value <= 1, "F")
DEADLINE = number("seconds, over 0, up to 86400", lambda value: 0 < value <= 86400, "SECONDS")
PATIENCE = number("seconds, from 0 to 3600", lambda value: value <= 3600, "SECONDS")

# fmt: off
SETTINGS: tuple[Setting, ...] = (
    Setting("BACKEND", BACKENDS,
            "What computes: MLX (Apple Silicon) or torch (mps, cuda, cpu); auto is MLX where it can serve the model."),
    Setting("MODEL_NAME", MODEL, "The embedding model, or a reranker to serve alone.", flag="--model"),
    Setting("MLX_MODEL_PATH", OTHER_MODEL, "Replaces MODEL_NAME when the backend is MLX."),
    Setting("CROSS_ENCODER_MODEL", OTHER_MODEL, "A reranker served beside the embedding model.", flag="--reranker"),
    Setting("VECGATE_TASK", TASKS,
            "What MODEL_NAME is for, whatever its files say; a causal language model's may not say it.",
            unset="what its files say"),
    Setting("VECGATE_POOLING", POOLINGS, "How MODEL_NAME makes one row of a text, whatever its files say.",
            unset="what its files say"),
    Setting("VECGATE_PROMPTS", PROMPTS,
            "Prompts of MODEL_NAME by their role, beside its own and instead of those of the same names.",
            flag="--prompt", unset="its own"),
    Setting("VECGATE_ALLOW_PICKLE", SWITCH,
            "Load weights that are there as pickle only: by torch, and nothing in them but tensors."),
    Setting("VECGATE_IGNORE_CODE", SWITCH,
            "Serve a model whose repository brings code by our implementation of its family; its code is never run."),
    Setting("VECGATE_SERVED_NAME", NAME, "The name the model is served under.", unset="the last part of its id"),
    Setting("VECGATE_ALIASES", ALIASES,
            "More names for what is served, for clients that only know a vendor's; TARGET is any served name, with its "
            "role (minilm:query) or not, or another alias.", flag="--alias"),
    Setting("HOST", HOST, "The address to listen on; 0.0.0.0 is every IPv4 address of this machine."),
    Setting("PORT", PORT, "The port to listen on; 0 takes any free one."),
    Setting("VECGATE_OFFLINE", SWITCH, "Take models from this machine only; the hub is never asked."),
    Setting("RELOAD", SWITCH, "Restart when the source changes; needs granian[reload]."),
    Setting("BATCH_SIZE", COUNT,
            "Most rows of one request in one forward, where a native request has no `batch_size`; at most "
            "MAX_BATCH_SIZE, and lowered to it where not set."),
    Setting("MAX_BATCH_SIZE", COUNT, "Most rows in one forward, over all requests."),
    Setting("VECGATE_BATCH_TOKENS", TOKENS, "Most tokens in one forward.", unset="the device's"),
    Setting("MAX_TEXTS_PER_REQUEST", COUNT, "Most texts in one request to the native embed routes."),
    Setting("MAX_PASSAGES_PER_RERANK", COUNT, "Most passages in one rerank request."),
    Setting("VECGATE_MAX_INPUTS", COUNT, "Most inputs in one request to the OpenAI, Cohere, TEI and Ollama routes."),
    Setting("VECGATE_MAX_IN_FLIGHT", COUNT, "Most requests at once; more are answered 429."),
    Setting("VECGATE_BODY_LIMIT", SIZE,
            "The largest request body; at most VECGATE_BODY_MEMORY, and lowered to it where not set.",
            "body_limit_bytes"),
    Setting("VECGATE_BODY_MEMORY", SIZE,
            "Most bytes of request bodies held at once; more are answered 429.", "body_memory_bytes"),
    Setting("REQUEST_TIMEOUT", DEADLINE, "The deadline of a whole request, in seconds.", "request_timeout_s"),
    Setting("VECGATE_DRAIN_TIMEOUT", PATIENCE,
            "How many seconds running requests have to finish at shutdown.", "drain_timeout_s"),
    Setting("DEVICE_MEMORY_FRACTION", FRACTION, "The share of the device's memory that may be used."),
    Setting("VECGATE_DTYPE", DTYPES,
            "The number type of the weights; auto is float32 on a CPU, the checkpoint's own on a GPU."),
    Setting("VECGATE_TRUNCATE", CUTS,
            "An input over the model's limit loses its end, which the answer reports, or is refused."),
    Setting("VECGATE_TOKEN_IDS", ID_TABLES, "Whose ids token arrays hold; auto decides once per request or refuses."),
    Setting("VECGATE_CACHE_DIR", FOLDER, "Where vecgate keeps what it fetched and what it checked."),
    Setting("TIKTOKEN_CACHE_DIR", OTHER_FOLDER,
            "Where tiktoken's tables lie, for clients that send OpenAI's token ids.", "tiktoken_dir",
            unset="tiktoken in VECGATE_CACHE_DIR"),
    Setting("LOG_LEVEL", LEVELS, "The least level that is logged."),
    Setting("LOG_FORMAT", FORMATS, "One JSON object a line, or lines for people."),
    Setting("ALLOWED_HOSTS", HOSTS, "More names that the Host header may hold; * allows any.",
            unset="loopback, HOST, this machine's name, host.docker.internal, IP addresses"),
    Setting("ALLOWED_ORIGINS", ORIGINS, "More web origins that may call from a browser; * allows any.",
            unset="loopback, its own pages, app://obsidian.md, capacitor://localhost"),
    Setting("VECGATE_API_KEY", KEYS,
            "Keys, of which each request must then carry one; as a flag, other users of the machine can see it.",
            secret=True),
)
# fmt: on

ORDERED = (("batch_size", "max_batch_size"), ("body_limit", "body_memory"))
"""(a, b): a that was set over b is refused; a that was not set follows b down."""

_BY_KEY = {setting.key: setting for setting in SETTINGS}
_VARIABLES = {CONFIG, *(name for setting in SETTINGS for name in (setting.name, setting.prefixed))}


@dataclass(frozen=True, slots=True)
class Found:
    """A value as somebody wrote it. place: its name and whereabouts, for messages. typed: it has a TOML type."""

    raw: Any
    place: str
    typed: bool = False


def load(flags: Mapping[str, Any], environ: Mapping[str, str], cwd: Path) -> Settings:
    """The settings in force; raises ConfigError with one line that names the setting, its value and what is allowed.

    flags: what `flags_of` gives: `Setting.key` or "config" -> text, a list of texts, or a typed value; None is not set.
    cwd: the folder of `.env` and `vecgate.toml`. Only a value that wins is checked, so that VECGATE_PORT cures a PORT
    meant for another program.
    """
    written = _dotenv(cwd / ".env")
    dotenv_place = f"in {_plain(cwd / '.env')}"
    config = _config_path(flags, ((environ, "in the environment"), (written, dotenv_place)))
    found = {
        **_from_toml(cwd, *config),
        **_from_names(written, dotenv_place),
        **_from_names(environ, "in the environment"),
        **_from_flags(flags),
    }
    values = {key: _value(_BY_KEY[key], given) for key, given in found.items()}
    for low, high in ORDERED:
        values[low] = _bounded(_BY_KEY[low], _BY_KEY[high], values, found)
    checked = Settings(**{_BY_KEY[key].field: value for key, value in values.items()})
    cache = kinds.home(str(checked.cache_dir))
    return replace(checked, cache_dir=cache, tiktoken_dir=checked.tiktoken_dir or cache / "tiktoken")


def _from_flags(flags: Mapping[str, Any]) -> dict[str, Found]:
    found = {}
    for key, raw in flags.items():
        if key != "config" and key not in _BY_KEY:
            raise unknown_flag("--" + key.replace("_", "-"))
        if key != "config" and raw is not None:
            setting = _BY_KEY[key]
            given = Found(raw, setting.option, typed=not isinstance(raw, str))
            found[key] = _joined(setting, given) if isinstance(raw, list | tuple) else given
    return found


def _joined(setting: Setting, given: Found) -> Found:
    """One list or table out of a flag that was given several times, each time with one or more items."""
    if {dict, list} <= set(setting.kind.toml):
        return Found(list(given.raw), given.place, typed=True)
    if dict in setting.kind.toml:
        return Found("; ".join(given.raw), given.place)
    try:
        return Found([item for text in given.raw for item in kinds.items(text)], given.place, typed=True)
    except ValueError:
        raise _refused(setting, given) from None


def _from_names(names: Mapping[str, str | None], where: str) -> dict[str, Found]:
    """The settings among variables; an empty one is not set, and the prefixed name beats the plain one."""
    for name in names:
        if name.upper().startswith(PREFIX) and name not in _VARIABLES:
            nearest = _nearest(name, lambda setting: setting.prefixed, (CONFIG,))
            hint = _kubernetes(name, names[name])
            raise ConfigError(f"{_plain(name)} {where} is not a setting; the nearest is {nearest}{hint}.")
    return {
        setting.key: Found(names[name], f"{name} {where}")
        for setting in SETTINGS
        for name in (setting.name, setting.prefixed)
        if (names.get(name) or "").strip()
    }


def _dotenv(path: Path) -> dict[str, str | None]:
    """The file's names and values, nothing interpolated; {} where there is none.

    A broken line that seems to hold one of our names is refused: a key lost to a missing quote must not open the server.
    """
    names: dict[str, str | None] = {}
    for binding in parse_stream(StringIO(_read(path) or "")):
        words = re.findall(r"[A-Z_0-9]+", binding.original.string) if binding.error else ()
        if any(word in _VARIABLES or word.startswith(PREFIX) for word in words):
            raise ConfigError(f"{_plain(path)} can't be read at line {binding.original.line}; write NAME=value.")
        if binding.key is not None:
            names[binding.key] = binding.value
    return names


def _config_path(
    flags: Mapping[str, Any], layers: Iterable[tuple[Mapping[str, str | None], str]]
) -> tuple[str, str | None]:
    """The TOML file and what names it (None: nothing, and then the file need not exist)."""
    if flags.get("config") is not None:
        return str(flags["config"]), "--config"
    for names, where in layers:
        if path := (names.get(CONFIG) or "").strip():
            return path, f"{CONFIG} {where}"
    return "vecgate.toml", None


def _from_toml(cwd: Path, name: str, named_by: str | None) -> dict[str, Found]:
    path = cwd / kinds.home(name)
    text = _read(path)
    if text is None and named_by is not None:
        raise ConfigError(f"{named_by} is {name!a}; allowed: a TOML file, and there is none at {_plain(path)}.")
    try:
        entries = tomllib.loads(text or "")
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{_plain(path)} is not valid TOML: {_plain(error)}.") from None
    for key in entries:
        if key not in _BY_KEY:
            nearest = _nearest(key, lambda setting: setting.key)
            raise ConfigError(f"{_plain(key)} in {_plain(path)} is not a setting; the nearest is {nearest}.")
    return {key: Found(raw, f"{key} in {_plain(path)}", typed=True) for key, raw in entries.items()}


def _read(path: Path) -> str | None:
    """The text of a file, without a byte order mark; None where there is no such file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except UnicodeDecodeError:
        raise ConfigError(f"{_plain(path)} can't be read: it is not UTF-8 text.") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise ConfigError(f"{_plain(path)} can't be read: {getattr(error, 'strerror', error)}.") from None


def _value(setting: Setting, given: Found) -> Any:
    if given.typed and type(given.raw) not in setting.kind.toml:
        raise _refused(setting, given)
    try:
        return setting.kind.read(given.raw)
    except ValueError:
        raise _refused(setting, given) from None  # the cause could hold a key


def _bounded(low: Setting, high: Setting, values: Mapping[str, Any], found: Mapping[str, Found]) -> Any:
    """The value of `low`, which may not be over `high`; see ORDERED."""
    bound = values.get(high.key, high.default)
    value = values.get(low.key, min(low.default, bound))
    if value > bound:
        given = found[low.key]
        whose = found[high.key].place if high.key in found else f"the default of {high.name}"
        raise ConfigError(f"{given.place} is {_shown(given)}; allowed: at most {bound}, {whose}.")
    return value


def _refused(setting: Setting, given: Found) -> ConfigError:
    shown = "not of the allowed form (its value is not shown)" if setting.secret else _shown(given)
    return ConfigError(f"{given.place} is {shown}; allowed: {setting.kind.allowed}{_kubernetes('', given.raw)}.")


def _shown(given: Found) -> str:
    """A value for a message: its TOML type if it has one, then one line of at most 80 characters."""
    names = {str: "string ", bool: "boolean ", int: "integer ", float: "float ", list: "array ", dict: "table "}
    kind = names.get(type(given.raw), "") if given.typed else ""
    text = ascii(given.raw)
    return kind + (text if len(text) <= 80 else text[:77] + "...")


def _plain(name: object) -> str:
    """A name or path for a message: itself where that is one printable line."""
    text = str(name)
    return text if text.isprintable() else ascii(text)


def _kubernetes(name: str, raw: Any) -> str:
    """A hint for VECGATE_PORT=tcp://... and its like, which Kubernetes makes for a Service called vecgate."""
    linked = re.search(r"_SERVICE_(HOST|PORT)|_PORT_[0-9]+_(TCP|UDP)", name)
    if linked or (isinstance(raw, str) and raw.startswith(("tcp://", "udp://"))):
        return " (Kubernetes sets it for a Service called vecgate: put enableServiceLinks: false into the pod)"
    return ""


def _nearest(written: str, spell: Callable[[Setting], str], others: Iterable[str] = ()) -> str:
    """The known name nearest to what was written, however the setting behind it is spelled elsewhere."""
    spellings = {_folded(other): other for other in others}
    for setting in SETTINGS:
        spellings |= dict.fromkeys(map(_folded, (setting.field, setting.option, setting.name)), spell(setting))
    return spellings[get_close_matches(_folded(written)[:60], spellings, n=1, cutoff=0.0)[0]]


def _folded(name: str) -> str:
    return name.strip("-").replace("-", "_").upper().removeprefix(PREFIX)


def unknown_flag(argument: str, others: Iterable[str] = ()) -> ConfigError:
    """The refusal of a flag that nobody knows, its value not shown; `others`: the flags that are not settings."""
    name = argument.partition("=")[0]
    nearest = _nearest(name, lambda setting: setting.option, ("--config", *others))
    return ConfigError(f"{_plain(name)} is not a flag; the nearest is {nearest}.")


def add_flags(parser: argparse.ArgumentParser, only: Container[str] | None = None) -> None:
    """One option a setting, and --config; what they get stays as written until `load` checks it.

    only: the `Setting.key`s that the command has a use for.
    """
    group = parser.add_argument_group(
        "settings",
        "Flags win over the environment, then .env, the TOML file, defaults. In [] stands the variable,\n"
        "which also works with VECGATE_ before it; the TOML key is the same in lower case, without VECGATE_.",
    )
    group.add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help=f"TOML file [{CONFIG}] (default: ./vecgate.toml if there)",
    )
    for setting in SETTINGS:
        if only is not None and setting.key not in only:
            continue
        options: dict[str, Any] = {"metavar": setting.kind.metavar}
        if setting.kind is SWITCH:
            options = {"action": argparse.BooleanOptionalAction}
        elif not {list, dict}.isdisjoint(setting.kind.toml):
            options["action"] = "append"
        text = f"{setting.what} Allowed: {setting.kind.allowed}. [{setting.name}] (default: {_default(setting)})"
        group.add_argument(
            setting.option, dest=setting.key, default=argparse.SUPPRESS, help=text.replace("%", "%%"), **options
        )


def flags_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, as `load` wants them; other arguments are left out."""
    given = vars(arguments)
    return {key: given[key] for key in ("config", *_BY_KEY) if given.get(key) is not None}


def warnings(settings: Settings) -> tuple[str, ...]:
    """Sentences for the log at start, one for each setting that is allowed and dangerous."""
    found = []
    if "*" in settings.allowed_hosts:
        found.append("ALLOWED_HOSTS holds *: any Host header is accepted, so a web page can reach in by DNS rebinding.")
    if "*" in settings.allowed_origins:
        found.append("ALLOWED_ORIGINS holds *: any web page opened in a browser that reaches this server may call it.")
    if not settings.api_key and not _loopback(settings.host):
        found.append(f"HOST is {settings.host} and VECGATE_API_KEY is not set: whoever reaches the port may call.")
    return tuple(found)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _default(setting: Setting) -> str:
    value = setting.default
    if value is None or value == ():
        return setting.unset
    if setting.kind is SWITCH:
        return str(value).lower()
    if setting.kind is SIZE:
        return f"{value // MIB}MiB"
    return f"{value:g}" if isinstance(value, float) else str(value)


def table() -> str:
    """The settings as the Markdown table of the README."""
    rows = ["| Variable | Flag | Default | Allowed | What it does |", "|---|---|---|---|---|"]
    rows.append(f"| `{CONFIG}` | `--config` | `vecgate.toml`, if there | a TOML file | Where settings are read from. |")
    for setting in SETTINGS:
        default = _default(setting) if setting.default in (None, ()) else f"`{_default(setting)}`"
        cells = (f"`{setting.name}`", f"`{setting.option}`", default, setting.kind.allowed, setting.what)
        rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in cells) + " |")
    return "\n".join(rows)
