"""Maps as a user sees them: asked for once, laid out, kept, and grown as videos arrive.

Laying out moves every point and takes its time; placing gives a new video its place among points that stay where they
are. A map stands on the vectors that it was laid out from: they lie in a file, with the neighbour graph that UMAP and
t-SNE share, for every map of the same videos. The files are derived and can be made again.
"""

from __future__ import annotations

import io
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
import structlog

from service import system_errors
from service.database import catalog, change_log, generation_rows, map_jobs, maps, vector_rows
from service.database.db import Database
from service.database.leases import LEASE_SECONDS
from service.database.maps import Embedding, Map, Points, Spec
from service.errors import InvalidInput, NotFound, ReelsError
from service.index import graph
from service.index.files import write_whole
from service.models import Aggregation, Generation, Keys, Kind, Method, Neighbours, Vectors, check_seed
from service.projections import reduction
from service.projections.arrays import digest, prefixed, unprefixed
from service.projections.fits import Fit, Progress
from service.projections.steps import Cancelled, Lost, Steps

log = structlog.get_logger(__name__)
_PLACED_AT_ONCE = 256  # videos; in between, others may use the processor
_SHAPELESS = 100
"""A map of fewer points has no shape to keep: it is laid out anew each time it has doubled."""
_QUALITY_NEIGHBOURS = 15
_QUALITY_SAMPLE = 1000


