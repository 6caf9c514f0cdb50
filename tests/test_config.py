"""Settings: every one from every layer, who wins, what is refused and in which words, and that keys stay secret."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vecgate.config import add_flags, flags_of, load, unknown_flag, warnings
from vecgate.errors import ConfigError
from vecgate.settings import SETTINGS, Setting, Settings, table

MIB = 1024 * 1024
HOME_CACHE = Path("/home/someone/.cache/vecgate")
SEED_NAMES = {
    *("BACKEND", "MODEL_NAME", "MLX_MODEL_PATH", "CROSS_ENCODER_MODEL", "HOST", "PORT", "RELOAD"),
    *("BATCH_SIZE", "MAX_BATCH_SIZE", "MAX_TEXTS_PER_REQUEST", "MAX_PASSAGES_PER_RERANK", "DEVICE_MEMORY_FRACTION"),
    *("LOG_LEVEL", "LOG_FORMAT", "ALLOWED_HOSTS", "ALLOWED_ORIGINS", "REQUEST_TIMEOUT"),
}
BY_KEY = {setting.key: setting for setting in SETTINGS}

# key -> (two texts, their values, their TOML, texts that are wrong, TOML values that are wrong)
WRONG_COUNT = (["0", "-1", "1.5", "many", "1_000"], ["0", '"5"', "1.0", "true", "[1]"])
SAMPLES: dict[str, tuple[list[str], list[object], list[str], list[str], list[str]]] = {
    "backend": (["torch", "MLX"], ["torch", "mlx"], ['"torch"', '"MLX"'], ["cuda", "torch,mlx"], ['"cuda"', "1"]),
    "model_name": (
        ["org/m", "./m, b"],
        [("org/m",), ("./m", "b")],
        ['"org/m"', '["./m", "b"]'],
        ["a\nb", "a\x00", ",", "[1]", '["a"'],
        ['""', "1", "[]", "[1]"],
    ),
    "mlx_model_path": (["./a", "b"], ["./a", "b"], ['"./a"', '"b"'], ["a\nb"], ["1", "true"]),
    "task": (["rerank", "EMBED"], ["rerank", "embed"], ['"rerank"', '"EMBED"'], ["score"], ['"score"', "1", '""']),
    "pooling": (["last", "Mean"], ["last", "mean"], ['"last"', '"Mean"'], ["lasttoken", "cls,mean"], ['"x"', "1"]),
    "prompts": (
        ['query=Find: a=b, "c": ', '{"query": "q\\n", "document": ""}'],
        [(("query", 'Find: a=b, "c": '),), (("query", "q\n"), ("document", ""))],
        ["'query=Find: a=b, \"c\": '", '{query = "q\\n", document = ""}'],
        ["query", '{"query": 1}', "[1]", '{"a b": ""}', '{"query": "\\ud800"}', "{"],
        ["1", '["query"]', "[1]", '["a=1", "a=2"]', "{query = 1}", '{"a b" = ""}'],
    ),
    "allow_pickle": (["yes", "0"], [True, False], ["true", "false"], ["maybe", "2"], ['"true"', "1"]),
    "ignore_code": (["yes", "0"], [True, False], ["true", "false"], ["maybe", "2"], ['"true"', "1"]),
    "cross_encoder_model": (
        ["org/r", '["r", "b,c"]'],
        [("org/r",), ("r", "b,c")],
        ['"org/r"', '["r", "b,c"]'],
        ["a\nb", "[1]"],
        ["1", "{}", "[1]"],
    ),
    "served_name": (["one", "two"], ["one", "two"], ['"one"', '"two"'], ["a\nb"], ["1"]),
    "aliases": (
        ["text-embedding-3-small = minilm, dimensions=256; rerank-v3.5=org/R", '{"a": "b:query"}'],
        [(("text-embedding-3-small", "minilm", 256), ("rerank-v3.5", "org/R", None)), (("a", "b:query", None),)],
        ['{ text-embedding-3-small = "minilm, dimensions=256", rerank-v3.5 = "org/R" }', '{ "a" = "b:query" }'],
        [
            "a",
            "a=",
            "=b",
            "a=b, dimensions=0",
            "a=b, width=2",
            "a=b,",
            "a=b; A=c",
            '{"a": 1}',
            '{"a": "b"',
            '{"a": {}}x',
        ],
        ["1", '["a=b"]', "{ a = 1 }", '{ a = "b, dimensions=x" }', '{ a = ["b"] }'],
    ),
    "device": (
        ["CPU", "cuda:1"],
        ["cpu", "cuda:1"],
        ['"CPU"', '"cuda:1"'],
        ["cuda:", "cpu:0", "metal", "cuda:0,1"],
        ['"tpu"', "0", "true"],
    ),
    "host": (["0.0.0.0", "::1"], ["0.0.0.0", "::1"], ['"0.0.0.0"', '"::1"'], ["http://a", "a:1", "a b"], ['""', "1"]),
    "port": (["0", "65535"], [0, 65535], ["0", "65535"], ["-1", "65536", "http", "90.0"], ["65536", '"9000"', "true"]),
    "reload": (["yes", "0"], [True, False], ["true", "false"], ["maybe", "2"], ['"true"', "1"]),
    "offline": (["yes", "0"], [True, False], ["true", "false"], ["maybe", "2"], ['"true"', "1"]),
    "batch_size": (["7", "8"], [7, 8], ["7", "8"], [*WRONG_COUNT[0], "129"], [*WRONG_COUNT[1], "129"]),
    "max_batch_size": (["70", "80"], [70, 80], ["70", "80"], *WRONG_COUNT),
    "batch_tokens": (["4096", "1"], [4096, 1], ["4096", "1"], *WRONG_COUNT),
    "max_texts_per_request": (["3", "4"], [3, 4], ["3", "4"], *WRONG_COUNT),
    "max_passages_per_rerank": (["3", "4"], [3, 4], ["3", "4"], *WRONG_COUNT),
    "max_inputs": (["3", "4"], [3, 4], ["3", "4"], *WRONG_COUNT),
    "max_in_flight": (["3", "4"], [3, 4], ["3", "4"], *WRONG_COUNT),
    "body_limit": (["1MiB", "9"], [MIB, 9], ['"1MiB"', "9"], ["0", "1.5", "1M", "513MiB"], ["0", "1.5", "true", '"x"']),
    "body_memory": (["64MiB", "1GB"], [64 * MIB, 10**9], ['"64MiB"', '"1GB"'], ["0", "big", "2000GiB"], ["-1", "[1]"]),
    "request_timeout": (
        ["2.5", "60"],
        [2.5, 60.0],
        ["2.5", "60"],
        ["0", "-1", "nan", "inf", "5m"],
        ["0", "nan", '"5"'],
    ),
    "drain_timeout": (["0", "3"], [0.0, 3.0], ["0.0", "3"], ["-1", "nan", "3601"], ["-1", "inf", "true"]),
    "engine": (["ray", "Local"], ["ray", "local"], ['"ray"', '"Local"'], ["remote", "ray,local"], ['"mlx"', "1"]),
    "replicas": (["3", "64"], [3, 64], ["3", "64"], ["0", "65", "-1", "1.5", "two"], ["0", "65", "1.5", '"2"', "true"]),
    "device_memory_fraction": (["1", "0.25"], [1.0, 0.25], ["1", "0.25"], ["0", "1.1", "80%"], ["0", "1.01", '"1"']),
    "dtype": (["bfloat16", "Float32"], ["bfloat16", "float32"], ['"bfloat16"', '"Float32"'], ["int8"], ['"int8"', "1"]),
    "verify": (["off", "FULL"], ["off", "full"], ['"off"', '"FULL"'], ["on", "quick,full"], ['"yes"', "true"]),
    "idle_unload": (["5", "0.5"], [5.0, 0.5], ["5", "0.5"], ["-1", "10081", "5m", "nan"], ["-1", '"5"', "true"]),
    "truncate": (
        ["refuse", "START"],
        ["refuse", "start"],
        ['"refuse"', '"START"'],
        ["none", "true"],
        ['"none"', "true"],
    ),
    "token_ids": (["o200k", "model"], ["o200k", "model"], ['"o200k"', '"model"'], ["p50k"], ['"p50k"', "0"]),
    "cache_dir": (["/a", "b/c"], [Path("/a"), Path("b/c")], ['"/a"', '"b/c"'], ["a\nb"], ["1", '""']),
    "tiktoken_cache_dir": (["/a", "b/c"], [Path("/a"), Path("b/c")], ['"/a"', '"b/c"'], ["a\nb"], ["1", "[]"]),
    "log_level": (["debug", "Error"], ["DEBUG", "ERROR"], ['"debug"', '"Error"'], ["loud", "10"], ['"loud"', "10"]),
    "log_file": (["/tmp/a.log", "b"], [Path("/tmp/a.log"), Path("b")], ['"/tmp/a.log"', '"b"'], ["a\nb"], ["1"]),
    "log_file_size": (["1MiB", "9"], [MIB, 9], ['"1MiB"', "9"], ["0", "1.5", "big"], ["0", "1.5", "true"]),
    "log_files": (["3", "4"], [3, 4], ["3", "4"], *WRONG_COUNT),
    "log_format": (["console", "JSON"], ["console", "json"], ['"console"', '"JSON"'], ["text"], ['"text"', "1"]),
    "allowed_hosts": (
        ['["*"]', "A.example, *.b.org, 10.0.0.1"],
        [("*",), ("a.example", "*.b.org", "10.0.0.1")],
        ['["*"]', '"A.example, *.b.org, 10.0.0.1"'],
        ["http://a", "a:9000", "[1]", "['*']", '["a"'],
        ["[1]", "5", '["a b"]', '[["a"]]'],
    ),
    "allowed_origins": (
        ['["*"]', "https://a.example/, http://b:3000"],
        [("*",), ("https://a.example", "http://b:3000")],
        ['["*"]', '["https://a.example", "http://b:3000"]'],
        ["a.example", "https://a/path", "null", "[1]"],
        ["[1]", "true", '["a.example"]'],
    ),
    "root_path": (
        ["/vecgate/", "/a/b"],
        ["/vecgate", "/a/b"],
        ['"/vecgate"', '"/a/b/"'],
        ["vecgate", "//a", "/a b", "/a/../b", "http://a/b"],
        ["1", '["/a"]', '"a"'],
    ),
    "trusted_proxies": (
        ["127.0.0.1, 10.0.0.0/8", '["unix", "::1"]'],
        [("127.0.0.1", "10.0.0.0/8"), ("unix", "::1")],
        ['["127.0.0.1", "10.0.0.0/8"]', '"unix, ::1"'],
        ["proxy.example", "10.0.0.1/8", "*", "1"],
        ["[1]", "1", '["*"]'],
    ),
    "api_key": (
        ["k1", '["k2", "k,3"]'],
        [("k1",), ("k2", "k,3")],
        ['"k1"', '["k2", "k,3"]'],
        ["hunter2 hunter2", '["hunter2", 1]', "hünter2", '["hunter2"'],
        ['"hunter2 hunter2"', "[1]", "7777777", '["hunter2", "hün"]'],
    ),
    "api_key_file": (
        ["keys1", "keys2"],
        [Path("keys1"), Path("keys2")],
        ['"keys1"', '"keys2"'],
        ["hunter2\x07"],
        ["1", '["keys1"]'],
    ),
    "rate_limit": (["3", "4"], [3, 4], ["3", "4"], *WRONG_COUNT),
    "key_concurrency": (["3", "4"], [3, 4], ["3", "4"], *WRONG_COUNT),
    "tls_cert": (["/a", "b"], [Path("/a"), Path("b")], ['"/a"', '"b"'], ["a\nb"], ["1", "[]"]),
    "tls_key": (["/a", "b"], [Path("/a"), Path("b")], ['"/a"', '"b"'], ["a\nb"], ["1", "[]"]),
    "uds": (["/a", "b"], [Path("/a"), Path("b")], ['"/a"', '"b"'], ["a\nb"], ["1", "[]"]),
    "uds_mode": (["660", "0o666"], [0o660, 0o666], ['"0660"', '"666"'], ["400", "888", "66", "rw"], ["0o660", '"4"']),
}
SWITCHES = ("reload", "offline", "allow_pickle", "ignore_code")
EACH = [pytest.param(BY_KEY[key], *sample[:3], id=key) for key, sample in SAMPLES.items()]


class Folder:
    """A working folder, empty at first; `environ` is given by keywords."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, text: str) -> Path:
        (self.path / name).write_text(text, encoding="utf-8")
        return self.path / name

    def load(self, flags: Mapping[str, object] | None = None, /, **environ: str) -> Settings:
        return load(flags or {}, environ, self.path)

    def refusal(self, flags: Mapping[str, object] | None = None, /, **environ: str) -> str:
        with pytest.raises(ConfigError) as caught:
            self.load(flags, **environ)
        message = str(caught.value)
        assert len(message.splitlines()) == 1
        assert message.endswith(".")
        return message

    def said(self, **environ: str) -> str:
        """The settings as shown, or the refusal."""
        try:
            return repr(self.load(**environ))
        except ConfigError as error:
            return str(error)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path)
    for name in ("keys1", "keys2"):
        made.write(name, "sk-1\n")
    return made


