"""Tests of the OpenAPI document: equal to its snapshot, complete, and consistent with the service."""

from __future__ import annotations

import json

import httpx
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance, unsupported_method

from service.api.request_limits import UPLOAD_PATHS
from tests.support.openapi import SNAPSHOT, document
from tests.support.server import Service


def test_the_document_is_the_snapshot() -> None:
    assert document() == json.loads(SNAPSHOT.read_text()), "wanted? then: python -m tests.support.openapi"


def test_every_operation_is_described_with_an_example() -> None:
    found = document()
    schemas = found["components"]["schemas"]
    for path, verbs in found["paths"].items():
        for verb, operation in verbs.items():
            where = f"{verb} {path}"
            assert operation.get("summary"), where
            assert len(operation.get("description", "")) > 15, where
            good = next(answer for status, answer in operation["responses"].items() if status.startswith("2"))
            for kind, content in good.get("content", {}).items():
                if kind != "application/json":
                    continue
                name = content["schema"].get("$ref", "").rsplit("/", 1)[-1]
                assert schemas.get(name, {}).get("examples") or content.get("examples"), (
                    f"{where}: no example of {name}"
                )
            body = operation.get("requestBody", {}).get("content", {})
            for kind, content in body.items():
                name = content["schema"].get("$ref", "").rsplit("/", 1)[-1]
                assert "example" in content or schemas.get(name, {}).get("examples"), f"{where}: no example of a {kind}"


def test_routes_with_a_file_are_those_with_the_limit_of_uploads() -> None:
    with_file = {
        path
        for path, verbs in document()["paths"].items()
        for operation in verbs.values()
        if "multipart/form-data" in operation.get("requestBody", {}).get("content", {})
    }
    assert with_file == UPLOAD_PATHS


def test_errors_are_documented_as_problems() -> None:
    for path, verbs in document()["paths"].items():
        for verb, operation in verbs.items():
            for status, answer in operation["responses"].items():
                if int(status) >= 400 and status not in ("416",) and not path.endswith("z"):
                    assert "application/problem+json" in answer.get("content", {}), f"{verb} {path} {status}"


def test_nothing_that_can_be_sent_breaks_the_service(service: Service) -> None:
    """Send valid and invalid requests to every operation: no 500, and all responses match the document."""
    api = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    tried = 0
    # A PNG file satisfies the documented schema of an upload but is not a video.
    excluded = [ignored_auth, unsupported_method, positive_data_acceptance]
    for found in api.get_all_operations():
        operation = found.ok()
        if operation.path.endswith("/events"):
            continue  # a stream, tested in test_api.py
        tried += 1

        @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def send(case: schemathesis.Case) -> None:
            if case.method.upper() in ("DELETE", "PATCH"):
                for name in case.path_parameters:
                    case.path_parameters[name] = "of-nobody"  # other tests need the existing rows unchanged
            if case.path == "/v1/generations" and case.method.upper() == "POST" and isinstance(case.body, dict):
                case.body.pop("precision", None)  # other tests need the active model unchanged
            answer = case.call(timeout=30)
            case.validate_response(answer, excluded_checks=excluded)
            if case.path == "/v1/projections" and answer.status_code == 202:  # keep the worker free for other tests
                httpx.delete(service.url + answer.headers["location"][0], trust_env=False)

        send()
    assert tried == 35
