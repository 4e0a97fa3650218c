"""Cache the encoded points of projections: reading and encoding 100,000 points takes a second."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Callable

from cachetools import LRUCache

from service.database import change_log, projection_rows
from service.database.db import Database
from service.database.projection_rows import Points
from service.errors import NotReady

_CACHE_ENTRIES = 4


class EncodedPoints:
    """Cache of the last four encoded projections.

    An entry is valid as long as neither the projection nor the library changes.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lock = threading.Lock()
        # By projection and encoder: the state that was encoded, the SHA-256 of the data, and the gzip data.
        self._cache: LRUCache[tuple[int, str], tuple[tuple[int, int], str, bytes]] = LRUCache(_CACHE_ENTRIES)

    def get(self, projection_id: str, encode: Callable[[Points], bytes]) -> tuple[str, bytes]:
        """Return the points of a projection as `encode` writes them: the SHA-256 of the data, and the data as gzip.

        The SHA-256 is that of the data before compression. Raises NotFound, and NotReady if the projection was never
        fitted.
        """
        with self._db.read() as connection:
            state = projection_rows.row_by_id(connection, projection_id)
            if state.fitted_at is None:
                raise NotReady(state.id, state.status, "projection")
            version = (state.version, change_log.last_change(connection, state.spec.generation))
            cache_key = (state.pk, encode.__name__)
            with self._lock:
                entry = self._cache.get(cache_key)
            if entry is None or entry[0] != version:
                data = encode(projection_rows.points(connection, state))
                entry = (version, hashlib.sha256(data).hexdigest(), gzip.compress(data, 6, mtime=0))
        with self._lock:
            self._cache[cache_key] = entry
        return entry[1:]
