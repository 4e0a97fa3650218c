"""All errors that ReelsRS raises on purpose.

    ReelsError
    ├── InvalidInput         a value given by the caller cannot be used; names the field
    ├── NotFound             no such video, frame, projection, generation or file
    ├── Gone                 invalid for good: a cursor, after the model or the vectors of its query changed
    ├── NotReady             a video, projection or generation is not finished yet; names its status
    ├── TooLarge             more bytes than the limit allows
    ├── TooSlow              the bytes of a request arrive too slowly
    ├── Undecodable          not a video, or a video that cannot be decoded
    ├── Overloaded           too many requests at a time or per minute; says when to try again
    ├── Unavailable          temporary: a lock is held, or a part of the service cannot be reached
    │   ├── ModelUnavailable the weights of a model cannot be loaded
    │   └── WeightsMismatch  a model has other weights than those that the library was embedded with
    ├── StorageFull          no room left for bytes or rows
    ├── InternalError        code of the service failed in a child process
    └── ConfigurationError   a setting cannot be used

`api/problems.py` maps these to HTTP statuses, `cli/main.py` to exit statuses.
"""

from __future__ import annotations

from typing import Any


class ReelsError(Exception):
    """Base class of all errors that ReelsRS raises on purpose. The message is a sentence for a person."""


class InvalidInput(ReelsError):
    """A value given by the caller cannot be used.

    `field` is the name of the parameter as the caller wrote it.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class NotFound(ReelsError):
    """The named object does not exist."""


class Gone(ReelsError):
    """Something issued earlier, such as a cursor, is no longer valid and will never be valid again."""


class NotReady(ReelsError):
    """The object exists, but the requested part of it does not exist yet. `status` is the status of the object."""

    def __init__(self, thing_id: str, status: str, kind: str = "video") -> None:
        hints = {"failed": "its `error` says why", "empty": "try again when it has vectors of some videos"}
        hint = hints.get(status, "try again when its status is `ready`")
        super().__init__(f"{kind} {thing_id} is {status}: {hint}")
        self.status = status
        self.kind = kind


class InternalError(ReelsError):
    """Code of the service failed in another process, without a known fault of the input or the machine."""


class TooLarge(ReelsError):
    """More bytes than a limit allows."""


class TooSlow(ReelsError):
    """The bytes of a request did not arrive in time."""


class Overloaded(ReelsError):
    """Too many requests at a time, or per minute. `retry_after_seconds` says when to try again."""

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Undecodable(ReelsError):
    """The bytes are not a video that can be decoded; the message says why."""


class Unavailable(ReelsError):
    """Something required is temporarily unavailable. `retry_after_seconds` says when to try again."""

    retry_after_seconds = 5


class ModelUnavailable(Unavailable):
    """The weights of a model cannot be loaded; the message names them, their source, and what to do."""


class WeightsMismatch(Unavailable):
    """A model has the expected name, but not the weights that the library was embedded with.

    `found` is the `models.Generation` that the present weights belong to.
    """

    def __init__(self, message: str, found: Any) -> None:  # models.py imports this module
        super().__init__(message)
        self.found = found


class StorageFull(ReelsError):
    """The device that holds the data has no room left."""


class ConfigurationError(ReelsError):
    """A setting cannot be used; the message names it."""
