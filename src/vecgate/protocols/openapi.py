"""The OpenAPI 3.1 document of a table of Routes: bodies from their Structs, errors from what their dialects render.

Knows Routes only; a protocol added to the table is documented without a line here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from vecgate.errors import (
    BackendFailed,
    BodyTimeout,
    DeadlineExceeded,
    EmptyInput,
    Forbidden,
    InputTooLong,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    NotReady,
    OutOfMemory,
    Overloaded,
    RateLimited,
    SpaceMismatch,
    TooLarge,
    Unauthenticated,
    UnsupportedEncoding,
    VecgateError,
    WrongTask,
)
from vecgate.protocols import NDJSON, Route

Json = dict[str, Any]

ABOUT = """Embeddings and reranking from a model on this machine, in the dialects clients already speak.

Every route answers with and without a trailing slash. Fields a route does not know are ignored, and null stands for
"not given" wherever a field is optional. Every answer carries `x-request-id`; answers with vectors or scores also carry
`x-vecgate-model` (the model's true name), `x-vecgate-role` (whose prompt stood before the texts), `x-vecgate-space` (the
fingerprint of the vector space), `x-vecgate-dimensions`, `server-timing`, and `x-vecgate-truncated` when an input was cut (`index:tokens before>tokens kept`). A request that sends
`x-vecgate-space`, as a header or as the field `space`, is refused where the model is of another vector space. 429 and 503
carry `retry-after` in seconds when waiting helps.
"""

ANYWHERE: tuple[VecgateError, ...] = (
    InvalidRequest("The Host header is missing."),
    Unauthenticated("This server needs an API key: send Authorization: Bearer KEY."),
    Forbidden("The origin http://example.com may not call this server."),
    Overloaded("4,096 requests are in flight; this server takes no more now.", 2),
    RateLimited("This key's rate is used up.", 1),
    BackendFailed("The model gave no usable row."),
    OutOfMemory("The device had no room for the batch."),
    NotReady("The model is loading.", 5),
    NotReady("The model failed to load.", None),
)
WITH_PARAMETERS: tuple[VecgateError, ...] = (
    NotFound("There is no such thing here."),
    ModelNotFound("The model 'x' does not exist here; these do: all-MiniLM-L6-v2."),
)
WITH_BODY: tuple[VecgateError, ...] = (
    InvalidRequest("Expected `int | null`, got `str` at 'batch_size'.", "batch_size"),
    EmptyInput("input is empty; give at least one item.", "input"),
    InputTooLong("Input 0 has 300 tokens; the model takes 256.", "input"),
    SpaceMismatch(
        "vector_space_mismatch: the request expects the vector space 'vs1-0', and 'x' is of 'vs1-1'.", "space"
    ),
    WrongTask("The model 'x' does not embed."),
    *WITH_PARAMETERS,
    BodyTimeout("The body did not arrive within 10 s."),
    TooLarge("The body has 40,000,000 bytes; the limit is 33,554,432."),
    UnsupportedEncoding("Content-Encoding gzip is not taken; send the body as it is."),
    DeadlineExceeded("The request took longer than 300 s."),
)
"""One error of every kind an operation can answer; rendered in its dialect they give statuses, shapes and examples."""

MEANING = {
    400: "The request must change.",
    401: "The API key is missing or wrong.",
    403: "This Host or Origin may not call.",
    404: "Not found.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is compressed.",
    422: "The request must change.",
    424: "The model failed.",
    429: "No room for more work now.",
    500: "The server failed.",
    503: "Loading, draining or failed.",
    504: "The request took too long.",
}
KINDS: dict[type, str] = {
    dict: "object",
    list: "array",
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
}


def document(routes: Iterable[Route], version: str, root: str | None = None) -> Json:
    """The whole document as plain data; several routes on one path and method become one operation with oneOf.

    root: the path under which a proxy shows the server, where that is known.
    """
    shown = [route for route in routes if route.documented]
    types = [
        kind for route in shown for kind in (route.body, route.answer, *route.lines, *route.otherwise.values()) if kind
    ]
    references, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    known = dict(zip(types, references, strict=True))
    responses: Json = {}
    paths: dict[str, Json] = {}
    for (path, method), group in _grouped(shown).items():
        errors = _errors(group, path, schemas, responses)
        paths.setdefault(_plain(path), {})[method] = _operation(path, group, known, errors)
    return {
        "openapi": "3.1.0",
        "info": {"title": "vecgate", "version": version, "description": ABOUT, "license": {"name": "MIT"}},
        "servers": [{"url": root or ".", "description": "Where this document came from."}],
        "security": [{}, {"key": []}],
        "tags": [{"name": name, "description": text} for name, text in _tags(shown).items()],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": responses,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "Only if one is set."}},
        },
    }


def _grouped(routes: Sequence[Route]) -> dict[tuple[str, str], list[Route]]:
    groups: dict[tuple[str, str], list[Route]] = {}
    for route in routes:
        for path in route.paths:
            groups.setdefault((path, route.method.lower()), []).append(route)
    return groups


def _operation(path: str, group: list[Route], known: Mapping[Any, Json], errors: Json) -> Json:
    """One operation; `known` holds the schema of every Struct."""
    first = group[0]
    operation: Json = {
        "operationId": _operation_id(path, first),
        "tags": list(dict.fromkeys(_tag(route) for route in group)),
        "summary": " | ".join(dict.fromkeys(route.summary for route in group)),
        "responses": _success(group, known) | _others(group, known, errors),
    }
    if path != first.paths[0]:
        operation["description"] = f"The same as {_plain(first.paths[0])}."
    if names := _parameters(path):
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    bodies = [route for route in group if route.body is not None]
    if bodies:
        operation["requestBody"] = {"required": True, "content": {"application/json": _body(bodies, known)}}
    return operation


def _body(routes: list[Route], known: Mapping[Any, Json]) -> Json:
    examples = {
        _tag(route) if route.key is None else f"{_tag(route)}: {route.key}": {
            "summary": route.summary,
            "value": dict(route.example),
        }
        for route in routes
        if route.example is not None
    }
    content: Json = {"schema": _one_of([known[route.body] for route in routes])}
    return content | ({"examples": examples} if examples else {})


def _success(group: list[Route], known: Mapping[Any, Json]) -> Json:
    """The 200 by its status; nothing where no route offers one."""
    content: dict[str, list[Json]] = {}
    for route in (route for route in group if route.offered):
        schema = {"type": "string"} if route.answer is None else known[route.answer]
        content.setdefault(route.media_type, []).append(schema)
    shown: Json = {kind: {"schema": _one_of(schemas)} for kind, schemas in content.items()}
    if lines := [known[kind] for route in group for kind in route.lines]:
        told = "A line is one of these; lines come in the order they are ready. Asked for by the Accept header."
        shown[NDJSON] = {"schema": {"description": told, "anyOf": lines}}
    return {"200": {"description": "Done.", "content": shown}} if shown else {}


def _others(group: list[Route], known: Mapping[Any, Json], errors: Json) -> Json:
    """Errors by status; where a route answers a status with a body of its own, that body or the dialect's error."""
    own: Json = {}
    for route in group:
        for status, kind in route.otherwise.items():
            schema = {"anyOf": [known[kind], {"$ref": f"#/components/schemas/{_error_name(route)}"}]}
            own[str(status)] = {
                "description": MEANING.get(status, "An error."),
                "content": {"application/json": {"schema": schema}},
            }
    return dict(sorted((errors | own).items()))


