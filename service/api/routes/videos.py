"""Routes of videos: upload, list, change and delete them; their content, frames, vectors and progress."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from service.api.request_limits import RequestLimits
from service.api.routes.blobs import blob_response
from service.api.routes.common import ExistingVideo, Service, VideoId, existing_video, problems
from service.api.routes.upload import receive_form
from service.api.schemas import Embedding, Frame, FrameList, Video, VideoEdit, VideoPage
from service.bootstrap import Runtime
from service.database import jobs, vector_rows, video_rows
from service.errors import InvalidInput, NotFound, NotReady, Overloaded
from service.ingestion.ingest import check_metadata
from service.models import Sampling, Status
from service.models import Video as DomainVideo

router = APIRouter(prefix="/v1/videos", tags=["videos"])

_FIELDS = frozenset({"caption", "category", "title", "num_frames", "frame_interval"})
_POLL_SECONDS = 0.1
_MAX_WAIT_SECONDS = 300
_QUEUE_SECONDS = 60
_FRAMES_CACHE = {"Cache-Control": "private, max-age=3600"}

_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "The clip."},
                        "caption": {
                            "type": "string",
                            "description": "What the clip shows, hashtags included. "
                            "At most 10,000 characters, all of which are embedded.",
                            "example": "",
                        },
                        "category": {"type": "string", "description": "One name without slashes.", "example": ""},
                        "title": {"type": "string", "description": "Default: the file name.", "example": ""},
                        "num_frames": {"type": "integer", "minimum": 1, "maximum": 256, "example": ""},
                        "frame_interval": {
                            "type": "integer",
                            "minimum": 1,
                            "example": "",
                            "description": "N: every Nth frame from the start. Default: REELSRS_FRAME_INTERVAL.",
                        },
                    },
                },
                "example": {"file": "(dog.mp4)", "caption": "a dog jumps over a log", "category": "animals"},
            }
        },
    }
}


@router.post(
    "",
    summary="Upload a video",
    status_code=202,
    response_model=Video,
    responses={
        200: {"model": Video, "description": "The library has a video with the same bytes. It is returned unchanged."},
        201: {"model": Video, "description": "With `wait`: the video is stored, embedded and searchable."},
        202: {"model": Video, "description": "The video is stored safely and queued. Poll `Location`."},
        **problems(413, 415, 507),
    },
    openapi_extra=_FORM,
)
async def upload(
    request: Request,
    service: Service,
    wait: Annotated[
        float, Query(ge=0, le=_MAX_WAIT_SECONDS, description="Seconds to wait until the video is ready.")
    ] = 0,
) -> JSONResponse:
    """Upload a clip and queue it for embedding.

    When the response is sent, the clip is stored safely and its row is committed. Embedding goes on in the background:
    poll `Location`, follow the `events` of the video, or `wait`. If the library has a video with the same bytes, that
    video is returned; if it had failed, it is queued again.
    """
    await run_in_threadpool(_check_queue, service)
    async with receive_form(request, service.ingest, _FIELDS) as form:
        default = service.settings.sampling
        description = check_metadata(
            form.filename,
            sampling=Sampling(
                form.integer("num_frames", default.num_frames),
                form.integer("frame_interval", default.frame_interval),
            ),
            title=form.text("title"),
            caption=form.text("caption"),
            category=form.text("category"),
        )
        video, outcome = await run_in_threadpool(service.ingest.accept, form.incoming, description)
    if wait:
        request_limits: RequestLimits = request.app.state.request_limits
        with suppress(Overloaded), request_limits.watchers.acquire():  # stored: if too many wait, answer 202
            video = await _wait_until_settled(service, video, wait)
    status = 200 if outcome == "existing" else 201 if wait and video.status == "ready" else 202
    return JSONResponse(
        Video.from_video(video).model_dump(mode="json"), status, headers={"Location": f"/v1/videos/{video.id}"}
    )


@router.get("", summary="List videos", responses=problems())
def list_videos(
    service: Service,
    category: Annotated[str | None, Query(description="Only videos in this category.")] = None,
    status: Annotated[Status | None, Query(description="Only videos with this status.")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the previous page.")] = None,
) -> VideoPage:
    """Return a page of videos, newest first.

    A page begins where the previous page ended, even if videos were added or deleted in between.
    """
    before = None if cursor is None else _decode_cursor(cursor)
    with service.db.read() as connection:
        found = video_rows.list_videos(connection, category=category, status=status, before=before, limit=limit + 1)
    more = len(found) > limit
    return VideoPage(
        items=[Video.from_video(video) for video in found[:limit]],
        next_cursor=_encode_cursor(found[limit - 1].pk) if more else None,
    )


@router.get("/{video_id}", summary="Get a video", responses=problems(404))
def get_video(video: ExistingVideo) -> Video:
    """Return the metadata, the status and the progress of a video."""
    return Video.from_video(video)


@router.patch("/{video_id}", summary="Change the caption, category or title", responses=problems(404, 503))
def edit_video(service: Service, video_id: VideoId, edit: VideoEdit) -> Video:
    """Change the caption, the category or the title of a video.

    Omitted fields keep their value; null removes the caption or the category. A new caption is embedded again, the
    frames are not. Searches use the new values as soon as the response is sent.
    """
    return Video.from_video(service.ingest.edit(video_id, edit.model_dump(exclude_unset=True)))


@router.post(
    "/{video_id}/retry",
    summary="Retry a failed video",
    status_code=202,
    response_model=Video,
    responses={
        200: {"model": Video, "description": "The video had not failed. It is returned unchanged."},
        202: {"model": Video, "description": "The video is queued again. Poll `Location`."},
        **problems(404),
    },
)
def retry_video(service: Service, video_id: VideoId) -> JSONResponse:
    """Queue a failed video again. Its stored clip is decoded and embedded from the start."""
    video = service.ingest.retry(video_id)
    status = 202 if video.status == "queued" else 200
    return JSONResponse(
        Video.from_video(video).model_dump(mode="json"), status, headers={"Location": f"/v1/videos/{video.id}"}
    )


@router.delete("/{video_id}", summary="Delete a video", status_code=204, responses=problems(404))
def delete_video(service: Service, video_id: VideoId) -> Response:
    """Delete a video with its file, rows, vectors, frame images and index entry.

    All of them are gone when the response is sent.
    """
    service.ingest.delete(video_id)
    return Response(status_code=204)


@router.get(
    "/{video_id}/content",
    summary="Get the clip",
    response_class=FileResponse,
    responses={
        200: {"description": "The whole file.", "content": {"video/mp4": {}}},
        206: {"description": "The requested range.", "content": {"video/mp4": {}}},
        **problems(404),
        307: {"description": "The object store serves the clip. `Location` is a temporary address there."},
        416: {"description": "The range lies outside the file.", "content": {"text/plain": {}}},
    },
)
def content(request: Request, service: Service, video: ExistingVideo) -> Response:
    """Return the clip as it was uploaded.

    `Range` requests are supported, so that players can seek. If the operator lets the object store serve clips, the
    response is a redirect (307) to a temporary address there.
    """
    link = service.files.signed_url(video.sha256)
    if link is not None:
        return RedirectResponse(link, 307, {"Cache-Control": "no-store"})
    return blob_response(
        request,
        service.files.video(video.sha256),
        media_type=video.media_type,
        etag=video.sha256,
        filename=video.filename,
        headers={"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox"},
    )


@router.get(
    "/{video_id}/thumbnail",
    summary="Get the thumbnail",
    response_class=FileResponse,
    responses={200: {"description": "JPEG", "content": {"image/jpeg": {}}}, **problems(404, 409)},
)
def thumbnail(request: Request, service: Service, video: ExistingVideo) -> Response:
    """Return the middle frame of the clip as a JPEG. First frames are often black."""
    if video.thumbnail_frame is None:
        raise NotReady(video.id, video.status)
    return _frame_response(request, service, video, video.thumbnail_frame)


@router.get("/{video_id}/frames", summary="List the sampled frames", responses=problems(404, 409))
def frames(video: ExistingVideo) -> FrameList:
    """Return the sampled frames of a video with the time of each, in seconds from the clip's start."""
    if not video.frame_times:
        raise NotReady(video.id, video.status)
    return FrameList(
        items=[
            Frame(n=n, time=time, url=f"/v1/videos/{video.id}/frames/{n}") for n, time in enumerate(video.frame_times)
        ]
    )


