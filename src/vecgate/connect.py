"""`vecgate connect`: tell another program, through its own interface for administrators, to embed and rerank here.

Knows Open WebUI's interface as its 0.12 has it, and a gateway's list of models; no engine and no settings.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

import httpx

from vecgate.client import TOP_LOOPBACK
from vecgate.errors import CommandError

GATEWAY = "http://127.0.0.1:9000"
NO_KEY = "unused"
"""For a gateway without keys: Open WebUI would send an empty one, which some servers refuse."""
TIMEOUT_S = 60.0
EMBEDDING, EMBEDDING_UPDATE = "/api/v1/retrieval/embedding", "/api/v1/retrieval/embedding/update"
CONFIG, CONFIG_UPDATE = "/api/v1/retrieval/config", "/api/v1/retrieval/config/update"
SECRETS = ("key", "RAG_EXTERNAL_RERANKER_API_KEY")


@dataclass(frozen=True, slots=True)
class Wish:
    """url, token: Open WebUI's and an administrator's. gateway: as it is asked from here; seen_as: as Open WebUI reaches it.

    key: the gateway's. model, reranker: its names for them (None: its first; "none": leave reranking as it is; an embedding
    model ranks by similarity). batch_size: texts in one of Open WebUI's requests (None: as it is).
    """

    url: str
    token: str
    gateway: str = GATEWAY
    seen_as: str | None = None
    key: str | None = None
    model: str | None = None
    reranker: str | None = None
    batch_size: int | None = None
    dry_run: bool = False


def wish(arguments: argparse.Namespace, stdin: TextIO) -> Wish:
    """What the flags say; the token's line is read where it is -."""
    token = stdin.readline().strip() if arguments.token == "-" else arguments.token
    if not token:
        raise CommandError("The token is empty: Open WebUI wants an administrator's (Settings > Account > API keys).")
    return Wish(
        url=arguments.url,
        token=token,
        gateway=arguments.gateway,
        seen_as=arguments.seen_as,
        key=arguments.api_key,
        model=arguments.model,
        reranker=arguments.reranker,
        batch_size=arguments.batch_size,
        dry_run=arguments.dry_run,
    )


def connect(wish: Wish) -> Iterator[str]:
    """Lines of what was changed, as it is; raises CommandError with what is wrong and what to do."""
    embedder, reranker = _names(wish)
    here = (wish.seen_as or wish.gateway).rstrip("/").removesuffix("/v1")
    with _client(wish.url, wish.token) as open_webui:
        before = _embedding(open_webui)
        asked = _embedding_wish(wish, before, here, embedder)
        yield from _set(open_webui, EMBEDDING_UPDATE, before, asked, dry_run=wish.dry_run)
        if reranker is not None:
            config = _json(open_webui, "GET", CONFIG)
            yield from _set(open_webui, CONFIG_UPDATE, config, _rerank_wish(wish, here, reranker), dry_run=wish.dry_run)
        elif wish.reranker is None:
            yield "The gateway has no reranker: Open WebUI's reranking stays as it is."
        made_by = before["RAG_EMBEDDING_ENGINE"], before["RAG_EMBEDDING_MODEL"]
        if made_by != ("openai", embedder):
            yield (
                f"What Open WebUI holds already was embedded by {made_by[1] or 'another model'}: "
                "Admin Panel > Settings > Documents > Reindex Knowledge Base."
            )
        if wish.dry_run:
            yield "Nothing was changed (--dry-run)."
        else:
            _check(open_webui, asked, _rerank_wish(wish, here, reranker) if reranker is not None else {})


def _embedding_wish(wish: Wish, before: Mapping[str, Any], here: str, model: str) -> dict[str, Any]:
    """All of the form: what is left out of it Open WebUI sets back to its defaults."""
    return {
        "RAG_EMBEDDING_ENGINE": "openai",
        "RAG_EMBEDDING_MODEL": model,
        "RAG_EMBEDDING_BATCH_SIZE": wish.batch_size or before.get("RAG_EMBEDDING_BATCH_SIZE") or 1,
        "ENABLE_ASYNC_EMBEDDING": before.get("ENABLE_ASYNC_EMBEDDING", True),
        "RAG_EMBEDDING_CONCURRENT_REQUESTS": before.get("RAG_EMBEDDING_CONCURRENT_REQUESTS", 0),
        "openai_config": {"url": f"{here}/v1", "key": wish.key or NO_KEY},
    }