def _errors(group: list[Route], path: str, schemas: Json, responses: Json) -> Json:
    """References to the dialects' error responses, which are added to the components on first use."""
    samples = ANYWHERE
    if any(route.body is not None for route in group):
        samples += WITH_BODY
    elif _parameters(path):
        samples += WITH_PARAMETERS
    statuses: dict[str, list[str]] = {}
    for route in group:
        name = _error_name(route)
        if name not in schemas:
            _add_dialect(route, schemas, responses)
        for error in samples:
            statuses.setdefault(str(route.render(error)[0]), []).append(name)
    return {status: _response(status, list(dict.fromkeys(names)), responses) for status, names in statuses.items()}


def _add_dialect(route: Route, schemas: Json, responses: Json) -> None:
    """Render every sample in the route's dialect: the union of the bodies is the schema, each status a response."""
    name = _error_name(route)
    bodies = []
    for error in (*ANYWHERE, *WITH_BODY):
        status, headers, raw = route.render(error)
        response = responses.setdefault(f"{name}{status}", {"description": MEANING.get(status, "An error.")})
        if raw:
            body = msgspec.json.decode(raw)
            bodies.append(body)
            content = response.setdefault("content", _content(name))
            examples = content["application/json"]["examples"]
            examples[f"{len(examples) + 1}: {type(error).__name__}"] = {"value": body}
        for header in headers:
            response.setdefault("headers", {})[header] = {"schema": {"type": "string"}}
    schemas[name] = _shape(bodies) | {"title": name}


