"""The settings: what there is to set, the defaults, and what each row of the table allows and does.

Knows no file and no environment: config.py reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from vecgate import kinds
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
Truncate = Literal["end", "start", "refuse"]
TokenIds = Literal["auto", "model", "cl100k", "o200k", "refuse"]
Task = Literal["embed", "rerank"]
Pooling = Literal["cls", "mean", "max", "mean_sqrt_len", "weightedmean", "last"]
Verify = Literal["quick", "off", "full"]
EngineName = Literal["local", "ray"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting, checked. The defaults stand here and nowhere else; `SETTINGS` says what each one does."""

    backend: BackendName = "auto"
    device: str = "auto"
    models: tuple[str, ...] = ("minilm",)
    mlx_model_path: str | None = None
    rerankers: tuple[str, ...] = ()
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
    engine: EngineName = "local"
    replicas: int = 2
    device_memory_fraction: float = 0.8
    dtype: DType = "auto"
    verify: Verify = "quick"
    idle_unload_min: float = 0.0
    truncate: Truncate = "end"
    token_ids: TokenIds = "auto"
    cache_dir: Path = Path("~/.cache/vecgate")
    tiktoken_dir: Path | None = None
    log_level: LogLevel = "INFO"
    log_format: LogFormat = "json"
    log_file: Path | None = None
    log_file_bytes: int | None = None
    log_files: int = 5
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    root_path: str | None = None
    trusted_proxies: tuple[str, ...] = ()
    api_key: tuple[str, ...] = field(default=(), repr=False)
    api_key_file: Path | None = None
    rate_limit: int | None = None
    key_concurrency: int | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    uds: Path | None = None
    uds_mode: int = 0o600

    @property
    def key(self) -> str | None:
        """What this machine's commands show to a server: the first key, without the name before it."""
        return self.api_key[0].rpartition(" ")[2] if self.api_key else None


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

    @property
    def shown(self) -> str:
        """The default as people write it."""
        return self.show(self.default)

    def show(self, value: Any) -> str:
        """A value as people write it; of a secret only whether there is one."""
        if value is None or value == ():
            return self.unset
        if self.secret:
            return "set"
        if isinstance(value, tuple):
            return "; ".join(_one(entry) for entry in value)
        if isinstance(value, Path) or (isinstance(value, str) and value.startswith("/")):
            return short(Path(value))
        if self.kind is SWITCH:
            return str(value).lower()
        if self.kind is SIZE:
            return str(value) if value % MIB else f"{value // MIB}MiB"
        if self.kind is MODE:
            return f"{value:o}"
        return f"{value:g}" if isinstance(value, float) else str(value)


def _one(entry: Any) -> str:
    """An entry of a list; NAME = TARGET of aliases and prompts."""
    if isinstance(entry, str):
        return entry
    name, target, *dimensions = entry
    return f"{name} = {target}" + "".join(f", dimensions={number}" for number in dimensions if number is not None)


