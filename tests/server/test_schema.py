"""The OpenAPI document against the server: what Schemathesis thinks of is never a 5xx, and no answer has a code that is not documented."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest

from .conftest import ADMIN, Serve

PAPER = {"/api/v1/memory/events"}  # a stream without an end
EXAMPLES = 12


@pytest.fixture
def document(serve: Serve) -> tuple[str, dict[str, Any]]:
    served = serve(deadline=10.0)
    return served.url, served.get("/openapi.json").json()


def test_every_operation_is_documented_with_its_refusals(document: tuple[str, dict[str, Any]]) -> None:
    for path, operations in document[1]["paths"].items():
        for method, operation in operations.items():
            assert operation.get("description") or operation.get("summary"), path
            codes = set(operation["responses"])
            assert "422" not in codes and "200" in codes
            if path.startswith(("/v1", "/api")):
                assert "401" in codes, path
            if method == "post" and path.startswith(("/v1", "/api/v1/query", "/api/v1/classify")):
                assert codes >= {"400", "413", "429", "503", "504", "507"}, path
    examples = [
        op["requestBody"]
        for ops in document[1]["paths"].values()
        for op in ops.values()
        if "requestBody" in op and op["requestBody"].get("required")
    ]
    assert len(examples) >= 6
    assert {"token", "admin token"} == set(document[1]["components"]["securitySchemes"])


def test_no_request_is_a_server_error_and_every_code_is_documented(document: tuple[str, dict[str, Any]]) -> None:
    schemathesis = pytest.importorskip("schemathesis")  # here, not in every process that collects this file: 2 s
    from schemathesis.checks import CHECKS, load_all_checks

    load_all_checks()
    url, found = document
    for path in PAPER:
        found["paths"].pop(path)
    schema = schemathesis.openapi.from_dict(found)
    schema.config.update(base_url=url)
    checks = CHECKS.get_by_names(
        ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
    )
    failures: list[str] = []
    seen: dict[int, int] = {}
    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(
            max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck)
        )
        def attempt(case: Any) -> None:
            answer = case.call(headers=ADMIN, timeout=30)
            seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
            # 503 and 507 are documented http_errors (no memory), not errors of the server.
            chosen = [check for check in checks if answer.status_code not in (503, 507) or check.__name__ != "not_a_server_error"]
            case.validate_response(answer, checks=chosen)

        try:
            attempt()
        except Exception as error:
            failures.append(f"{operation.label}: {error}")
    assert not failures, "\n\n".join(failures)
    assert seen.get(200, 0) > 50 and seen.get(400, 0) > 10, seen