def _content(name: str) -> Json:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}, "examples": {}}}


def _response(status: str, names: list[str], responses: Json) -> Json:
    """A reference, or where several dialects answer with this status, all of theirs in one."""
    if len(names) == 1:
        return {"$ref": f"#/components/responses/{names[0]}{status}"}
    parts = {name: responses[f"{name}{status}"] for name in names}
    content = {name: part["content"]["application/json"] for name, part in parts.items() if "content" in part}
    return {
        "description": MEANING.get(int(status), "An error."),
        "headers": {header: told for part in parts.values() for header, told in part.get("headers", {}).items()},
        "content": {
            "application/json": {
                "schema": {"anyOf": [one["schema"] for one in content.values()]},
                "examples": {
                    f"{name} {key}": example
                    for name, one in content.items()
                    for key, example in one["examples"].items()
                },
            }
        },
    }


def _shape(values: Sequence[Any]) -> Json:
    """The schema that all the values satisfy: the union of their types, and of their keys where they are objects."""
    kinds = sorted({KINDS[type(value)] for value in values})
    schema: Json = {"type": kinds[0] if len(kinds) == 1 else kinds}
    objects = [value for value in values if isinstance(value, dict)]
    if objects:
        keys = dict.fromkeys(key for value in objects for key in value)
        schema["properties"] = {key: _shape([value[key] for value in objects if key in value]) for key in keys}
        schema["required"] = [key for key in keys if all(key in value for value in objects)]
    return schema


def _one_of(schemas: list[Json]) -> Json:
    return schemas[0] if len(schemas) == 1 else {"oneOf": schemas}


def _plain(path: str) -> str:
    """Litestar's {name:type} as OpenAPI's {name}."""
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", path)


def _parameters(path: str) -> list[str]:
    return re.findall(r"\{(\w+)(?::\w+)?\}", path)


def _operation_id(path: str, route: Route) -> str:
    """Unique, since a path and method make one operation; readable, since clients are generated from it."""
    words = re.findall(r"\w+", _plain(path))
    return "_".join([route.method.lower(), *words])


def _tag(route: Route) -> str:
    return route.handle.__module__.rpartition(".")[2]


def _tags(routes: Iterable[Route]) -> dict[str, str]:
    """Each protocol and the first line of its module."""
    return {_tag(route): (sys.modules[route.handle.__module__].__doc__ or "").partition("\n")[0] for route in routes}


def _error_name(route: Route) -> str:
    """CohereError, and CohereJinaError for a second dialect of the same protocol."""
    words = (route.render.__module__.rpartition(".")[2], *route.render.__name__.split("_")[1:])
    return "".join(map(str.capitalize, words)) + "Error"
