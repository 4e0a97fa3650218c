"""Dependencies that the handlers share: runtime, access rights, path parameters, documented errors."""

from __future__ import annotations

import hmac
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, HTTPException, Path, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from service.api.request_limits import RequestLimits
from service.api.schemas import Problem
from service.bootstrap import Runtime
from service.database import api_keys, video_rows
from service.database.api_keys import ApiKey, Right
from service.models import Video


# Dependencies that do not block are coroutines, because FastAPI runs every plain function in a thread.
async def _runtime(request: Request) -> Runtime:
    runtime: Runtime = request.app.state.runtime
    return runtime


Service = Annotated[Runtime, Depends(_runtime)]


async def _search_limiter(request: Request) -> CapacityLimiter:
    limiter: CapacityLimiter = request.app.state.search_limiter
    return limiter


SearchLimiter = Annotated[CapacityLimiter, Depends(_search_limiter)]
"""Limiter that allows as many searches at a time as there are cores.

More would only compete for the interpreter's lock, which costs a third of the throughput.
"""


async def _evaluation_limiter(request: Request) -> CapacityLimiter:
    limiter: CapacityLimiter = request.app.state.evaluation_limiter
    return limiter


EvaluationLimiter = Annotated[CapacityLimiter, Depends(_evaluation_limiter)]
"""Limiter that allows one evaluation at a time, because each takes a core and some memory for seconds."""

_bearer = HTTPBearer(auto_error=False, description="An API key, if the service requires one.")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same API key in the header X-API-Key.")


async def _right(
    request: Request,
    service: Service,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    header: Annotated[str | None, Security(_header)],
) -> Right:
    """Return the right of the request.

    The API key is looked up in the database for each request, so that a new or revoked key takes effect at once. Raises
    HTTPException (401, 403), and Overloaded if the client exceeds the rate limit.
    """
    secret = bearer.credentials if bearer else header
    request_limits: RequestLimits = request.app.state.request_limits
    client_address = request.client.host if request.client else "unknown"
    if secret is not None and _is_configured_key(service, secret):
        request_limits.count_request("key of the settings")
        return "admin"
    # A limiter of its own: checking an API key must not wait for handlers that take seconds.
    found, needed = await to_thread.run_sync(_look_up, service, secret, limiter=request.app.state.key_limiter)
    request_limits.count_request(client_address if found is None else f"key {found.name}")
    if found is not None:
        return found.right
    if not needed and request.app.state.open_without_key:
        return "admin"
    if secret is None:
        raise HTTPException(
            401, "an API key is required: send `Authorization: Bearer KEY`", {"WWW-Authenticate": "Bearer"}
        )
    raise HTTPException(403, "this API key is unknown: it was revoked, or belongs to another library")


def _is_configured_key(service: Runtime, secret: str) -> bool:
    # Compare with every API key, in constant time, so that the response time reveals nothing about any of them.
    known = [key.get_secret_value().encode() for key in service.settings.api_keys]
    matches = [hmac.compare_digest(secret.encode(), key) for key in known]
    return any(matches)


def _look_up(service: Runtime, secret: str | None) -> tuple[ApiKey | None, bool]:
    """Return the API key with this secret, None if there is none, and whether an API key is needed at all."""
    with service.db.read() as connection:
        found = None if secret is None else api_keys.look_up(connection, secret)
        return found, found is not None or bool(service.settings.api_keys) or api_keys.any_api_key(connection)


_Right = Annotated[Right, Depends(_right)]


def _require(right: Right, needed: Right) -> None:
    if not api_keys.includes(right, needed):
        raise HTTPException(403, f"this request needs an API key with the right `{needed}`; this key has `{right}`")


async def require_key(request: Request, right: _Right) -> None:
    """Require the right `read` for GET and HEAD, and `write` for every other method.

    So a new route that changes data is never open to readers by default.
    """
    _require(right, "read" if request.method in ("GET", "HEAD") else "write")


async def require_read(right: _Right) -> None:
    """Require the right `read`, for searches that are sent by POST."""
    _require(right, "read")


async def require_admin(right: _Right) -> None:
    """Require the right `admin`, for operations that affect the whole library."""
    _require(right, "admin")


VideoId = Annotated[str, Path(description="The `id` of a video.", examples=["5f2d9c31ab047e68"])]


def existing_video(service: Service, video_id: VideoId) -> Video:
    """Return the video of the path. Raises NotFound before the response begins."""
    with service.db.read() as connection:
        return video_rows.video(connection, video_id)


ExistingVideo = Annotated[Video, Depends(existing_video)]

_MEANINGS = {
    404: "The video, frame, embedding, map or generation does not exist.",
    409: "The video, map or generation is not ready. `detail` gives its status.",
    410: "The cursor is no longer valid. Send the query again without it.",
    413: "The upload exceeds the size limit. The rest of it was not read.",
    415: "The file is not a video, or not an image, that can be decoded.",
    416: "The range lies outside the file.",
    429: "Too many requests at a time, a minute, or in the queue. `Retry-After` says when to try again.",
    503: "Temporarily unavailable. `Retry-After` says when to try again.",
    507: "No space is left to store the upload.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI documentation of these error statuses."""
    return {status: {"model": Problem, "description": _MEANINGS[status]} for status in statuses}
