"""Time limits and minimum rate for slow clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from service.errors import TooSlow


@dataclass(frozen=True)
class ClientTimeouts:
    """Time limits and minimum rate for clients."""

    headers_seconds: float = 10  # to send the headers; the same again for a body that is not an upload
    silence_seconds: float = 30  # between two chunks of an upload
    start_seconds: float = 60  # of waiting for an upload, after which the rate below is required
    bytes_per_second: float = 1024
    stall_seconds: float = 60  # without the client reading any of a response
    linger_seconds: float = 2  # to discard the rest of a refused body, before the connection is closed


async def read_with_timeouts(chunks: AsyncIterator[bytes], timeouts: ClientTimeouts) -> AsyncIterator[bytes]:
    """Yield the chunks of an upload. Raises TooSlow if the client sends too slowly.

    Too slow means no chunk within `silence_seconds`, or an average below `bytes_per_second` once `start_seconds` were
    spent waiting. Only time spent waiting for the client counts, not the time that the caller takes for each chunk.
    """
    waited, received = 0.0, 0
    while True:
        began = time.monotonic()
        try:
            async with asyncio.timeout(timeouts.silence_seconds):
                chunk = await anext(chunks, None)
        except TimeoutError:
            raise TooSlow(f"upload: no data arrived for {timeouts.silence_seconds:g} s") from None
        if chunk is None:
            return
        waited += time.monotonic() - began
        received += len(chunk)
        if waited > timeouts.start_seconds and received < timeouts.bytes_per_second * waited:
            raise TooSlow(f"upload: arrived too slowly, at less than {timeouts.bytes_per_second:g} bytes a second")
        yield chunk
