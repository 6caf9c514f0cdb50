"""OpenAI's wire protocol: embeddings and the list of models.

Knows traits.Engine, nothing of other protocols; whose token ids come in is token_ids.py's matter.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from vecgate.core import Embeddings, ModelCard, Vectors, Verification, VirtualName
from vecgate.errors import (
    BackendFailed,
    BodyTimeout,
    DeadlineExceeded,
    Forbidden,
    InputTooLong,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    NotFound,
    NotReady,
    Overloaded,
    SpaceMismatch,
    TooLarge,
    Unauthenticated,
    UnsupportedEncoding,
    VecgateError,
    WrongTask,
)
from vecgate.protocols import (
    Answer,
    Ask,
    Route,
    headers_of_error,
    message_of,
    of_type,
    shown,
    timer,
    token_ids,
    vectors,
)
from vecgate.protocols.openai_bodies import (
    PACKED,
    PURPOSES,
    TASKS,
    CreateEmbeddings,
    Embedding,
    EmbeddingList,
    ErrorBody,
    ErrorDetail,
    Model,
    ModelList,
    Usage,
    Verified,
)

ERRORS: dict[type[VecgateError], tuple[int, str, str | None]] = {
    InvalidRequest: (400, "invalid_request_error", None),
    InputTooLong: (400, "invalid_request_error", "context_length_exceeded"),
    SpaceMismatch: (400, "invalid_request_error", "vector_space_mismatch"),
    WrongTask: (400, "invalid_request_error", None),
    Unauthenticated: (401, "invalid_request_error", "invalid_api_key"),
    Forbidden: (403, "permission_error", None),
    NotFound: (404, "invalid_request_error", None),
    ModelNotFound: (404, "invalid_request_error", "model_not_found"),
    MethodNotAllowed: (405, "invalid_request_error", None),
    BodyTimeout: (408, "invalid_request_error", None),
    TooLarge: (413, "invalid_request_error", None),
    UnsupportedEncoding: (415, "invalid_request_error", None),
    Overloaded: (429, "rate_limit_error", "rate_limit_exceeded"),
    BackendFailed: (500, "server_error", None),
    NotReady: (503, "server_error", None),
    DeadlineExceeded: (504, "server_error", None),
    VecgateError: (500, "server_error", None),
}
"""type -> (status, type, code); a type that is not here is its nearest parent's."""


def render(error: VecgateError) -> tuple[int, dict[str, str], bytes]:
    """OpenAI's error object: what its SDKs turn into their exceptions."""
    status, kind, code = of_type(ERRORS, error)
    param = "model" if isinstance(error, (ModelNotFound, WrongTask)) else getattr(error, "param", None)
    body = ErrorBody(error=ErrorDetail(message=message_of(error), type=kind, param=param, code=code))
    return status, headers_of_error(error), msgspec.json.encode(body)


_encoder = msgspec.json.Encoder()


async def create_embeddings(ask: Ask) -> Answer:
    return await _create(ask, ask.body)


async def create_for_deployment(ask: Ask) -> Answer:
    """Azure's form: the path names the model, whatever the body says; an id with a slash makes two parts of it."""
    parts = (ask.parameters.get(name) for name in ("organization", "deployment"))
    return await _create(ask, msgspec.structs.replace(ask.body, model="/".join(filter(None, parts))))


async def _create(ask: Ask, body: CreateEmbeddings) -> Answer:
    encoding = _encoding(body)
    _check_late_chunking(body)
    true = ask.engine.resolve(body.model, "embed")
    found = await ask.engine.embed(
        ask.call,
        body.model,
        await _inputs(ask, body),
        role=_role(ask, body, true),
        dimensions=_dimensions(body),
        cut=ask.site.cut,
    )
    param = "embedding_type" if body.embedding_type else "encoding_type"
    vectors.check_packs(found.vectors.shape[1], (encoding,), param)  # an alias may have a width of its own
    encoded_s = timer()
    name = body.model if body.model and body.model.strip() else true
    answer = await respond(found, name, encoding)
    return Answer(answer, found.applied, encode_s=encoded_s())


def _role(ask: Ask, body: CreateEmbeddings, model: str) -> str | None:
    """None, what the name or the checkpoint says, also for a purpose that the model has no prompt for."""
    prompts = next(card.prompts for card in ask.engine.status().models if card.name == model)
    said = _said("input_type", body.input_type, PURPOSES, prompts)
    also = _said("task", body.task, TASKS, prompts)
    if said is not None and also is not None and said != also:
        message = f"input_type is {shown(str(body.input_type))} and task {shown(str(body.task))}; give one."
        raise InvalidRequest(message, "task")
    return said if also is None else also


def _said(field: str, asked: str | None, known: Mapping[str, str], prompts: Collection[str]) -> str | None:
    """The role of a purpose or of a prompt of the model."""
    if asked is None or not (word := asked.strip().casefold()):
        return None
    prompt = next((name for name in prompts if name.casefold() == word), None)
    if known.get(word) in ("query", "document") and (prompt is None or word in PURPOSES):
        return known[word]
    if prompt is not None or word in known:
        return prompt
    every = ", ".join(dict.fromkeys((*known, *prompts)))
    raise InvalidRequest(f"{field} does not take {shown(asked)}; it takes {every}.", field)


def _dimensions(body: CreateEmbeddings) -> int | None:
    if body.dimensions is None or body.output_dimension in (None, body.dimensions):
        return body.output_dimension if body.dimensions is None else body.dimensions
    raise InvalidRequest(
        f"dimensions is {body.dimensions} and output_dimension {body.output_dimension}; give one.", "output_dimension"
    )


