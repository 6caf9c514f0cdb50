"""What `vecgate serve` says once the models are loaded: for eyes as a block of lines, for machines as fields of one log line.

Knows the engine's status and the settings; never shows a key.
"""

from __future__ import annotations

from typing import Any

from vecgate import __version__
from vecgate.core import ModelCard, Status, Verification
from vecgate.settings import MIB, Settings


def fields(status: Status, settings: Settings, url: str) -> dict[str, Any]:
    """For the JSON log."""
    return {
        "url": url,
        "models": [
            {
                "name": card.name,
                "task": card.task,
                "backend": card.backend,
                "why": card.why,
                "device": card.device,
                "dtype": card.dtype,
                "dimensions": card.dimensions,
                "max_tokens": card.max_tokens,
                "load_s": None if card.load_s is None else round(card.load_s, 3),
                "verified": card.verification and card.verification.verdict,
            }
            for card in status.models
        ],
        "limits": {
            "max_inputs": settings.max_inputs,
            "max_texts_per_request": settings.max_texts_per_request,
            "max_passages_per_rerank": settings.max_passages_per_rerank,
            "max_in_flight": settings.max_in_flight,
            "body_limit_bytes": settings.body_limit_bytes,
            "request_timeout_s": settings.request_timeout_s,
        },
        "paste": paste(status, settings, url),
    }


def text(status: Status, settings: Settings, url: str) -> str:
    """For a person: what is served, on what, within which limits, and a line to paste."""
    rows = [row for card in status.models for row in _model(card)]
    rows += [
        ("limits", f"{settings.max_inputs} inputs a request ({settings.max_texts_per_request} on the native routes),"),
        ("", f"{settings.max_passages_per_rerank} passages, {_size(settings.body_limit_bytes)} a body,"),
        ("", f"{settings.max_in_flight} requests at once, {settings.request_timeout_s:g} s each"),
        ("address", url if settings.uds else f"{url} (try it at {url}/docs)"),
        ("paste", paste(status, settings, url)),
    ]
    lines = [f"  {label:<12}{value}".rstrip() for label, value in rows]
    return "\n".join(["", f"vecgate {__version__} is ready.", "", *lines, "", ""])


def paste(status: Status, settings: Settings, url: str) -> str:
    """The client to begin with: OpenAI's SDK, or Cohere's where there is only a reranker."""
    key, over = "..." if settings.api_key else "unused", ""
    if settings.uds:
        url = "http://localhost"
        over = f', {{}}=httpx.Client(transport=httpx.HTTPTransport(uds="{settings.uds.absolute()}"))'
    if any(card.task == "embed" for card in status.models):
        return f'OpenAI(base_url="{url}/v1", api_key="{key}"{over.format("http_client")})'
    return f'cohere.ClientV2(base_url="{url}", api_key="{key}"{over.format("httpx_client")})'


def _model(card: ModelCard) -> list[tuple[str, str]]:
    also = f" (or {', '.join(card.aliases)})" if card.aliases else ""
    size = f"{card.dimensions} dimensions, " if card.task == "embed" else ""
    why = f": {card.why}" if card.why and card.why != "asked for" else ""
    return [
        ("model" if card.task == "embed" else "reranker", f"{card.name}{also}"),
        ("", f"{size}{card.max_tokens} tokens"),
        ("backend", f"{card.backend}{why}"),
        ("device", f"{card.device}, {card.dtype}"),
        *([("verified", _verified(card.verification))] if card.verification else []),
    ]


def _verified(found: Verification) -> str:
    """With the names of the checks that moved rows further than their number type explains."""
    moved = [one.name for one in found.checks if one.verdict == "deviates"]
    return f"{found.verdict}{': ' + ', '.join(moved) if moved else ''} ({found.form}, {found.took_s:.2f} s)"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / MIB:g} MiB"
