"""The OpenAPI document: valid, complete, true to the Structs and the dialects, and kept by the app that publishes it."""

import asyncio
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.checks import CHECKS

from tests.protocols import stub
from vecgate import __version__
from vecgate.errors import InvalidRequest, NotReady, VecgateError
from vecgate.protocols import MOST, Answer, Ask, Route, Site, native_bodies, openapi, ops, plain, routes

DOCUMENT = openapi.document(routes(), __version__)
OPERATIONS = [
    (method, path, operation) for path, item in DOCUMENT["paths"].items() for method, operation in item.items()
]
APP = stub.app_of(stub.StubEngine(), Site(document=lambda: msgspec.json.encode(DOCUMENT)))
schema = schemathesis.openapi.from_asgi("/openapi.json", APP)
STUBS_NAME = {"organization": "org", "deployment": "stub-embed"}
NOT_ASKED: Any = CHECKS.get_by_names(["ignored_auth", "positive_data_acceptance"])
"""No key is set here; and names, widths and vocabularies are the model's, so a body can fit the schema and be refused."""


def resolved(node: Any) -> Any:
    """The node with a reference on its top followed."""
    while "$ref" in node:
        found: Any = DOCUMENT
        for key in node["$ref"].removeprefix("#/").split("/"):
            found = found[key]
        node = found
    return node


class Pair(msgspec.Struct):
    inputs: str


class Other(msgspec.Struct):
    documents: list[str]


class Done(msgspec.Struct):
    ok: bool


def strict(error: VecgateError) -> tuple[int, dict[str, str], bytes]:
    """A dialect that says 422 for bad input, as TEI does."""
    status = 422 if isinstance(error, InvalidRequest) else 424
    return status, {}, msgspec.json.encode({"error": str(error)})


async def nothing(_ask: Ask) -> Answer:
    return Answer(b"{}")


def of(*table: Route) -> Any:
    return openapi.document(table, "1")


ONE = Route(
    "POST", ("/x",), nothing, plain.render, "First", body=Pair, key="inputs", answer=Done, example={"inputs": "a"}
)
TWO = replace(ONE, render=strict, summary="Second", body=Other, key="documents", answer=Pair, example={"documents": []})


def told(operation_id: str) -> Any:
    """The test of one operation, since schemathesis gives all tests of one function the same id."""

    @schema.include(operation_id=operation_id).parametrize()
    @settings(
        max_examples=8,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def test(case: schemathesis.Case[Any]) -> None:
        case.call_and_validate(excluded_checks=NOT_ASKED)

    return test


for _, _, one in OPERATIONS:
    globals()[f"test_the_app_keeps_what_the_document_says_of_{one['operationId']}"] = told(one["operationId"])


def test_the_document_is_valid() -> None:
    assert list(OpenAPIV31SpecValidator(DOCUMENT).iter_errors()) == []
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert DOCUMENT["info"]["version"] == __version__
    assert msgspec.json.decode(msgspec.json.encode(DOCUMENT)) == DOCUMENT


def test_every_documented_route_is_there_and_no_page_is() -> None:
    shown = {(one.method.lower(), openapi._plain(path)) for one in routes() if one.documented for path in one.paths}
    assert {(method, path) for method, path, _ in OPERATIONS} == shown
    assert not {"/docs", "/docs/{asset}", "/openapi.json"} & set(DOCUMENT["paths"])


def test_operations_have_unique_ids_and_a_summary() -> None:
    ids = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(ids)) == len(ids)
    assert all(operation["summary"] for _, _, operation in OPERATIONS)
    assert "post_api_v1_embed" in ids


def test_every_body_has_an_example_that_the_app_answers() -> None:
    posts = [
        (path, operation["requestBody"])
        for method, path, operation in OPERATIONS
        if method == "post" and "200" in operation["responses"]
    ]

    async def go() -> list[int]:
        async with stub.client_of(APP) as client:
            return [
                (await client.post(path.format(**STUBS_NAME), json=example["value"])).status_code
                for path, body in posts
                for example in body["content"]["application/json"]["examples"].values()
            ]

    statuses = asyncio.run(go())
    assert statuses == [200] * len(statuses)
    assert len(statuses) >= len(posts) > 4