def quoted(text: str) -> str:
    """A value for .env that holds nothing back: single quotes, in which only ' and \\ need care."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def test_defaults(folder: Folder) -> None:
    loaded = folder.load()
    assert replace(loaded, cache_dir=Settings().cache_dir, tiktoken_dir=None) == Settings()
    assert (Settings().host, Settings().port, Settings().models) == ("127.0.0.1", 9000, ("minilm",))


def test_folders_follow_the_home_and_each_other(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    loaded = folder.load()
    assert (loaded.cache_dir, loaded.tiktoken_dir) == (HOME_CACHE, HOME_CACHE / "tiktoken")
    assert folder.load(VECGATE_CACHE_DIR="~/c").tiktoken_dir == Path("/home/someone/c/tiktoken")


def test_each_row_of_the_table_is_one_field() -> None:
    assert [setting.field for setting in SETTINGS if setting.field not in Settings.__slots__] == []
    assert len({setting.field for setting in SETTINGS}) == len(SETTINGS) == len(fields(Settings))
    assert set(SAMPLES) == set(BY_KEY)


def test_plain_names_are_the_seed_documents_the_log_files_and_tiktokens_own() -> None:
    plain = {setting.name for setting in SETTINGS if not setting.name.startswith("VECGATE_")}
    assert plain == SEED_NAMES | {"LOG_FILE", "ROOT_PATH", "TIKTOKEN_CACHE_DIR"}


@pytest.mark.parametrize(("setting", "texts", "values", "tomls"), EACH)
class TestEachSetting:
    def test_from_every_layer(
        self, folder: Folder, setting: Setting, texts: list[str], values: list[object], tomls: list[str]
    ) -> None:
        for text, value, toml in zip(texts, values, tomls, strict=True):
            assert getattr(folder.load({setting.key: text}), setting.field) == value
            for name in {setting.name, setting.prefixed}:
                assert getattr(folder.load(**{name: text}), setting.field) == value
                folder.write(".env", f"{name}={quoted(text)}\n")
                assert getattr(folder.load(), setting.field) == value
                folder.write(".env", "")
            folder.write("vecgate.toml", f"{setting.key} = {toml}\n")
            assert getattr(folder.load(), setting.field) == value
            folder.write("vecgate.toml", "")

    def test_the_stronger_layer_wins(
        self, folder: Folder, setting: Setting, texts: list[str], values: list[object], tomls: list[str]
    ) -> None:
        folder.write("vecgate.toml", f"{setting.key} = {tomls[0]}\n")
        assert getattr(folder.load(), setting.field) == values[0]
        folder.write(".env", f"{setting.name}={quoted(texts[1])}\n")
        assert getattr(folder.load(), setting.field) == values[1]
        assert getattr(folder.load(**{setting.name: texts[0]}), setting.field) == values[0]
        assert getattr(folder.load({setting.key: texts[1]}, **{setting.name: texts[0]}), setting.field) == values[1]

    def test_the_prefixed_name_beats_the_plain_one(
        self, folder: Folder, setting: Setting, texts: list[str], values: list[object], tomls: list[str]
    ) -> None:
        both = {setting.name: texts[0]} | {setting.prefixed: texts[1]}
        assert getattr(folder.load(**both), setting.field) == values[1]
        assert getattr(folder.load(**dict(reversed(both.items()))), setting.field) == values[1]
        folder.write(".env", "".join(f"{name}={quoted(text)}\n" for name, text in reversed(both.items())))
        assert getattr(folder.load(), setting.field) == values[1]

    def test_the_plain_name_of_ours_is_other_peoples(
        self, folder: Folder, setting: Setting, texts: list[str], values: list[object], tomls: list[str]
    ) -> None:
        is_ours = setting.name.startswith("VECGATE_")
        environ = {setting.name.removeprefix("VECGATE_"): texts[0]}
        assert (folder.load(**environ) == folder.load()) is is_ours

    def test_empty_is_not_set(
        self, folder: Folder, setting: Setting, texts: list[str], values: list[object], tomls: list[str]
    ) -> None:
        folder.write(".env", f"{setting.name}={quoted(texts[0])}\n")
        with_empty = folder.load(**{setting.name: "", setting.prefixed: "  "})
        assert getattr(with_empty, setting.field) == values[0]
        folder.write(".env", f"{setting.name}=\n{setting.prefixed}\n")
        assert folder.load() == load({}, {}, Path("/nowhere"))

    def test_its_flag(
        self, folder: Folder, setting: Setting, texts: list[str], values: list[object], tomls: list[str]
    ) -> None:
        parser = argparse.ArgumentParser()
        add_flags(parser)
        argv = {
            (switch, at): [f"--{no}{switch.replace('_', '-')}"]
            for switch in SWITCHES
            for at, no in enumerate(("", "no-"))
        }
        for i, value in enumerate(values):
            given = flags_of(parser.parse_args(argv.get((setting.key, i), [setting.option, texts[i]])))
            assert set(given) == {setting.key}
            assert getattr(folder.load(given), setting.field) == value


WRONG = [(BY_KEY[key], text) for key, sample in SAMPLES.items() for text in sample[3]]
WRONG_TOML = [(BY_KEY[key], toml) for key, sample in SAMPLES.items() for toml in sample[4]]


@pytest.mark.parametrize(("setting", "text"), WRONG)
class TestWrongText:
    def test_names_the_setting_the_value_and_what_is_allowed(self, folder: Folder, setting: Setting, text: str) -> None:
        shown = "its value is not shown" if setting.secret else ascii(text)
        path = folder.write(".env", f"{setting.prefixed}={quoted(text)}\n")
        places = {
            f"{setting.option} ": folder.refusal({setting.key: text}),
            f"{setting.name} in the environment ": folder.refusal(**{setting.name: text}),
            f"{setting.prefixed} in the environment ": folder.refusal(**{setting.prefixed: text}),
            f"{setting.prefixed} in {path} ": folder.refusal(),
        }
        for start, message in places.items():
            assert message.startswith(start)
            assert shown in message
            assert "; allowed: " in message
            assert setting.kind.allowed in message or "at most" in message
            assert "hunter2" not in message
            assert "hünter2" not in message

    def test_a_wrong_value_that_loses_stops_nothing(self, folder: Folder, setting: Setting, text: str) -> None:
        good = SAMPLES[setting.key][0][0]
        folder.write(".env", f"{setting.prefixed}={quoted(text)}\n")
        assert folder.load(**{setting.prefixed: good}) == folder.load({setting.key: good})


@pytest.mark.parametrize(("setting", "toml"), WRONG_TOML)
def test_wrong_toml_value(folder: Folder, setting: Setting, toml: str) -> None:
    path = folder.write("vecgate.toml", f"{setting.key} = {toml}\n")
    message = folder.refusal()
    assert message.startswith(f"{setting.key} in {path} is ")
    assert setting.kind.allowed in message or "at most" in message
    assert "hunter2" not in message
    assert "7777777" not in message


def test_aliases_as_a_toml_table_and_as_a_flag_given_twice(folder: Folder) -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    given = flags_of(parser.parse_args(["--alias", "a=b, dimensions=4", "--alias", "c = d"]))
    assert folder.load(given).aliases == (("a", "b", 4), ("c", "d", None))
    folder.write("vecgate.toml", '[aliases]\nrerank-v3.5 = "R"\n"rerank-v3.0" = "R"\n')
    assert folder.load().aliases == (("rerank-v3.5", "R", None), ("rerank-v3.0", "R", None))


def test_wrong_toml_type_is_told(folder: Folder) -> None:
    folder.write("vecgate.toml", 'port = "9000"')
    assert "is string '9000'; allowed: a whole number" in folder.refusal()


def test_long_and_odd_values_stay_one_short_line(folder: Folder) -> None:
    assert len(folder.refusal(PORT="9" * 10_000)) < 200
    assert "\\n" in folder.refusal(PORT="1\n2")
    assert "\\udcff" in folder.refusal(PORT="\udcff")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("VECGATE_PRT", "VECGATE_PORT"),
        ("VECGATE_MODEL", "VECGATE_MODEL_NAME"),
        ("VECGATE_RERANKER", "VECGATE_CROSS_ENCODER_MODEL"),
        ("VECGATE_API_KYE", "VECGATE_API_KEY"),
        ("VECGATE_CONFG", "VECGATE_CONFIG"),
        ("VECGATE_REQUEST_TIMEOUT_S", "VECGATE_REQUEST_TIMEOUT"),
        ("vecgate_port", "VECGATE_PORT"),
    ],
)
def test_unknown_variables_are_refused(folder: Folder, name: str, nearest: str) -> None:
    message = folder.refusal(**{name: "hunter2"})
    assert message == f"{name} in the environment is not a setting; the nearest is {nearest}."
    path = folder.write(".env", f"{name}=hunter2\n")
    assert folder.refusal() == f"{name} in {path} is not a setting; the nearest is {nearest}."


def test_names_of_others_are_left_alone(folder: Folder) -> None:
    folder.write(".env", "export OPENAI_API_KEY=x\nAPI_KEY=y\nDTYPE=int8\nPROT=1\nCONFIG=z\nnot a line at all\n")
    assert folder.load(SHELL="/bin/sh", PROT="1", API_KEY="y", TRUNCATE="sideways") == load({}, {}, Path("/nowhere"))


def test_kubernetes_service_links_are_explained(folder: Folder) -> None:
    assert "enableServiceLinks: false" in folder.refusal(VECGATE_PORT="tcp://10.0.0.1:9000")
    assert "enableServiceLinks: false" in folder.refusal(VECGATE_SERVICE_HOST="10.0.0.1")


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("prt", "port"),
        ("PORT", "port"),
        ("model", "model_name"),
        ("reranker", "cross_encoder_model"),
        ("server", None),
    ],
)
def test_unknown_toml_keys_are_refused(folder: Folder, key: str, nearest: str | None) -> None:
    path = folder.write("vecgate.toml", f"{key} = 1\n")
    message = folder.refusal()
    assert message.startswith(f"{key} in {path} is not a setting; the nearest is {nearest or ''}")
    assert message.removesuffix(".").rpartition(" ")[2] in BY_KEY


def test_toml_tables_and_odd_keys_are_refused(folder: Folder) -> None:
    folder.write("vecgate.toml", "[server]\nport = 1\n")
    assert "server in" in folder.refusal()
    folder.write("vecgate.toml", '"a\\nb" = 1\n')
    assert "'a\\nb' in" in folder.refusal()


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [("--prt", "--port"), ("--model-name=x", "--model"), ("--api-kye=hunter2", "--api-key"), ("--debgu", "--debug")],
)
def test_unknown_flags_are_refused(flag: str, nearest: str) -> None:
    message = str(unknown_flag(flag, others=("--debug",)))
    assert message == f"{flag.partition('=')[0]} is not a flag; the nearest is {nearest}."


def test_load_refuses_unknown_flags(folder: Folder) -> None:
    assert folder.refusal({"request_timeout_s": "1"}).endswith("the nearest is --request-timeout.")


class TestTomlFile:
    def test_where_it_is(self, folder: Folder) -> None:
        for name, port in (("vecgate.toml", 1), ("env.toml", 2), ("dotenv.toml", 3), ("flag.toml", 4)):
            folder.write(name, f"port = {port}\n")
        assert folder.load().port == 1
        folder.write(".env", "VECGATE_CONFIG=dotenv.toml\n")
        assert folder.load().port == 3
        assert folder.load(VECGATE_CONFIG=str(folder.path / "env.toml")).port == 2
        assert folder.load({"config": "flag.toml"}, VECGATE_CONFIG="env.toml").port == 4

    def test_a_named_file_must_exist(self, folder: Folder) -> None:
        assert folder.refusal({"config": "none.toml"}).startswith("--config is 'none.toml'; allowed: a TOML file")
        message = folder.refusal(VECGATE_CONFIG="none.toml")
        assert message.startswith("VECGATE_CONFIG in the environment is 'none.toml'")
        path = folder.write(".env", 'VECGATE_CONFIG="no\\nne.toml"\n')
        assert folder.refusal().startswith(f"VECGATE_CONFIG in {path} is 'no\\nne.toml'")

    @pytest.mark.parametrize("text", ["port = ", "port: 1", "port = 1\nport = 2", "a = " + "[" * 10_000])
    def test_broken(self, folder: Folder, text: str) -> None:
        path = folder.write("vecgate.toml", text)
        assert folder.refusal().startswith(f"{path} is not valid TOML: ")

    def test_not_text(self, folder: Folder) -> None:
        (folder.path / "vecgate.toml").write_bytes(b"\xff\xfe")
        assert folder.refusal().endswith("it is not UTF-8 text.")
        (folder.path / "vecgate.toml").write_bytes(b"\xef\xbb\xbfport = 1\r\n")
        assert folder.load().port == 1

    def test_plain_name_is_not_ours(self, folder: Folder) -> None:
        folder.write("other.toml", "port = 1\n")
        assert folder.load(CONFIG="other.toml").port == 9000


class TestDotenv:
    def test_the_seed_documents_block(self, folder: Folder) -> None:
        folder.write(
            ".env",
            "# Backend Selection\n"
            "BACKEND=auto                    # auto, mlx, torch\n"
            "MODEL_NAME=mlx-community/Qwen3-Embedding-4B-4bit-DWQ\n\n"
            "HOST=0.0.0.0\nPORT=9000\nRELOAD=false\n\n"
            "BATCH_SIZE=32\nMAX_BATCH_SIZE=128\nMAX_TEXTS_PER_REQUEST=100\nMAX_PASSAGES_PER_RERANK=1000\n"
            "DEVICE_MEMORY_FRACTION=0.8\n\nLOG_LEVEL=INFO\nLOG_FORMAT=json\n\n"
            'ALLOWED_HOSTS=["*"]\nALLOWED_ORIGINS=["*"]\nREQUEST_TIMEOUT=300\n',
        )
        assert folder.load() == replace(
            load({}, {}, Path("/nowhere")),
            models=("mlx-community/Qwen3-Embedding-4B-4bit-DWQ",),
            host="0.0.0.0",
            allowed_hosts=("*",),
            allowed_origins=("*",),
        )

    def test_exports_of_the_other_seed_document(self, folder: Folder) -> None:
        folder.write(".env", 'export BACKEND=torch\nexport MLX_MODEL_PATH="./mlx-qwen3-emb-4b"\n')
        assert (folder.load().backend, folder.load().mlx_model_path) == ("torch", "./mlx-qwen3-emb-4b")

    def test_nothing_is_interpolated(self, folder: Folder) -> None:
        folder.write(".env", "VECGATE_API_KEY=a${HOME}$b\nMODEL_NAME=${PORT}\n")
        loaded = folder.load(HOME="/root")
        assert (loaded.api_key, loaded.models) == (("a${HOME}$b",), ("${PORT}",))

    @pytest.mark.parametrize("line", ['VECGATE_API_KEY="hunter2', "A=1\nVECGATE_API_KEY='hunter2\n", 'PORT="1" 2'])
    def test_a_broken_line_of_ours_is_refused(self, folder: Folder, line: str) -> None:
        path = folder.write(".env", line)
        message = folder.refusal()
        assert message.startswith(f"{path} can't be read at line ")
        assert "hunter2" not in message

    def test_a_quote_left_open_above_a_key_does_not_hide_it(self, folder: Folder) -> None:
        folder.write(".env", 'OTHER="abc\nVECGATE_API_KEY="hunter2"\n')
        assert "hunter2" not in folder.refusal()

    def test_a_folder_of_that_name_is_a_virtual_environment(self, folder: Folder) -> None:
        before = folder.load()
        (folder.path / ".env").mkdir()
        assert folder.load() == before

    def test_not_text(self, folder: Folder) -> None:
        (folder.path / ".env").write_bytes(b"PORT=\xff\n")
        assert folder.refusal().endswith("it is not UTF-8 text.")

    def test_windows_line_ends_and_mark(self, folder: Folder) -> None:
        (folder.path / ".env").write_bytes(b"\xef\xbb\xbfPORT=1\r\nHOST=::1\r\n")
        assert (folder.load().port, folder.load().host) == (1, "::1")


class TestOrder:
    def test_a_default_follows_the_bound_down(self, folder: Folder) -> None:
        assert folder.load(MAX_BATCH_SIZE="16").batch_size == 16
        assert folder.load(VECGATE_BODY_MEMORY="1MiB").body_limit_bytes == MIB

    def test_one_gpu_of_several_is_not_named_where_ray_deals_them_out(self, folder: Folder) -> None:
        message = folder.refusal({"device": "cuda:1"}, VECGATE_ENGINE="ray")
        assert message.startswith("--device is 'cuda:1' and VECGATE_ENGINE in the environment is 'ray'")
        for device, engine in (("cuda:1", "local"), ("cuda", "ray"), ("auto", "ray")):
            assert folder.load(VECGATE_DEVICE=device, VECGATE_ENGINE=engine).device == device

    def test_a_value_over_the_bound_is_refused(self, folder: Folder) -> None:
        message = folder.refusal({"batch_size": "64"}, MAX_BATCH_SIZE="16")
        assert message == "--batch-size is '64'; allowed: at most 16, MAX_BATCH_SIZE in the environment."
        message = folder.refusal(BATCH_SIZE="200")
        assert message.endswith("is '200'; allowed: at most 128, the default of MAX_BATCH_SIZE.")
        assert "VECGATE_BODY_MEMORY" in folder.refusal(VECGATE_BODY_LIMIT="1GiB")

    def test_both_may_rise(self, folder: Folder) -> None:
        loaded = folder.load(BATCH_SIZE="200", MAX_BATCH_SIZE="256")
        assert (loaded.batch_size, loaded.max_batch_size) == (200, 256)


class TestFlags:
    def parse(self, *argv: str) -> dict[str, object]:
        parser = argparse.ArgumentParser(allow_abbrev=False)
        parser.add_argument("command")
        parser.add_argument("--debug", action="store_true")
        add_flags(parser)
        return flags_of(parser.parse_args(["serve", *argv]))

    def test_only_settings_that_were_given(self) -> None:
        assert self.parse() == {}
        assert self.parse("--debug", "--config", "a.toml", "--reranker", "r") == {
            "config": "a.toml",
            "cross_encoder_model": ["r"],
        }

    def test_lists_may_repeat(self, folder: Folder) -> None:
        given = self.parse("--api-key", "a,b", "--api-key", '["c"]', "--api-key", "b")
        assert folder.load(given).api_key == ("a", "b", "c")

    def test_a_wrong_item_among_repeats(self, folder: Folder) -> None:
        assert "hunter2" not in folder.refusal(self.parse("--api-key", "hunter2", "--api-key", "[hunter2]"))
        assert "--allowed-hosts" in folder.refusal(self.parse("--allowed-hosts", "a", "--allowed-hosts", "[b]"))

    def test_an_empty_flag_clears_what_may_be_absent_and_nothing_else(self, folder: Folder) -> None:
        cleared = folder.load(
            {"cross_encoder_model": [""], "allowed_hosts": [""]}, CROSS_ENCODER_MODEL="r", ALLOWED_HOSTS="a"
        )
        assert (cleared.rerankers, cleared.allowed_hosts) == ((), ())
        assert folder.refusal({"port": ""}).startswith("--port is ''; allowed: a whole number")
        assert folder.refusal({"model_name": [""]}).startswith("--model is ''")

    def test_values_of_their_own_type(self, folder: Folder) -> None:
        assert folder.load({"port": 1, "reload": False, "batch_size": None}).port == 1
        assert "integer 70000" in folder.refusal({"port": 70000})

    def test_each_is_in_the_help_with_variable_and_default(self) -> None:
        parser = argparse.ArgumentParser()
        add_flags(parser)
        text = " ".join(parser.format_help().split())
        assert "--config" in text
        assert [each.name for each in SETTINGS if each.option not in text or f"[{each.name}]" not in text] == []


class TestSecrets:
    def test_not_in_repr(self, folder: Folder) -> None:
        loaded = folder.load(VECGATE_API_KEY="hunter2")
        assert loaded.api_key == ("hunter2",)
        assert "hunter2" not in repr(loaded)
        assert "hunter2" not in str(loaded)

    def test_not_in_the_chain_of_errors(self, folder: Folder) -> None:
        with pytest.raises(ConfigError) as caught:
            folder.load(VECGATE_API_KEY='["hunter2')
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__

    @given(key=st.text(min_size=1).map("sk-{}".format))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_never_in_what_is_said(self, folder: Folder, key: str) -> None:
        for name, text in (("KEY", key), ("KYE", key), ("KEY", json.dumps([key, 1])), ("KEY", json.dumps([key]))):
            said = folder.said(**{f"VECGATE_API_{name}": text})
            assert "sk-" not in said
            assert len(said.splitlines()) == 1


class TestKeyFile:
    def keys(self, folder: Folder, text: str, **environ: str) -> tuple[str, ...]:
        folder.write("keys", text)
        return folder.load(VECGATE_API_KEY_FILE="keys", **environ).api_key

    def test_one_key_a_line_with_a_name_or_without(self, folder: Folder) -> None:
        text = "\ufeff# ours\n\n sk-1 \r\nalice\tsk-2\n  # theirs\nbob@example.org sk#3\nsk-1"
        assert self.keys(folder, text) == ("sk-1", "alice sk-2", "bob@example.org sk#3")
        assert self.keys(folder, "sk-1") == self.keys(folder, "sk-1\n") == ("sk-1",)

    def test_the_commands_show_the_first_without_its_name(self, folder: Folder) -> None:
        assert Settings().key is None
        for text in ("alice sk-2\nsk-1", "sk-2"):
            folder.write("keys", text)
            assert folder.load(VECGATE_API_KEY_FILE="keys").key == "sk-2"

    def test_they_join_those_of_the_setting(self, folder: Folder) -> None:
        assert self.keys(folder, "b\na\n", VECGATE_API_KEY="a,c") == ("a", "c", "b")

    @pytest.mark.parametrize("text", ["", "\n\n", "# sk-1\n", "\ufeff"])
    def test_a_file_without_a_key_would_leave_the_server_open(self, folder: Folder, text: str) -> None:
        path = folder.write("keys", text)
        message = folder.refusal(VECGATE_API_KEY_FILE="keys", VECGATE_API_KEY="a")
        assert f"VECGATE_API_KEY_FILE in the environment is '{path}', which holds no key" in message

    @pytest.mark.parametrize("line", ["a b hunter2", "h\u00fcnter2", "a/b hunter2", "hunter2\x00", "\u00e9 hunter2"])
    def test_a_line_that_is_no_key_is_named_and_not_shown(self, folder: Folder, line: str) -> None:
        path = folder.write("keys", f"sk-1\n{line}\n")
        message = folder.refusal(VECGATE_API_KEY_FILE="keys")
        assert f"{path} holds no key at line 2 (which is not shown)" in message
        assert "nter2" not in message

    def test_a_file_that_is_none(self, folder: Folder) -> None:
        assert f"'{folder.path}', a folder" in folder.refusal(VECGATE_API_KEY_FILE=str(folder.path))
        (folder.path / "binary").write_bytes(b"\xff\xfe")
        assert "not UTF-8" in folder.refusal(VECGATE_API_KEY_FILE="binary")

    def test_a_key_in_the_files_place_is_not_shown(self, folder: Folder) -> None:
        message = folder.refusal(VECGATE_API_KEY_FILE="sk-hunter2")
        assert "VECGATE_API_KEY_FILE in the environment is no file's name (not shown" in message
        assert "hunter2" not in message

    def test_it_closes_the_server_and_is_read_by_none_but_its_owner(self, folder: Folder) -> None:
        path = folder.write("keys", "sk-1")
        for mode, said in ((0o600, 0), (0o640, 1), (0o604, 1)):
            path.chmod(mode)
            found = warnings(folder.load(VECGATE_API_KEY_FILE=str(path), HOST="0.0.0.0"))
            assert len(found) == said
            assert [text for text in found if "chmod 600" not in text or str(path) not in text] == []

    def test_a_containers_secret_has_the_mode_it_was_given(self) -> None:
        key = Path("/run/secrets/tls/key.pem")  # never opened
        assert warnings(Settings(tls_key=key)) == ()


class TestWarnings:
    def test_none_by_default(self) -> None:
        assert warnings(Settings()) == ()
        assert warnings(Settings(host="localhost")) == warnings(Settings(host="::1")) == ()

    def test_stars(self) -> None:
        assert [text.split()[0] for text in warnings(Settings(allowed_hosts=("a", "*")))] == ["ALLOWED_HOSTS"]
        assert [text.split()[0] for text in warnings(Settings(allowed_origins=("*",)))] == ["ALLOWED_ORIGINS"]

    def test_open_without_a_key(self) -> None:
        (told,) = warnings(Settings(host="0.0.0.0"))
        assert "VECGATE_API_KEY_FILE, or HOST to 127.0.0.1" in told
        assert warnings(Settings(host="0.0.0.0", uds=Path("/run/x.sock"))) == ()
        assert warnings(Settings(host="0.0.0.0", api_key=("k",))) == ()


@given(st.sampled_from(SETTINGS), st.text(max_size=30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_any_text_gives_settings_or_one_line(folder: Folder, setting: Setting, text: str) -> None:
    assert len(folder.said(**{setting.prefixed: text}).splitlines()) == 1


def test_table_has_a_row_a_setting() -> None:
    lines = table().splitlines()
    assert {line.count("|") - line.count("\\|") for line in lines} == {6}
    assert [line.split("`")[1] for line in lines[2:]] == ["VECGATE_CONFIG", *(setting.name for setting in SETTINGS)]
    assert "`32MiB`" in table()
    assert "`127.0.0.1`" in table()
