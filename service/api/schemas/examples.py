"""Example values that several schemas show on the docs page."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict

VIDEO_ID = "5f2d9c31ab047e68"
_URLS = {
    "content_url": f"/v1/videos/{VIDEO_ID}/content",
    "thumbnail_url": f"/v1/videos/{VIDEO_ID}/thumbnail",
}
SHORT = {
    "id": VIDEO_ID,
    "title": "dog_jumps_log",
    "category": "animals",
    "caption": "a brown dog jumps over a fallen log in the woods",
    "duration": 3.2,
    **_URLS,
}
VIDEO = {
    **SHORT,
    "filename": "dog_jumps_log.mp4",
    "status": "ready",
    "progress": 1.0,
    "error": None,
    "size": 229745,
    "sha256": "9f6d81c2e1ac6b0cf5f2f35d8a9cfb6f9a2ad6d8a8b8a9f7a3d5b1c0e4f6a7b8",
    "media_type": "video/mp4",
    "codec": "h264",
    "width": 848,
    "height": 464,
    "frame_rate": 30.0,
    "num_frames": 10,
    "frame_interval": None,
    "created_at": "2026-11-22T10:00:00Z",
    "updated_at": "2026-11-22T10:00:02Z",
}
HIT = {
    "rank": 1,
    "score": 0.812,
    "video": SHORT,
    "breakdown": {
        "video": {"similarity": 0.86, "weight": 0.7, "contribution": 0.602},
        "text": {"similarity": 0.7, "weight": 0.3, "contribution": 0.21, "imputed": False},
    },
    "moment": {"time": 1.44, "frame": 4, "similarity": 0.83, "start": None, "end": None},
}


def examples(*examples: dict[str, Any]) -> ConfigDict:
    """Return a model configuration that shows these examples on the docs page."""
    return ConfigDict(json_schema_extra={"examples": list(examples)})
