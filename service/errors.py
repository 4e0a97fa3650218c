"""What can go wrong, in the words of the product. Knows no HTTP and no library.

    ReelsError
    ├── InvalidInput         a value that a caller gave; names the field
    ├── NotFound             no such video, frame, embedding
    ├── Gone                 it existed, and never will again: a cursor whose question has another answer now
    ├── NotReady             the video, or the projection, is not finished yet; names its status
    ├── TooLarge             more bytes than the limit allows
    ├── TooSlow              the bytes of a request come too slowly
    ├── Undecodable          not a video, or not one that can be decoded
    ├── Overloaded           too much at a time, or too often; says when to come again
    ├── Unavailable          try again later: a lock, a stopped part
    │   └── ModelUnavailable the weights cannot be had
    ├── StorageFull          no room left for bytes or rows
    ├── InternalError        code of the service failed, beside the process that tells of it
    └── ConfigurationError   a setting that cannot be used

One table in `app.py` turns these into HTTP statuses; `cli.py` turns them into exit statuses.
"""

from __future__ import annotations


class ReelsError(Exception):
    """The root of everything that ReelsRS raises on purpose. The message is a sentence for a person."""


class InvalidInput(ReelsError):
    """A value that cannot be used.

    `field` is the parameter's name as the caller wrote it.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class NotFound(ReelsError):
    """The thing that was named does not exist."""


class Gone(ReelsError):
    """What was given out before does not stand for anything any more."""


class NotReady(ReelsError):
    """The thing exists, but what was asked of it does not exist yet. `status` is its own."""

    def __init__(self, thing_id: str, status: str, kind: str = "video") -> None:
        hint = {"failed": "see its `error`"}.get(status, "ask again once its status is `ready`")
        super().__init__(f"{kind} {thing_id} is {status}: {hint}")
        self.status = status
        self.kind = kind


class InternalError(ReelsError):
    """Code of the service failed in another process. No input and no machine is known to be at fault."""


class TooLarge(ReelsError):
    """More bytes than a limit allows."""


class TooSlow(ReelsError):
    """The bytes of a request did not come in time."""


class Overloaded(ReelsError):
    """More at a time, or in a time, than is taken. `retry_after_seconds` says when to ask again."""

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Undecodable(ReelsError):
    """The bytes are not a video that can be decoded; the message says why."""


class Unavailable(ReelsError):
    """Something that is needed cannot be had right now. `retry_after_seconds` says when to ask again."""

    retry_after_seconds = 5


class ModelUnavailable(Unavailable):
    """The model's weights cannot be had; the message says which, from where, and what to do."""


class StorageFull(ReelsError):
    """No room left on the device that holds the data."""


class ConfigurationError(ReelsError):
    """A setting cannot be used; the message names it."""