def _encoding(body: CreateEmbeddings) -> vectors.Encoding:
    """Under any of its three names; what two of them say must be the same."""
    types = [body.embedding_type] if isinstance(body.embedding_type, str) else body.embedding_type or []
    if len(types) > 1:
        message = f"embedding_type holds {len(types)} types; give one, as an answer has one form of each row."
        raise InvalidRequest(message, "embedding_type")
    asked = {"encoding_format": body.encoding_format, "encoding_type": body.encoding_type}
    if types:
        asked["embedding_type"] = types[0]
    found = {name: _offered(name, word) for name, word in asked.items() if word is not None}
    if len(set(found.values())) > 1:
        raise InvalidRequest(f"{' and '.join(found)} ask for different things; give one.", [*found][-1])
    return next(iter(found.values()), "float")


def _offered(name: str, asked: str) -> vectors.Encoding:
    offered: tuple[vectors.Encoding, ...] = ("float", "base64")
    if name != "encoding_format":
        offered += PACKED
    for one in offered:
        if asked == one:
            return one
    known = f"{', '.join(map(repr, offered[:-1]))} or {offered[-1]!r}"
    raise InvalidRequest(f"{name} {shown(asked)} is not offered; use {known}.", name)


def _check_late_chunking(body: CreateEmbeddings) -> None:
    """Raises InvalidRequest where each row is wanted in the light of the other inputs."""
    if body.late_chunking:
        raise InvalidRequest("late_chunking is not offered: each input is embedded by itself.", "late_chunking")


async def _inputs(ask: Ask, body: CreateEmbeddings) -> Sequence[str] | token_ids.Arrays:
    """The texts, or the token arrays as token_ids.py reads them; one kind only."""
    items: list[Any] = [body.input] if isinstance(body.input, str) else body.input
    kinds = set(map(type, items))
    if len(kinds) > 1:
        raise InvalidRequest("input mixes texts, token ids or arrays of them; send one kind only.", "input")
    if kinds == {int}:
        items = [items]
    if len(items) > ask.site.max_inputs:
        message = f"input holds {len(items)} items; the limit is {ask.site.max_inputs} a request (VECGATE_MAX_INPUTS)."
        raise InvalidRequest(message, "input")
    if kinds == {str}:
        return items
    return await token_ids.inputs_of(ask.engine, ask.site, body.model, items)


async def respond(found: Embeddings, model: str, encoding: vectors.Encoding) -> bytes:
    """The whole body, as EmbeddingList documents it; large ones are encoded in slices."""

    def rows(start: int, part: Vectors) -> list[Any]:
        encoded = vectors.encode(part, encoding)
        return [Embedding(index=i, embedding=one) for i, one in enumerate(encoded, start)]

    data: Any = await vectors.join(found.vectors, rows)
    tokens = sum(found.applied.tokens)
    return _encoder.encode(
        EmbeddingList(data=data, model=model, usage=Usage(prompt_tokens=tokens, total_tokens=tokens))
    )


async def list_models(ask: Ask) -> Answer:
    """The models by their true names, then what else a list shows of each."""
    cards = ask.engine.status().models
    models = [_model(card) for card in cards]
    models += [_model(card, name) for card in cards for name in card.virtual]
    return Answer(msgspec.json.encode(ModelList(data=models)))


async def retrieve_model(ask: Ask) -> Answer:
    """One model by any of its names; the id may hold slashes. Listed names answer as they are listed."""
    asked = ask.parameters["model_id"].strip("/")
    name = ask.engine.resolve(asked)
    card = next(card for card in ask.engine.status().models if card.name == name)
    return Answer(msgspec.json.encode(_model(card, _virtual(card, asked))))


def _virtual(card: ModelCard, asked: str) -> VirtualName | None:
    """What one of the model's names says beside the model. A role behind an alias is in no list; it keeps both."""
    known = {one.name.casefold(): one for one in card.virtual}
    if (listed := known.get(asked.casefold())) is not None:
        return listed
    base, _, tag = asked.casefold().rpartition(":")
    alias, role = known.get(base), known.get(f"{card.name.casefold()}:{tag}")
    return VirtualName(asked, role.role, alias.dimensions) if alias and role else alias or role


def _model(card: ModelCard, virtual: VirtualName | None = None) -> Model:
    said = virtual or VirtualName(card.name)
    return Model(
        id=said.name,
        created=card.created,
        root=card.name,
        role=said.role,
        aliases=card.aliases,
        task=card.task,
        state=card.state,
        max_tokens=card.max_tokens,
        dimensions=said.dimensions or card.dimensions,
        space=card.space,
        verification=_verified(card.verification),
    )


def _verified(found: Verification | None) -> Verified | None:
    return None if found is None else Verified(form=found.form, verdict=found.verdict, at=int(found.at))


EXAMPLE = {"input": ["The food was delicious.", "Where is the station?"]}
ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        ("/v1/embeddings", "/embeddings", "/openai/v1/embeddings"),
        create_embeddings,
        render,
        "Create embeddings",
        body=CreateEmbeddings,
        answer=EmbeddingList,
        example=EXAMPLE,
    ),
    Route(
        "POST",
        (
            "/openai/deployments/{deployment:str}/embeddings",
            "/openai/deployments/{organization:str}/{deployment:str}/embeddings",
        ),
        create_for_deployment,
        render,
        "Create embeddings, as on Azure",
        body=CreateEmbeddings,
        answer=EmbeddingList,
        example=EXAMPLE,
    ),
    Route(
        "GET",
        ("/v1/models", "/models", "/openai/v1/models", "/openai/models"),
        list_models,
        render,
        "List models",
        answer=ModelList,
    ),
    Route(
        "GET",
        ("/v1/models/{model_id:path}", "/models/{model_id:path}"),
        retrieve_model,
        render,
        "Retrieve a model",
        answer=Model,
    ),
)