def _rerank_wish(wish: Wish, here: str, reranker: str) -> dict[str, Any]:
    """Hybrid search too: without it Open WebUI does not rerank."""
    return {
        "ENABLE_RAG_HYBRID_SEARCH": True,
        "RAG_RERANKING_ENGINE": "external",
        "RAG_RERANKING_MODEL": reranker,
        "RAG_EXTERNAL_RERANKER_URL": f"{here}/v1/rerank",
        "RAG_EXTERNAL_RERANKER_API_KEY": wish.key or NO_KEY,
    }


def _names(wish: Wish) -> tuple[str, str | None]:
    """The gateway's embedding model and reranker, as it lists them."""
    with _client(wish.gateway.rstrip("/").removesuffix("/v1"), wish.key) as gateway:
        cards = _json(gateway, "GET", "/v1/models").get("data", [])
    embedders, rerankers = (_called(cards, task) for task in ("embed", "rerank"))
    if not embedders:
        raise CommandError("The gateway has no embedding model, so there is nothing to connect.")
    reranker = next(iter(rerankers), None)
    if wish.reranker is not None:
        reranker = _known(wish.reranker, ["none", *rerankers, *embedders])
    return _known(wish.model or embedders[0], embedders), None if reranker == "none" else reranker


def _called(cards: list[dict[str, Any]], task: str) -> list[str]:
    return [name for card in cards if card.get("task") == task for name in (card["id"], *card.get("aliases", ()))]


def _known(asked: str, names: list[str]) -> str:
    if asked not in names:
        raise CommandError(f"The gateway has no model {asked!r} for that; it has {', '.join(names)}.")
    return asked


def _embedding(open_webui: httpx.Client) -> dict[str, Any]:
    found = _json(open_webui, "GET", EMBEDDING)
    if "RAG_EMBEDDING_ENGINE" not in found:
        raise CommandError(f"{_where(open_webui)} answers, but not as Open WebUI does.")
    return found


def _set(
    open_webui: httpx.Client, path: str, before: Mapping[str, Any], asked: Mapping[str, Any], *, dry_run: bool
) -> Iterator[str]:
    for name, value in asked.items():
        for part, now in value.items() if isinstance(value, dict) else ((name, value),):
            was = (before.get(name) or {}).get(part) if isinstance(value, dict) else before.get(name)
            told = f"{name}.{part}" if part != name else name
            shown = ("...", "...") if part in SECRETS else (was, now)
            yield f"{told}: as it was, {shown[1]!r}" if was == now else f"{told}: {shown[0]!r} -> {shown[1]!r}"
    if not dry_run:
        _json(open_webui, "POST", path, asked)


def _check(open_webui: httpx.Client, *asked: Mapping[str, Any]) -> None:
    """Raises CommandError where Open WebUI did not keep what it was told."""
    kept = _json(open_webui, "GET", CONFIG) | _json(open_webui, "GET", EMBEDDING)
    for name, value in ((name, value) for one in asked for name, value in one.items()):
        if kept.get(name) != value:
            told = "it" if name == "openai_config" or name in SECRETS else repr(kept.get(name))
            raise CommandError(f"Open WebUI took the change of {name} and did not keep {told}: set it in its settings.")


def _client(url: str, token: str | None) -> httpx.Client:
    try:
        parsed = httpx.URL(url.rstrip("/"))
    except httpx.InvalidURL as error:
        raise CommandError(f"{url!r} is not an address: {error}.") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise CommandError(f"{url!r} is not an address; give one such as http://127.0.0.1:3000.")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    local = parsed.host in TOP_LOOPBACK  # which no proxy reaches
    return httpx.Client(base_url=parsed, headers=headers, timeout=TIMEOUT_S, trust_env=not local)


def _json(client: httpx.Client, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    where = _where(client)
    try:
        answer = client.request(method, path, json=body)
    except httpx.HTTPError as error:
        raise CommandError(f"Nothing answers at {where}: {error}.") from error
    if answer.status_code in (401, 403):
        raise CommandError(
            f"{where} refuses the token or key ({answer.status_code}): Open WebUI wants an administrator's (Settings > "
            "Account > API keys), a gateway with keys one of them (--api-key)."
        )
    if answer.is_error:
        raise CommandError(f"{where}{path} answered {answer.status_code}: {answer.text[:300]}")
    try:
        found = answer.json()
    except ValueError as error:
        raise CommandError(f"{where}{path} answered something that is no JSON: is the address right?") from error
    if not isinstance(found, dict):
        raise CommandError(f"{where}{path} answered {str(found)[:80]!r}, which is no object.")
    return found


def _where(client: httpx.Client) -> str:
    return str(client.base_url).rstrip("/")
