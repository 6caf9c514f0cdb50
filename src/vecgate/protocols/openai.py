"""OpenAI's wire protocol: embeddings and the list of models.

Knows traits.Engine, nothing of other protocols; whose token ids come in is token_ids.py's matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from vecgate.core import Embeddings, ModelCard, Task, Vectors, Verification, VirtualName
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
    Expecting,
    Ignored,
    Route,
    headers_of_error,
    message_of,
    of_type,
    shown,
    timer,
    token_ids,
    vectors,
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

TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Items = Annotated[list[str | TokenId | Annotated[list[TokenId], Meta(min_length=1)]], Meta(min_length=1)]
_TOKEN_ID = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
INPUT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        {"type": "array", "items": _TOKEN_ID, "minItems": 1},
        {"type": "array", "items": {"type": "array", "items": _TOKEN_ID, "minItems": 1}, "minItems": 1},
    ]
}
"""The four shapes of `input`; msgspec's own types can't tell a list of one kind from a mixed one."""


PURPOSES = {
    "search_query": "query",
    "query": "query",
    "search_document": "document",
    "document": "document",
    "passage": "document",
    "classification": "classification",
    "clustering": "clustering",
}
"""input_type -> role, as Cohere, Voyage and NVIDIA spell it; the last two are roles only where there is such a prompt."""


class CreateEmbeddings(Expecting, kw_only=True):
    input: Annotated[
        str | Items,
        Meta(description="One text, texts, token ids, or arrays of token ids.", extra_json_schema=INPUT_SCHEMA),
    ]
    model: Annotated[
        str | None, Meta(description="A name or alias of GET /v1/models; absent or null: the default.")
    ] = None
    encoding_format: Annotated[
        str | None, Meta(description="float or base64.", extra_json_schema={"enum": ["float", "base64", None]})
    ] = None
    dimensions: Annotated[
        Annotated[int, Meta(extra_json_schema={"minimum": 1})] | None,
        Meta(description="Numbers kept of each vector, which is then renormalised."),
    ] = None
    output_dimension: Annotated[int | None, Meta(description="The same, as Infinity's clients call it.")] = None
    input_type: Annotated[
        str | None,
        Meta(description=f"Whose prompt stands before each text: {', '.join(PURPOSES)}, or a prompt of the model."),
    ] = None
    user: Ignored = msgspec.field(default_factory=msgspec.Raw)


class Embedding(msgspec.Struct, kw_only=True):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: Annotated[
        list[float] | str, Meta(description="A string (base64 of little-endian float32) if asked for.")
    ]


class Usage(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class Verified(msgspec.Struct, kw_only=True):
    """How the check before readiness came out: passed, deviates or failed; at: seconds since the epoch. /health has more."""

    form: str
    verdict: str
    at: int


class Model(msgspec.Struct, kw_only=True):
    """OpenAI's four fields, and ours. root: the true name. role, dimensions: what the id stands for beside the model;
    no role: what the checkpoint says. dimensions: null for a reranker. space: the fingerprint of the vector space, null
    until it is known. verification: null before it was made, or where VECGATE_VERIFY is off."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "vecgate"
    root: str
    role: str | None
    aliases: tuple[str, ...]
    task: Task
    state: str
    max_tokens: int
    dimensions: int | None
    space: str | None
    verification: Verified | None


class ModelList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Model]


class ErrorDetail(msgspec.Struct, kw_only=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, kw_only=True):
    error: ErrorDetail


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
    encoding = _encoding(body.encoding_format)
    true = ask.engine.resolve(body.model, "embed")
    found = await ask.engine.embed(
        ask.call,
        body.model,
        await _inputs(ask, body),
        role=_role(ask, body.input_type, true),
        dimensions=_dimensions(body),
        cut=ask.site.cut,
    )
    encoded_s = timer()
    name = body.model if body.model and body.model.strip() else true
    answer = await respond(found, name, encoding)
    return Answer(answer, found.applied, encode_s=encoded_s())


def _role(ask: Ask, asked: str | None, model: str) -> str | None:
    """None, what the name or the checkpoint says, also for a purpose that the model has no prompt for."""
    if asked is None or not (word := asked.strip().casefold()):
        return None
    prompts = next(card.prompts for card in ask.engine.status().models if card.name == model)
    if PURPOSES.get(word) in ("query", "document"):
        return PURPOSES[word]
    if (prompt := next((name for name in prompts if name.casefold() == word), None)) is not None or word in PURPOSES:
        return prompt
    known = ", ".join(dict.fromkeys((*PURPOSES, *prompts)))
    raise InvalidRequest(f"input_type does not take {shown(asked)}; it takes {known}.", "input_type")


def _dimensions(body: CreateEmbeddings) -> int | None:
    if body.dimensions is None or body.output_dimension in (None, body.dimensions):
        return body.output_dimension if body.dimensions is None else body.dimensions
    raise InvalidRequest(
        f"dimensions is {body.dimensions} and output_dimension {body.output_dimension}; give one.", "output_dimension"
    )


def _encoding(asked: str | None) -> Literal["float", "base64"]:
    if asked is None or asked == "float":
        return "float"
    if asked == "base64":
        return "base64"
    raise InvalidRequest(f"encoding_format {shown(asked)} is not offered; use 'float' or 'base64'.", "encoding_format")


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