def test_counts_and_names_show_their_bounds() -> None:
    fields = DOCUMENT["components"]["schemas"]["RerankBody"]["properties"]
    assert fields["top_k"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": MOST}
    assert fields["method"]["anyOf"][0]["enum"] == list(native_bodies.METHODS)
    assert fields["passages"]["minItems"] == 1


@pytest.mark.parametrize("error", [*openapi.ANYWHERE, *openapi.WITH_BODY], ids=lambda error: type(error).__name__)
def test_every_error_an_operation_can_answer_is_documented_in_its_dialect(error: VecgateError) -> None:
    for route in (route for route in routes() if route.body is not None):
        status, headers, raw = route.render(error)
        responses = DOCUMENT["paths"][openapi._plain(route.paths[0])]["post"]["responses"]
        response = resolved(responses[str(status)])
        assert set(headers) <= set(response.get("headers", {}))
        content = response.get("content", {}).get("application/json", {"examples": {}, "schema": {"anyOf": []}})
        told = [example["value"] for example in content["examples"].values()]
        assert not raw or msgspec.json.decode(raw) in told
        for shape in content["schema"].get("anyOf", [content["schema"]]):
            assert set(resolved(shape)["required"]) <= {"error", "error_type", "message", "detail", "id"}


def test_a_get_without_parameters_has_no_404_and_one_with_them_has() -> None:
    assert "404" not in DOCUMENT["paths"]["/v1/models"]["get"]["responses"]
    one = DOCUMENT["paths"]["/v1/models/{model_id}"]["get"]
    assert "404" in one["responses"]
    assert one["parameters"] == [{"name": "model_id", "in": "path", "required": True, "schema": {"type": "string"}}]


def test_a_route_that_offers_nothing_documents_its_errors_alone() -> None:
    responses = DOCUMENT["paths"]["/predict"]["post"]["responses"]
    assert "424" in responses
    assert "200" not in responses


def test_an_error_without_a_body_has_no_content() -> None:
    assert "content" not in resolved(DOCUMENT["paths"]["/tokenize"]["post"]["responses"]["401"])


def test_a_shared_path_shows_every_body() -> None:
    body = DOCUMENT["paths"]["/v2/rerank"]["post"]["requestBody"]["content"]["application/json"]
    names = [one["$ref"].rpartition("/")[2] for one in body["schema"]["oneOf"]]
    assert names == ["CohereRerank", "RerankBody", "TeiRerank"]
    assert list(body["examples"]) == ["cohere: documents", "native: passages", "tei: texts"]


def test_a_probe_documents_its_own_503() -> None:
    content = DOCUMENT["paths"]["/health/ready"]["get"]["responses"]["503"]["content"]["application/json"]
    assert {"$ref": "#/components/schemas/Word"} in content["schema"]["anyOf"]


def test_routes_on_one_path_become_one_operation_with_one_of() -> None:
    found = of(ONE, TWO)
    assert list(OpenAPIV31SpecValidator(found).iter_errors()) == []
    operation = found["paths"]["/x"]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    assert content["schema"] == {
        "oneOf": [{"$ref": "#/components/schemas/Pair"}, {"$ref": "#/components/schemas/Other"}]
    }
    assert [example["value"] for example in content["examples"].values()] == [{"inputs": "a"}, {"documents": []}]
    assert operation["responses"]["200"]["content"]["application/json"]["schema"] == {
        "oneOf": [{"$ref": "#/components/schemas/Done"}, {"$ref": "#/components/schemas/Pair"}]
    }
    assert operation["summary"] == "First | Second"
    assert {"400", "422", "424", "429"} <= set(operation["responses"])


def test_two_dialects_on_one_path_share_a_status_by_any_of() -> None:
    found = of(ONE, replace(TWO, render=lambda error: plain.render(error)))
    schemas = found["paths"]["/x"]["post"]["responses"]["400"]["content"]["application/json"]["schema"]["anyOf"]
    assert len(schemas) == 2


def test_the_same_body_under_two_paths_is_described_once() -> None:
    found = of(replace(ONE, paths=("/x", "/v1/x")))
    assert found["paths"]["/v1/x"]["post"]["description"] == "The same as /x."
    assert "description" not in found["paths"]["/x"]["post"]
    assert set(found["components"]["schemas"]) == {"Pair", "Done", "PlainError"}


def test_get_and_post_on_one_path_are_two_operations() -> None:
    found = of(ONE, replace(ONE, method="GET", body=None, key=None, example=None))
    assert set(found["paths"]["/x"]) == {"post", "get"}
    assert "requestBody" not in found["paths"]["/x"]["get"]


def test_a_hidden_route_leaves_no_trace() -> None:
    found = of(ONE, replace(TWO, documented=False))
    assert found == of(ONE)


def test_a_route_without_json_is_text() -> None:
    content = DOCUMENT["paths"]["/metrics"]["get"]["responses"]["200"]["content"]
    assert content == {"text/plain": {"schema": {"type": "string"}}}


def test_a_route_that_streams_documents_its_lines() -> None:
    content = DOCUMENT["paths"]["/api/v1/rerank/batch"]["post"]["responses"]["200"]["content"]
    assert list(content) == ["application/json", "application/x-ndjson"]
    assert content["application/x-ndjson"]["schema"]["anyOf"] == [
        {"$ref": "#/components/schemas/BatchResult"},
        {"$ref": "#/components/schemas/FailedQuery"},
    ]


def test_the_shape_of_errors_is_the_union_of_what_is_rendered() -> None:
    shape = DOCUMENT["components"]["schemas"]["PlainError"]
    assert shape["required"] == ["error", "message"]
    assert shape["properties"]["error"]["properties"]["param"] == {"type": ["null", "string"]}
    assert openapi._shape([{"a": 1}, {"a": None, "b": [True]}]) == {
        "type": "object",
        "properties": {"a": {"type": ["integer", "null"]}, "b": {"type": "array"}},
        "required": ["a"],
    }


def test_the_health_answer_and_its_struct_agree() -> None:
    assert set(DOCUMENT["components"]["schemas"]["Health"]["properties"]) == set(ops.Health.__struct_fields__)
    assert plain.render(NotReady("loading"))[0] == 503
