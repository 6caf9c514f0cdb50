"""OpenAI's embeddings route as Jina's clients call it: their names of an encoding, and what they may ask for besides."""

from typing import Any

import numpy as np
import pytest

from tests.protocols.test_openai import embed, refused, rows, unpacked

TEXTS = ["the cat", "a dog sat", "paris"]


@pytest.fixture
def plain() -> np.ndarray[Any, Any]:
    return np.array(rows(embed({"input": TEXTS})), np.float32)


@pytest.mark.parametrize(
    "asked", [{"embedding_type": "float"}, {"encoding_type": "float"}, {"embedding_type": ["float"]}]
)
def test_floats(asked: dict[str, Any], plain: np.ndarray[Any, Any]) -> None:
    assert rows(embed({"input": TEXTS, **asked})) == rows(embed({"input": TEXTS}))


@pytest.mark.parametrize("asked", [{"embedding_type": "base64"}, {"encoding_type": "base64"}])
def test_base64(asked: dict[str, Any], plain: np.ndarray[Any, Any]) -> None:
    packed = [unpacked(text) for text in rows(embed({"input": TEXTS, **asked}))]
    np.testing.assert_array_equal(np.array(packed, np.float32), plain)


@pytest.mark.parametrize("name", ["embedding_type", "encoding_type"])
def test_bits(name: str, plain: np.ndarray[Any, Any]) -> None:
    """As LlamaIndex unpacks them."""
    unsigned = np.array(rows(embed({"input": TEXTS, name: "ubinary"})))
    signed = np.array(rows(embed({"input": TEXTS, name: "binary"})))
    np.testing.assert_array_equal(np.unpackbits(unsigned.astype(np.uint8), axis=1), plain > 0)
    np.testing.assert_array_equal(signed + 128, unsigned)


@pytest.mark.parametrize(
    ("asked", "param", "words"),
    [
        (
            {"embedding_type": "int8"},
            "embedding_type",
            "'int8' is not offered; use 'float', 'base64', 'binary' or 'ubinary'",
        ),
        (
            {"encoding_type": "bits"},
            "encoding_type",
            "'bits' is not offered; use 'float', 'base64', 'binary' or 'ubinary'",
        ),
        ({"encoding_format": "binary"}, "encoding_format", "'binary' is not offered; use 'float' or 'base64'"),
        ({"embedding_type": ["float", "binary"]}, "embedding_type", "embedding_type holds 2 types; give one"),
        ({"embedding_type": 3}, "embedding_type", "int"),
        ({"embedding_type": "binary", "dimensions": 4}, "embedding_type", "4 dimensions are not a multiple of 8"),
        ({"encoding_type": "ubinary", "dimensions": 4}, "encoding_type", "4 dimensions are not a multiple of 8"),
        ({"encoding_format": "float", "embedding_type": "binary"}, "embedding_type", "ask for different things"),
        ({"late_chunking": True}, "late_chunking", "each input is embedded by itself"),
    ],
)
def test_what_is_not_offered_is_named(asked: dict[str, Any], param: str, words: str) -> None:
    error = refused(embed({"input": TEXTS, **asked}))
    assert error["param"] == param
    assert words in error["message"]


def test_what_is_left_open_changes_nothing() -> None:
    nulls = {"embedding_type": None, "encoding_type": None, "task": None, "late_chunking": False}
    assert rows(embed({"input": TEXTS, **nulls})) == rows(embed({"input": TEXTS}))
    assert rows(embed({"input": TEXTS, "embedding_type": []})) == rows(embed({"input": TEXTS}))
    both = {"encoding_format": "base64", "encoding_type": "base64"}
    assert rows(embed({"input": TEXTS, **both})) == rows(embed({"input": TEXTS, "encoding_format": "base64"}))