def short(path: Path) -> str:
    """The path, with ~ for who runs this: their name is nobody's business."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


_DEFAULTS: dict[str, Any] = {entry.name: entry.default for entry in fields(Settings)}

BACKENDS = one_of("auto", "mlx", "torch", "fake", note=" (fake is for tests)")
DTYPES = one_of("auto", "float32", "bfloat16", "float16")
LEVELS = one_of("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
FORMATS = one_of("json", "console")
CUTS = one_of("end", "start", "refuse")
TASKS = one_of("embed", "rerank")
POOLINGS = one_of("cls", "mean", "max", "mean_sqrt_len", "weightedmean", "last")
PROOFS = one_of("quick", "off", "full")
ENGINES = one_of("local", "ray")
ID_TABLES = one_of("auto", "model", "cl100k", "o200k", "refuse")
DEVICE = Kind("auto, cpu, gpu, mps, cuda or cuda:N", (str,), kinds.device, "NAME")
COUNT = whole(1, 1_000_000)
REPLICAS = whole(1, 64)
TOKENS = whole(1, 100_000_000)
PORT = whole(0, 65535)
MODELS = list_of("short names, hub ids or folders; none where there is a reranker", kinds.text, "MODEL", some=True)
RERANKERS = list_of("short names, hub ids or folders", kinds.text, "MODEL")
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
PROXIES = list_of("IP addresses and networks such as 10.0.0.0/8, or unix", kinds.network, "PROXIES")
ROOT_PATH = Kind("a path such as /vecgate that is none of the server's own", (str,), kinds.root_path, "PATH")
KEYS = list_of("keys of visible ASCII characters without spaces", kinds.key, "KEYS")
A_FILE = Kind("a file", (str,), kinds.maybe_folder, "FILE")
MODE = Kind("octal permissions such as 600 or 660", (int, str), kinds.mode, "MODE")
FRACTION = number("a number over 0, up to 1", lambda value: 0 < value <= 1, "F")
DEADLINE = number("seconds, over 0, up to 86400", lambda value: 0 < value <= 86400, "SECONDS")
MINUTES = number("minutes, from 0 to 10080", lambda value: value <= 10080, "MIN")
PATIENCE = number("seconds, from 0 to 3600", lambda value: value <= 3600, "SECONDS")

# fmt: off
SETTINGS: tuple[Setting, ...] = (
    Setting("BACKEND", BACKENDS,
            "What computes: MLX (Apple Silicon) or torch (mps, cuda, cpu); auto is MLX where it can serve the model."),
    Setting("VECGATE_DEVICE", DEVICE,
            "Where it computes: auto and gpu are the GPU, auto the CPU where there is none; mps and cuda are torch's alone."),
    Setting("MODEL_NAME", MODELS,
            "The embedding models, the default one first; or a reranker to serve alone.", "models", "--model"),
    Setting("MLX_MODEL_PATH", OTHER_MODEL, "Replaces MODEL_NAME when the backend is MLX."),
    Setting("CROSS_ENCODER_MODEL", RERANKERS,
            "Rerankers served beside the embedding models, the default one first.", "rerankers", "--reranker"),
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
    Setting("VECGATE_BATCH_TOKENS", TOKENS, "Most tokens in one forward.", unset="found at work"),
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
    Setting("VECGATE_ENGINE", ENGINES,
            "Where the models are: in the server's own process, or in replicas that Ray Serve keeps alive on this machine "
            "(pip install 'vecgate[ray]')."),
    Setting("VECGATE_REPLICAS", REPLICAS,
            "Processes that each hold the models where VECGATE_ENGINE is ray."),
    Setting("DEVICE_MEMORY_FRACTION", FRACTION,
            "The share of the device's memory, on a CPU of the machine's or its container's, that may be used."),
    Setting("VECGATE_DTYPE", DTYPES,
            "The number type of the weights; auto is float32 on a CPU, the checkpoint's own on a GPU. bfloat16 halves their "
            "memory at a cosine of 0.9999 to float32 (all-MiniLM-L6-v2); a CPU without its instructions is slower in it."),
    Setting("VECGATE_VERIFY", PROOFS,
            "What a model must show on its device before it is ready: in under a second, or all that it can by itself."),
    Setting("VECGATE_IDLE_UNLOAD", MINUTES,
            "Minutes after which a model that nobody asked for gives its memory back; the next request waits while it is "
            "loaded again. 0: none does.", "idle_unload_min"),
    Setting("VECGATE_TRUNCATE", CUTS,
            "An input over the model's limit loses its end or its start, which the answer reports, or is refused."),
    Setting("VECGATE_TOKEN_IDS", ID_TABLES, "Whose ids token arrays hold; auto decides once per request or refuses."),
    Setting("VECGATE_CACHE_DIR", FOLDER, "Where vecgate keeps what it fetched and what it checked."),
    Setting("TIKTOKEN_CACHE_DIR", OTHER_FOLDER,
            "Where tiktoken's tables lie, for clients that send OpenAI's token ids.", "tiktoken_dir",
            unset="tiktoken in VECGATE_CACHE_DIR"),
    Setting("LOG_LEVEL", LEVELS, "The least level that is logged."),
    Setting("LOG_FORMAT", FORMATS, "One JSON object a line, or lines for people."),
    Setting("LOG_FILE", A_FILE,
            "A file that gets every line that standard error gets; one that is moved away is begun anew."),
    Setting("VECGATE_LOG_FILE_SIZE", SIZE,
            "LOG_FILE at this size becomes LOG_FILE.1, the one before it LOG_FILE.2, and so on.", "log_file_bytes",
            unset="it grows"),
    Setting("VECGATE_LOG_FILES", COUNT, "Old log files kept where VECGATE_LOG_FILE_SIZE is set."),
    Setting("ALLOWED_HOSTS", HOSTS, "More names that the Host header may hold; * allows any.",
            unset="loopback, HOST, this machine's name, host.docker.internal, IP addresses"),
    Setting("ALLOWED_ORIGINS", ORIGINS, "More web origins that may call from a browser; * allows any.",
            unset="loopback, its own pages, app://obsidian.md, capacitor://localhost"),
    Setting("ROOT_PATH", ROOT_PATH,
            "The path under which a proxy shows this server; whether the proxy takes it off or leaves it on, the answer is "
            "the same."),
    Setting("VECGATE_TRUSTED_PROXIES", PROXIES,
            "Proxies whose X-Forwarded-For says who the client is, for the log; unix is who comes over VECGATE_UDS."),
    Setting("VECGATE_API_KEY", KEYS,
            "Keys, of which each request must then carry one; as a flag, other users of the machine can see it.",
            secret=True),
    Setting("VECGATE_API_KEY_FILE", A_FILE,
            "More keys, from a file: one a line, as KEY or NAME KEY; blank lines and those that begin with # do not count.",
            secret=True),
    Setting("VECGATE_RATE_LIMIT", COUNT,
            "Most requests a minute of one key, or of all clients together where there are no keys; more are answered "
            "429.", unset="no limit"),
    Setting("VECGATE_KEY_CONCURRENCY", COUNT,
            "Most requests at once of one key, or of all clients together where there are no keys; more are answered 429.",
            unset="no limit"),
    Setting("VECGATE_TLS_CERT", A_FILE, "Serve https: the certificate and what links it to its root, as PEM."),
    Setting("VECGATE_TLS_KEY", A_FILE, "The certificate's private key, as PEM without a passphrase.",
            unset="in the certificate's file"),
    Setting("VECGATE_UDS", A_FILE, "Listen on a Unix socket at this path, instead of on HOST and PORT."),
    Setting("VECGATE_UDS_MODE", MODE, "The Unix socket's permissions."),
)
# fmt: on

ORDERED = (("batch_size", "max_batch_size"), ("body_limit", "body_memory"))
"""(a, b): a that was set over b is refused; a that was not set follows b down."""


@dataclass(frozen=True, slots=True)
class InForce:
    """One setting as it is. changed: its value is not the default, whoever set it."""

    name: str
    value: str
    default: str
    changed: bool
    what: str


def in_force(settings: Settings) -> list[InForce]:
    """Every row of the table with its value; secrets are not told."""

    def row(setting: Setting) -> InForce:
        value = getattr(settings, setting.field)
        return InForce(setting.name, setting.show(value), setting.shown, value != setting.default, setting.what)

    return [row(setting) for setting in SETTINGS]


def table() -> str:
    """The settings as the Markdown table of the README."""
    rows = ["| Variable | Flag | Default | Allowed | What it does |", "|---|---|---|---|---|"]
    rows.append(f"| `{CONFIG}` | `--config` | `vecgate.toml`, if there | a TOML file | Where settings are read from. |")
    for setting in SETTINGS:
        default = setting.shown if setting.default in (None, ()) else f"`{setting.shown}`"
        cells = (f"`{setting.name}`", f"`{setting.option}`", default, setting.kind.allowed, setting.what)
        rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in cells) + " |")
    return "\n".join(rows)
