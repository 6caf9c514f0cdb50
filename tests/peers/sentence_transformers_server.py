"""What many people write: sentence-transformers behind FastAPI; run in an environment of its own.

As good as it gets without batching over requests: one thread computes, calls wait their turn, a call's texts are sorted and
batched by sentence-transformers, rows are sent as base64 where asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import CrossEncoder, SentenceTransformer


class Texts(BaseModel):
    input: str | list[str]
    model: str = ""
    encoding_format: str = "float"


class Ranking(BaseModel):
    query: str
    documents: list[str]
    model: str = ""


def app(model: SentenceTransformer, reranker: CrossEncoder | None) -> FastAPI:
    made, device = FastAPI(), ThreadPoolExecutor(1)

    async def computed(work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(device, work)

    @made.get("/health")
    async def health() -> dict[str, str]:
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        return {"status": "ok", "model": "minilm", "backend": "torch", "device": str(model.device), "dtype": dtype}

    @made.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "minilm", "object": "model"}]}

    @made.post("/v1/embeddings")
    async def embeddings(body: Texts) -> dict[str, Any]:
        texts = [body.input] if isinstance(body.input, str) else body.input
        rows = await computed(
            lambda: model.encode(texts, batch_size=32, normalize_embeddings=True, show_progress_bar=False)
        )
        as_base64 = body.encoding_format == "base64"
        data = [
            {
                "object": "embedding",
                "index": at,
                "embedding": base64.b64encode(row.tobytes()).decode() if as_base64 else row.tolist(),
            }
            for at, row in enumerate(rows)
        ]
        return {"object": "list", "model": "minilm", "data": data}

    @made.post("/v1/rerank")
    async def rerank(body: Ranking) -> dict[str, Any]:
        scores = await computed(lambda: ranked(body))
        order = sorted(range(len(scores)), key=lambda at: -scores[at])
        return {"results": [{"index": at, "relevance_score": scores[at]} for at in order]}

    def ranked(body: Ranking) -> list[float]:
        if reranker is not None:
            pairs = [(body.query, document) for document in body.documents]
            found: list[float] = reranker.predict(pairs, batch_size=32, show_progress_bar=False).tolist()
            return found
        rows = model.encode([body.query, *body.documents], batch_size=32, normalize_embeddings=True)
        cosines: list[float] = ((1.0 + rows[1:] @ rows[0]) / 2.0).tolist()
        return cosines

    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--reranker")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    embedder = SentenceTransformer(arguments.model, device="cpu", model_kwargs={"dtype": torch.float32})
    judge = CrossEncoder(arguments.reranker, device="cpu") if arguments.reranker else None
    uvicorn.run(app(embedder, judge), host="127.0.0.1", port=arguments.port, log_level="warning")
