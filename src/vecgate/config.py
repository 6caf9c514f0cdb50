"""Reading the settings: flags over the environment over `.env` over a TOML file over defaults.

Reads only what it is handed (flags, environ, cwd) and the two files they name; settings.py has the table.
"""

from __future__ import annotations

import argparse
import ipaddress
import re
import tomllib
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Any

from dotenv.parser import parse_stream

from vecgate import kinds
from vecgate.errors import ConfigError
from vecgate.settings import CONFIG, ORDERED, PREFIX, SETTINGS, SWITCH, Setting, Settings

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
    _check_device(values, found)
    if values.get("api_key_file"):
        filed = _keys_of(cwd / values["api_key_file"], found["api_key_file"].place)
        values["api_key"] = tuple(dict.fromkeys((*values.get("api_key", ()), *filed)))
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
    if len(given.raw) == 1:
        return Found(given.raw[0], given.place)
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


def environment(path: Path) -> dict[str, str]:
    """The variables of a file of NAME=value lines, read as `.env` is; raises ConfigError, where there is none too."""
    if not path.is_file():
        raise ConfigError(f"There is no file of variables at {_plain(path)}.")
    return {name: value for name, value in _dotenv(path).items() if value is not None}


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


def _keys_of(path: Path, place: str) -> tuple[str, ...]:
    """The keys of a file; raises ConfigError, for a file without one too: it would leave the server open."""
    text = _read(path)
    if text is None:
        what = f"{str(path)!a}, a folder" if path.is_dir() else "no file's name (not shown, as it may be a key)"
        raise ConfigError(f"{place} is {what}; allowed: a file with one key a line.")
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            keys.append(kinds.key_line(line))
        except ValueError:
            raise ConfigError(
                f"{_plain(path)} holds no key at line {number} (which is not shown); write KEY or NAME KEY, in visible "
                "ASCII characters."
            ) from None
    if not keys:
        raise ConfigError(f"{place} is {str(path)!a}, which holds no key; allowed: a file with one key a line.")
    return tuple(keys)


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


def _check_device(values: Mapping[str, Any], found: Mapping[str, Found]) -> None:
    """Raises ConfigError where one GPU is named and Ray deals them out: in a replica the first is whichever it was given."""
    device = values.get("device", "")
    if values.get("engine") == "ray" and device.startswith("cuda:"):
        raise ConfigError(
            f"{found['device'].place} is {device!r} and {found['engine'].place} is 'ray', which gives each replica its GPU; "
            "allowed: cuda, or VECGATE_ENGINE=local."
        )


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
        text = f"{setting.what} Allowed: {setting.kind.allowed}. [{setting.name}] (default: {setting.shown})"
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
    if not settings.api_key and not settings.uds and not _loopback(settings.host):
        found.append(
            f"HOST is {settings.host} and VECGATE_API_KEY is not set: whoever reaches the port may call. Set "
            "VECGATE_API_KEY or VECGATE_API_KEY_FILE, or HOST to 127.0.0.1."
        )
    for name, path in (("VECGATE_API_KEY_FILE", settings.api_key_file), ("VECGATE_TLS_KEY", settings.tls_key)):
        if path and _open_to_others(path):
            found.append(f"{name} {_plain(path)} can be read by other users of this machine: chmod 600 closes it.")
    return tuple(found)


def _open_to_others(path: Path) -> bool:
    """What a container's engine mounts below /run/secrets has the mode it gave it, and no other users."""
    if {"/run/secrets", "/var/run/secrets"} & set(map(str, path.absolute().parents)):
        return False
    return bool(path.stat().st_mode & 0o044)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
