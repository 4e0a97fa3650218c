"""Error responses in the format of RFC 9457 (application/problem+json).

`STATUSES` maps the errors of the core to HTTP statuses.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from service import errors, system_errors
from service.api.schemas import FieldError, Problem
from service.errors import ReelsError

log = structlog.get_logger(__name__)


STATUSES: dict[type[ReelsError], int] = {
    errors.InvalidInput: 422,
    errors.NotFound: 404,
    errors.Gone: 410,
    errors.NotReady: 409,
    errors.TooLarge: 413,
    errors.TooSlow: 408,
    errors.Undecodable: 415,
    errors.Overloaded: 429,
    errors.Unavailable: 503,
    errors.StorageFull: 507,
    errors.InternalError: 500,
    errors.ConfigurationError: 503,
}


def document_problems(app: FastAPI) -> None:
    """Correct the documentation of errors in the OpenAPI document.

    FastAPI documents an error with the media type of the normal response; here it becomes application/problem+json.
    Every operation with a request body also gets the statuses 408 and 413.
    """
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
            body_problems = {
                "408": {"description": "The request body arrived too slowly.", "content": schema},
                "413": {"description": "The request body exceeds the size limit.", "content": schema},
            }
            for verbs in generate()["paths"].values():
                for operation in verbs.values():
                    if "requestBody" in operation:  # reading any body can end with these two
                        operation["responses"] = {**body_problems, **operation["responses"]}
                    for response in operation["responses"].values():
                        for content in response.get("content", {}).values():
                            if content.get("schema") == {"$ref": "#/components/schemas/Problem"}:
                                response["content"] = {"application/problem+json": content}
                                break
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def add_handlers(app: FastAPI) -> None:
    """Register the handlers for errors of the core, the framework and the system, and for bugs."""
    app.add_exception_handler(ReelsError, on_reels_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(OSError, on_os_error)
    app.add_exception_handler(Exception, on_bug)


async def on_reels_error(request: Request, error: Exception) -> Response:
    """Answer an error of the core with its status from `STATUSES`, 429 and 503 with `Retry-After`."""
    status = next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
    headers = {}
    field_errors = None
    if status in (429, 503):
        headers["Retry-After"] = str(getattr(error, "retry_after_seconds", 5))
    if isinstance(error, errors.InvalidInput):
        field_errors = [FieldError(field=error.field, message=error.message)]
    video_status = error.status if isinstance(error, errors.NotReady) and error.kind == "video" else None
    return _problem(request, status, str(error), headers=headers, field_errors=field_errors, video_status=video_status)


async def on_validation_error(request: Request, error: Exception) -> Response:
    """Answer invalid parameters with status 422 and one entry for each invalid field."""
    assert isinstance(error, RequestValidationError)
    field_errors = []
    for item in error.errors():
        # Locations look like ("query", "k") and ("body", "query"). The client needs only the name of the field.
        field = ".".join(str(part) for part in item["loc"][1:] if not isinstance(part, int)) or str(item["loc"][0])
        field_errors.append(FieldError(field=field, message=item["msg"]))
    detail = "; ".join(f"{one.field}: {one.message}" for one in field_errors)
    return _problem(request, 422, detail, field_errors=field_errors)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Answer an HTTPException of the framework; a body that is not readable JSON gets status 422."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, (ValueError, RecursionError)):  # not UTF-8, or nested too deeply
        field_errors = [FieldError(field="body", message="must be valid JSON in UTF-8")]
        return _problem(request, 422, "body: must be valid JSON in UTF-8", field_errors=field_errors)
    return _problem(request, error.status_code, str(error.detail), headers=dict(error.headers or {}))


async def on_os_error(request: Request, error: Exception) -> Response:
    """Answer an OSError as StorageFull or Unavailable if the machine is at fault, otherwise as a bug."""
    # The framework opens the files that it sends. A failure such as too many open files is not a bug.
    system_error = system_errors.from_error(error, "the file cannot be read")
    return await (on_bug(request, error) if system_error is None else on_reels_error(request, system_error))


async def on_bug(request: Request, error: Exception) -> Response:
    """Log an unexpected error and answer with status 500."""
    log.error("unexpected error", path=request.url.path, exc_info=error)
    return _problem(request, 500, "unexpected error in the service; its log has the details under this request_id")


def _problem(
    request: Request,
    status: int,
    detail: str,
    *,
    headers: dict[str, str] | None = None,
    field_errors: list[FieldError] | None = None,
    video_status: str | None = None,
) -> Response:
    body = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=request.url.path,
        request_id=request.scope.get("request_id", ""),
        errors=field_errors,
        video_status=video_status,
    )
    return JSONResponse(
        body.model_dump(exclude_none=True), status, headers=headers, media_type="application/problem+json"
    )
