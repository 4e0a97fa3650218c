"""What the handlers share: the runtime of their application, API keys, and how errors are documented."""

from __future__ import annotations

import gzip
import secrets
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Path, Request, Response, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from service import catalog
from service.domain import Video
from service.runtime import Runtime
from service.schemas import Problem


# Dependencies that wait for nothing are coroutines: of plain functions each would be sent to a thread and back.
async def _runtime(request: Request) -> Runtime:
    runtime: Runtime = request.app.state.runtime
    return runtime


Service = Annotated[Runtime, Depends(_runtime)]

_bearer = HTTPBearer(auto_error=False, description="an API key, where the service asks for one")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="the same key, in a header of its own")


async def require_key(
    service: Service,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    header: Annotated[str | None, Security(_header)],
) -> None:
    """Let a request pass that carries one of the keys in the settings, or any where there is none set."""
    keys = service.settings.api_keys
    if not keys:
        return
    given = bearer.credentials if bearer else header
    if given is None:
        raise HTTPException(
            401, "this service needs an API key: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"}
        )
    # Compared in constant time, with every key, so that an answer's time tells nothing about any of them.
    matches = [secrets.compare_digest(given.encode(), key.get_secret_value().encode()) for key in keys]
    if not any(matches):
        raise HTTPException(403, "this API key is not known here")


VideoId = Annotated[str, Path(description="a video's `id`", examples=["5f2d9c31ab047e68"])]


def existing_video(service: Service, video_id: VideoId) -> Video:
    """The video of the path; NotFound before any answer has begun."""
    with service.db.read() as connection:
        return catalog.video(connection, video_id)


ExistingVideo = Annotated[Video, Depends(existing_video)]

_MEANINGS = {
    404: "there is no such thing",
    409: "the video, or the projection, is not ready; the detail says its status",
    410: "the cursor does not stand for anything any more: begin again without it",
    413: "the upload is larger than the limit; the rest of it was not read",
    415: "not a video, or not a picture, that can be decoded",
    416: "the range lies outside the file",
    503: "not now; Retry-After says when",
    507: "no room left to store it",
}


def compressed(
    tag: str, body: bytes, media_type: str, *, vary: str, accept_encoding: str, if_none_match: str | None
) -> Response:
    """An answer whose `body` is compressed with gzip already, as it is or unpacked, or 304 where the client has it.

    `tag` names what is in it, compressed or not, so it becomes a weak ETag.
    """
    headers = {"ETag": f'W/"{tag}"', "Vary": vary, "Cache-Control": "private, no-cache"}
    known = {one.strip().removeprefix("W/") for one in (if_none_match or "").split(",")}
    if f'"{tag}"' in known:
        return Response(status_code=304, headers=headers)
    if "gzip" in accept_encoding:
        headers["Content-Encoding"] = "gzip"
    else:
        body = gzip.decompress(body)
    return Response(body, media_type=media_type, headers=headers)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documentation of these error statuses."""
    return {status: {"model": Problem, "description": _MEANINGS[status]} for status in statuses}
