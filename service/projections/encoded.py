"""Cache the encoded points of projections: reading and encoding 100,000 points takes a second."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Callable

from cachetools import LRUCache

from service.database import change_log, maps
from service.database.db import Database
from service.database.maps import Points
from service.errors import NotReady

_KEPT = 4


class EncodedPoints:
    """Cache of the last four encoded projections.

    An entry is valid as long as neither the projection nor the library changes.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lock = threading.Lock()
        # By projection and encoder: the state that was encoded, the SHA-256 of the data, and the gzip data.
        self._kept: LRUCache[tuple[int, str], tuple[tuple[int, int], str, bytes]] = LRUCache(_KEPT)

    def of(self, map_id: str, encode: Callable[[Points], bytes]) -> tuple[str, bytes]:
        """Return the points of a projection as `encode` writes them: the SHA-256 of the data, and the data as gzip.

        The SHA-256 is that of the data before compression. Raises NotFound, and NotReady if the projection was never
        fitted.
        """
        with self._db.read() as connection:
            state = maps.row_by_id(connection, map_id)
            if state.fitted_at is None:
                raise NotReady(state.id, state.status, "projection")
            stamp = (state.version, change_log.last_change(connection, state.spec.generation))
            name = (state.key, encode.__name__)
            with self._lock:
                known = self._kept.get(name)
            if known is None or known[0] != stamp:
                data = encode(maps.points(connection, state))
                known = (stamp, hashlib.sha256(data).hexdigest(), gzip.compress(data, 6, mtime=0))
        with self._lock:
            self._kept[name] = known
        return known[1:]
