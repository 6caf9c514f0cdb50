import asyncio
from pathlib import Path

import msgspec
import pytest

from tests import small
from vecgate import config
from vecgate.bench.raw import offline
from vecgate.errors import CommandError


def settings(folder: Path, model: str) -> bytes:
    given = {"BACKEND": "fake", "MODEL_NAME": model, "VECGATE_CACHE_DIR": str(folder / "cache")}
    return msgspec.json.encode(config.load({}, given, folder), enc_hook=str)


def test_a_model_in_a_process_of_its_own_takes_texts_again_and_again(tmp_path: Path) -> None:
    small.folder(tmp_path / "small")

    async def run() -> None:
        async with offline(settings(tmp_path, str(tmp_path / "small"))) as raw:
            assert (raw.card.model, raw.card.backend) == ("small", "fake")
            for texts, tokens in ((["paris", "paris is"], 7), (["what"] * 3, 9)):
                done = await raw.run([texts])
                assert (done.texts, done.tokens) == (len(texts), tokens)
                assert done.forward_s > 0

    asyncio.run(run())


def test_a_model_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    async def run() -> None:
        async with offline(settings(tmp_path, str(tmp_path / "nothing"))):
            pass

    with pytest.raises(CommandError, match=r"^--raw: .*nothing"):
        asyncio.run(run())