@router.get(
    "/{video_id}/frames/{n}",
    summary="Get a sampled frame",
    response_class=FileResponse,
    responses={200: {"description": "JPEG", "content": {"image/jpeg": {}}}, **problems(404, 409)},
)
def frame(request: Request, service: Service, video: ExistingVideo, n: int) -> Response:
    """Return a sampled frame as a JPEG, upright and in its true proportions."""
    if not video.frame_times:
        raise NotReady(video.id, video.status)
    if not 0 <= n < len(video.frame_times):
        raise NotFound(f"video {video.id} has no frame {n}; its frames are 0 to {len(video.frame_times) - 1}")
    return _frame_response(request, service, video, n)


@router.get(
    "/{video_id}/embeddings",
    summary="Get the embeddings",
    response_model=Embedding,
    responses={200: {"content": {"application/x-npy": {}}}, **problems(404, 409)},
)
def embeddings(
    service: Service,
    video: ExistingVideo,
    type: Annotated[Literal["frame", "aggregated", "text"], Query()] = "aggregated",
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> Response:
    """Return the vectors of a video, each of unit length.

    The format is JSON, or with `Accept: application/x-npy` a NumPy file. Its array is float32, of shape (N, D) for
    frames and (D,) otherwise.
    """
    kind = service.settings.aggregation if type == "aggregated" else type
    generation = service.serving.index.generation
    with service.db.read() as connection:
        vectors = vector_rows.vectors(connection, video.pk, generation, kind)
    if video.status != "ready":
        raise NotReady(video.id, video.status)
    if vectors is None:
        raise NotFound(f"video {video.id} has no caption, so it has no text embedding")
    if "application/x-npy" in accept:
        buffer = io.BytesIO()
        np.save(buffer, vectors if type == "frame" else vectors[0], allow_pickle=False)
        return Response(buffer.getvalue(), media_type="application/x-npy")
    body = Embedding(
        video_id=video.id,
        type=type,
        generation=generation.id,
        shape=list(vectors.shape),
        times=list(video.frame_times) if type == "frame" else None,
        vectors=vectors.tolist(),
    )
    return Response(body.model_dump_json(), media_type="application/json")


@router.get(
    "/{video_id}/events",
    summary="Stream the progress of a video",
    response_class=EventSourceResponse,
    responses=problems(404),
)
async def events(service: Service, video: ExistingVideo) -> AsyncIterator[ServerSentEvent]:
    """Stream the progress of a video as server-sent events.

    `progress` is sent with the video at every change. `ready`, `failed` or `deleted` ends the stream.
    """
    last: tuple[Any, ...] = ()
    while True:
        state = (video.status, video.progress, video.error)
        if video.status in ("ready", "failed"):
            yield ServerSentEvent(event=video.status, data=Video.from_video(video).model_dump(mode="json"))
            return
        if state != last:
            yield ServerSentEvent(event="progress", data=Video.from_video(video).model_dump(mode="json"))
            last = state
        await asyncio.sleep(_POLL_SECONDS)
        try:
            video = await run_in_threadpool(existing_video, service, video.id)
        except NotFound:
            yield ServerSentEvent(event="deleted", data={"id": video.id})
            return


def _check_queue(service: Runtime) -> None:
    """Raise Overloaded if too many videos wait to be embedded."""
    with service.db.read() as connection:
        waiting = jobs.depth(connection)
    if waiting > service.settings.max_queue:
        raise Overloaded(
            f"the queue is full: {waiting:,} videos wait to be embedded; try again in {_QUEUE_SECONDS} s",
            _QUEUE_SECONDS,
        )


def _frame_response(request: Request, service: Runtime, video: DomainVideo, n: int) -> Response:
    """Return the JPEG of the sampled frame number `n`."""
    seconds = video.frame_times[n]
    blob = service.files.thumbnail(video.sha256, n, seconds)
    return blob_response(
        request, blob, media_type="image/jpeg", etag=f"{video.sha256[:32]}-{seconds}", headers=_FRAMES_CACHE
    )


async def _wait_until_settled(service: Runtime, video: DomainVideo, wait_seconds: float) -> DomainVideo:
    """Wait at most `wait_seconds` until the video is ready or failed; return its latest state."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_seconds
    while video.status not in ("ready", "failed") and loop.time() < deadline:
        await asyncio.sleep(_POLL_SECONDS)
        video = await run_in_threadpool(existing_video, service, video.id)
    return video


def _encode_cursor(video_pk: int) -> str:
    """Return the cursor of the page after the video with this primary key."""
    return base64.urlsafe_b64encode(f"v{video_pk}".encode()).decode().rstrip("=")


def _decode_cursor(cursor: str) -> int:
    """Return the video primary key in a cursor. Raises InvalidInput."""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        if not text.startswith("v") or not text[1:].isdecimal() or len(text) > 19:
            raise ValueError(text)
        return int(text[1:])
    except (ValueError, binascii.Error):
        raise InvalidInput("cursor", "must be the `next_cursor` of an earlier page") from None