class Atlas:
    """All maps of a library. `generation` is asked when a map is, for it may have changed."""

    def __init__(
        self, db: Database, folder: Path, generation: Callable[[], Generation], aggregation: Aggregation
    ) -> None:
        self._db = db
        self._folder = folder
        self._generation = generation
        self._aggregation = aggregation

    def spec(
        self,
        embedding: Embedding,
        method: Method,
        dimensions: int,
        *,
        seed: int = 0,
        parameters: Mapping[str, object] | None = None,
        category: str | None = None,
    ) -> Spec:
        """What to ask for. Raises InvalidInput, naming what is wrong."""
        if dimensions not in (2, 3):
            raise InvalidInput("dimensions", f"must be 2 or 3, not {dimensions}")
        kind: Kind = self._aggregation if embedding == "aggregated" else embedding
        return Spec(
            generation=self._generation().id,
            embedding=embedding,
            kind=kind,
            method=method,
            dimensions=dimensions,
            seed=check_seed(seed),
            parameters=reduction.effective(method, parameters or {}),
            category=category,
        )

    def ask(self, spec: Spec) -> tuple[Map, bool]:
        """The map of this spec, and whether this queued it: where it is new, or had failed."""
        with self._db.write() as connection:
            return map_jobs.ask(connection, spec)

    def find(self, map_id: str) -> Map:
        """Raises NotFound."""
        with self._db.read() as connection:
            return maps.by_id(connection, map_id)

    def all(self) -> list[Map]:
        """Those of the model in use, the newest first."""
        with self._db.read() as connection:
            return maps.all_of(connection, self._generation().id)

    def refit(self, map_id: str) -> Map:
        """Have a map laid out anew; its points stay until then. Raises NotFound."""
        return self._change(map_id, map_jobs.queue)

    def cancel(self, map_id: str) -> Map:
        """Give up the layout of a map, if it is queued or running. Raises NotFound."""
        return self._change(map_id, map_jobs.cancel)

    def delete(self, map_id: str) -> None:
        """Remove a map. Raises NotFound."""
        with self._db.write() as connection:
            maps.delete(connection, maps.row_by_id(connection, map_id).key)
        self._tidy()

    def points(self, state: Map) -> Points:
        """Every point of a map."""
        with self._db.read() as connection:
            return maps.points(connection, state)

    # --- laying out

    def ready(self, spec: Spec, *, refit: bool = False, progress: Progress = lambda _: None) -> Map:
        """The map of this spec, brought up to what the catalogue holds now; laid out in this process where it is not
        there, or with `refit`, unless another process is at it: then waited for. Raises ReelsError where it fails."""
        state, _ = self.ask(spec)
        if refit and state.status == "ready":
            state = self.refit(state.id)
        owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        while (state := self.bring_up(state.id)).status != "ready":
            if state.status == "failed":
                raise ReelsError(f"the map could not be laid out: {state.error}")
            with self._db.write() as connection:
                claimed = map_jobs.claim(connection, owner, key=state.key)
            if claimed is None:
                progress(state.progress)
                time.sleep(0.2)
            else:
                with self._held(state.key, owner):
                    self.lay_out(state.key, owner, progress)
        return state

    @contextmanager
    def _held(self, key: int, owner: str) -> Iterator[None]:
        """Renews the lease for as long as the block lasts: between two steps of a layout it might run out."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(LEASE_SECONDS / 3):
                with suppress(ReelsError), self._db.write() as connection:
                    map_jobs.renew(connection, key, owner)

        thread = threading.Thread(target=renew, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def lay_out(self, key: int, owner: str, progress: Progress = lambda _: None) -> None:
        """Make the layout that `owner` has claimed, and tell how far it is, 0 to 1. What goes wrong is written into
        the map. Raises Cancelled once the claim is not `owner`'s any more."""

        def report(done: float) -> None:
            with self._db.write() as connection:
                if not map_jobs.renew(connection, key, owner, round(done, 3)):
                    raise Cancelled
            progress(done)

        try:
            self._lay_out(key, owner, Steps(report))
        except Cancelled:
            raise
        except Exception as error:
            log.exception("a map could not be laid out", map=key)
            with self._db.write() as connection:
                map_jobs.fail(connection, key, owner, str(error) or type(error).__name__)
        self._tidy()

    def _lay_out(self, key: int, owner: str, steps: Steps) -> None:
        with self._db.read() as connection:
            spec = maps.row_by_key(connection, key).spec
            seen = change_log.last_change(connection, spec.generation)
            keys, counts, vectors = self._vectors(connection, spec, catalog.ready_keys(connection, spec.category))
        steps.reached(0.03)
        count = reduction.neighbours_needed(spec.method, len(vectors), spec.parameters)
        basis = digest(spec, keys, counts, vectors)
        near = None
        if count:
            self._keep(f"{basis}.npy", lambda file: np.save(file, vectors, allow_pickle=False))
            near = self._graph(basis, vectors, count, steps.part(0.03, 0.3))
        fit = reduction.fit(
            vectors,
            spec.method,
            spec.dimensions,
            seed=spec.seed,
            parameters=spec.parameters,
            neighbours=near,
            progress=steps.part(0.3, 0.9),
        )
        steps.reached(0.9)
        quality = reduction.quality(
            vectors,
            fit.coordinates,
            neighbours=_QUALITY_NEIGHBOURS,
            sample=_QUALITY_SAMPLE,
            seed=spec.seed,
        )
        steps.reached(0.97)
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {"keys": keys, "counts": counts, "coordinates": fit.coordinates}
        np.savez(buffer, **arrays, **prefixed(fit.model))
        split = np.split(fit.coordinates, np.cumsum(counts)[:-1]) if len(keys) else []
        with self._db.write() as connection:
            if not map_jobs.owns(connection, key, owner):
                raise Cancelled
            map_jobs.finish(
                connection,
                key,
                points=zip(keys.tolist(), split, strict=True),
                seen=seen,
                basis=basis,
                model=buffer.getvalue(),
                quality=None if quality is None else asdict(quality),
            )

    def _vectors(self, connection: sa.Connection, spec: Spec, keys: list[int]) -> tuple[Keys, Keys, Vectors]:
        """Keys (M,) of those of these videos that have such embeddings, how many each has (M,), and they, (N, D)."""
        generation = generation_rows.generation(connection, spec.generation)
        found = vector_rows.vectors_of(connection, keys, generation, spec.kind)
        order = sorted(found)
        nothing = np.zeros((0, generation.dimension), dtype=np.float32)
        matrix = np.concatenate([nothing, *(found[key] for key in order)])
        counts = np.array([len(found[key]) for key in order], dtype=np.int64)
        return np.array(order, dtype=np.int64), counts, matrix

    def _graph(self, basis: str, vectors: Vectors, count: int, progress: Progress) -> Neighbours:
        """The neighbour graph, from its file if one with as many neighbours is there."""
        for path in self._folder.glob(f"{basis}.*.npz"):
            if int(path.name.split(".")[1]) >= count:
                with np.load(path, allow_pickle=False) as kept:
                    return Neighbours(kept["rows"][:, :count], kept["distances"][:, :count])
        found = graph.neighbours(vectors, count, progress)
        arrays: dict[str, Any] = {"rows": found.rows, "distances": found.distances}
        self._keep(f"{basis}.{count}.npz", lambda file: np.savez(file, **arrays))
        return found

    # --- placing

    def place_new(self) -> bool:
        """Bring every map up to what the catalogue holds now: place what is new, forget what went. Whether there was
        anything to do."""
        with self._db.read() as connection:
            generation = generation_rows.active_generation(connection)
            keys = [] if generation is None else maps.behind(connection, generation.id)
        for key in keys:
            try:
                self._place(key)
            except NotFound:
                continue  # deleted meanwhile
            except ReelsError:
                raise
            except Exception as error:
                # Said where it is seen, and not tried again and again: embedding must go on.
                log.exception("videos could not be placed", map=key)
                with self._db.write() as connection:
                    map_jobs.fail(connection, key, None, f"placing failed: {error or type(error).__name__}")
        return bool(keys)

    def bring_up(self, map_id: str) -> Map:
        """A map that is laid out, brought up to what the catalogue holds now. Raises NotFound."""
        while (state := self.find(map_id)).status == "ready" and self._place(state.key):
            pass
        return self.find(map_id)

    def _place(self, key: int) -> bool:
        """One step of it; False once there is nothing left to do."""
        with self._db.read() as connection:
            state = maps.by_key(connection, key)
            spec = state.spec
            last = change_log.last_change(connection, spec.generation)
            if state.status != "ready" or state.seen >= last:
                return False
            changed = change_log.changed_since(connection, state.seen, spec.generation)
            altered = bool(maps.on_map(connection, key, changed)) or (
                len(catalog.existing_keys(connection, changed)) < len(changed)
            )
            fresh = maps.unplaced(connection, spec, key)
            basis, model = maps.fit_of(connection, key)
            fitted = state.points - state.placed
            if fresh and fitted < _SHAPELESS and state.placed + len(fresh) >= fitted:
                with self._db.write() as writing:
                    map_jobs.queue(writing, key)
                return True
            batch = fresh[:_PLACED_AT_ONCE] if reduction.placeable(spec.method, spec.dimensions) else []
            keys, counts, vectors = self._vectors(connection, spec, batch)
            places: list[tuple[int, Vectors]] = []
            if len(keys):
                try:
                    fit, standing = self._standing(connection, spec, basis, model)
                except Lost:
                    with self._db.write() as writing:
                        map_jobs.queue(writing, key)
                    return True
                coordinates = reduction.place(
                    vectors,
                    fit,
                    spec.method,
                    parameters=spec.parameters,
                    seed=spec.seed,
                    neighbours=standing(vectors),
                )
                places = list(zip(keys.tolist(), np.split(coordinates, np.cumsum(counts)[:-1]), strict=True))
        with self._db.write() as connection:
            now = maps.row_by_key(connection, key)
            if now.status != "ready" or now.fitted_at != state.fitted_at:
                return True  # laid out anew meanwhile
            # They will be placed by what they are now.
            since = set(change_log.changed_since(connection, last, spec.generation))
            maps.put(connection, key, [(video, rows) for video, rows in places if video not in since])
            whole = len(batch) == len(fresh) or not batch
            maps.caught_up(connection, key, last if whole else state.seen, changed=altered or len(keys) > 0)
        return True

    def _standing(
        self, connection: sa.Connection, spec: Spec, basis: str, model: bytes
    ) -> tuple[Fit, Callable[[Vectors], Neighbours]]:
        """The fit of a map, and who among those that it was fitted to is near a vector."""
        with np.load(io.BytesIO(model), allow_pickle=False) as kept:
            arrays = dict(kept)
        fit = Fit(arrays["coordinates"], unprefixed(arrays))
        count = reduction.neighbours_needed(spec.method, len(fit.coordinates), spec.parameters)
        if "components" in fit.model or not count:
            return fit, lambda vectors: Neighbours(np.zeros((len(vectors), 0), np.int32), vectors[:, :0])
        matrix: Vectors
        try:
            matrix = np.load(self._folder / f"{basis}.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            # The file is gone or broken: from the database, as far as the videos are still there.
            keys, _, matrix = self._vectors(connection, spec, arrays["keys"].tolist())
            owner = arrays["keys"].repeat(arrays["counts"])
            fit = Fit(fit.coordinates[np.isin(owner, keys)], fit.model)
            if len(matrix) != len(fit.coordinates):  # sampled anew since
                raise Lost from None
            if len(keys) == len(arrays["keys"]):
                self._keep(f"{basis}.npy", lambda file: np.save(file, matrix, allow_pickle=False))
        return fit, lambda vectors: graph.nearest(matrix, vectors, min(count, len(matrix)))

    # --- files

    def _keep(self, name: str, write: Callable[[Any], None]) -> None:
        """Write a file under this name, whole or not at all. One that cannot be written costs time later."""
        path = self._folder / name
        if path.exists():
            return
        aside = path.with_name(f".{name}.{os.getpid()}.part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(aside, write)
            aside.replace(path)
        except OSError as error:
            log.warning("a file of the atlas could not be written", reason=str(error))

    def _tidy(self) -> None:
        """Remove the files that no map stands on any more."""
        if not self._folder.is_dir():
            return
        with self._db.read() as connection:
            if maps.being_laid_out(connection):
                return  # its files stand under no map yet; whoever ends last tidies
            wanted = maps.bases(connection)
        for path in self._folder.glob("[!.]*"):
            if path.name.split(".")[0] not in wanted:
                with system_errors.named("the atlas cannot be tidied"):
                    path.unlink(missing_ok=True)

    def _change(self, map_id: str, how: Callable[[sa.Connection, int], None]) -> Map:
        with self._db.write() as connection:
            key = maps.row_by_id(connection, map_id).key
            how(connection, key)
            return maps.by_key(connection, key)
