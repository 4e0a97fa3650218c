"""Projections as users see them: requested, fitted, stored, and extended as videos arrive.

A fit moves every point and is slow. Placing gives a new video its position among points that stay. A projection depends
on the vectors that it was fitted to. They lie in a file, with the neighbour graph that UMAP and t-SNE share, for every
projection of the same videos. These files are derived and can be made again.
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
_PLACED_AT_ONCE = 256  # videos; other work may use the processor between two batches
_SHAPELESS = 100
"""A projection of fewer points has no shape to keep: it is fitted again each time it has doubled."""
_QUALITY_NEIGHBOURS = 15
_QUALITY_SAMPLE = 1000


class Atlas:
    """All projections of a library.

    `generation` returns the active generation. It is called for each request, because the generation may have changed.
    """

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
        """Return the specification of a projection, with all parameters of the method.

        Raises InvalidInput, which names the wrong argument. `parameters` replace defaults of the method. `category`
        limits the projection to one category; None means all videos.
        """
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
        """Return the projection of this specification; queue a fit if it is new or had failed.

        The second value is whether this call queued the fit.
        """
        with self._db.write() as connection:
            return map_jobs.ask(connection, spec)

    def find(self, map_id: str) -> Map:
        """Return a projection and its current state. Raises NotFound."""
        with self._db.read() as connection:
            return maps.by_id(connection, map_id)

    def all(self) -> list[Map]:
        """Return the projections of the active generation, newest first."""
        with self._db.read() as connection:
            return maps.all_of(connection, self._generation().id)

    def refit(self, map_id: str) -> Map:
        """Queue a new fit of a projection; its points stay until the fit is done. Raises NotFound."""
        return self._change(map_id, map_jobs.queue)

    def cancel(self, map_id: str) -> Map:
        """Cancel the fit of a projection if it is queued or running. Raises NotFound."""
        return self._change(map_id, map_jobs.cancel)

    def delete(self, map_id: str) -> None:
        """Delete a projection and the files that only it needed. Raises NotFound."""
        with self._db.write() as connection:
            maps.delete(connection, maps.row_by_id(connection, map_id).key)
        self._tidy()

    def points(self, state: Map) -> Points:
        """Return every point of a projection."""
        with self._db.read() as connection:
            return maps.points(connection, state)

    # --- fitting

    def ready(self, spec: Spec, *, refit: bool = False, progress: Progress = lambda _: None) -> Map:
        """Return the projection of this specification, fitted and up to date with the library.

        Fit it in this process if it is not fitted yet or `refit` is set. If another process is fitting it, wait for
        that process. `progress` receives the share that is done, 0 to 1. Raises ReelsError if the fit fails.
        """
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
        """Renew the lease while the block runs; it might expire between two steps of a fit."""
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
        """Run the fit that `owner` has claimed; `progress` receives the share that is done, 0 to 1.

        Errors are recorded in the projection's row, not raised. Raises Cancelled once `owner` no longer holds the
        claim.
        """

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
        """Return video primary keys (M,), the number of vectors of each (M,), and the vectors (N, D) float32.

        Of the videos `keys`, only those with embeddings of this kind are included, in the order of their keys.
        """
        generation = generation_rows.generation(connection, spec.generation)
        found = vector_rows.vectors_of(connection, keys, generation, spec.kind)
        order = sorted(found)
        nothing = np.zeros((0, generation.dimension), dtype=np.float32)
        matrix = np.concatenate([nothing, *(found[key] for key in order)])
        counts = np.array([len(found[key]) for key in order], dtype=np.int64)
        return np.array(order, dtype=np.int64), counts, matrix

    def _graph(self, basis: str, vectors: Vectors, count: int, progress: Progress) -> Neighbours:
        """Return the neighbour graph, from a file if one with at least `count` neighbours exists."""
        for path in self._folder.glob(f"{basis}.*.npz"):
            if int(path.name.split(".")[1]) >= count:
                with np.load(path, allow_pickle=False) as kept:
                    return Neighbours(kept["rows"][:, :count], kept["distances"][:, :count])
        found = graph.neighbours(vectors, count, progress)
        arrays: dict[str, Any] = {"rows": found.rows, "distances": found.distances}
        self._keep(f"{basis}.{count}.npz", lambda file: np.savez(file, **arrays))
        return found

    # --- placing new points

    def place_new(self) -> bool:
        """Bring all projections up to date with new and removed videos; return whether any was out of date."""
        with self._db.read() as connection:
            generation = generation_rows.active_generation(connection)
            keys = [] if generation is None else maps.behind(connection, generation.id)
        for key in keys:
            try:
                self._place(key)
            except NotFound:
                continue  # the projection was deleted meanwhile
            except ReelsError:
                raise
            except Exception as error:
                # Record the error where users see it, and do not retry forever: embedding must go on.
                log.exception("videos could not be placed", map=key)
                with self._db.write() as connection:
                    map_jobs.fail(connection, key, None, f"placing failed: {error or type(error).__name__}")
        return bool(keys)

    def bring_up(self, map_id: str) -> Map:
        """Return a projection; if it is fitted, bring it up to date with the library first. Raises NotFound."""
        while (state := self.find(map_id)).status == "ready" and self._place(state.key):
            pass
        return self.find(map_id)

    def _place(self, key: int) -> bool:
        """Run one step of an update: place a batch or queue a new fit. Return False if nothing is left to do."""
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
                return True  # fitted again meanwhile
            # Videos that have changed since are left out; the next step places them by their current vectors.
            since = set(change_log.changed_since(connection, last, spec.generation))
            maps.put(connection, key, [(video, rows) for video, rows in places if video not in since])
            whole = len(batch) == len(fresh) or not batch
            maps.caught_up(connection, key, last if whole else state.seen, changed=altered or len(keys) > 0)
        return True

    def _standing(
        self, connection: sa.Connection, spec: Spec, basis: str, model: bytes
    ) -> tuple[Fit, Callable[[Vectors], Neighbours]]:
        """Return the fit, and a search for the nearest fitted vectors. Raises Lost if those no longer exist."""
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
            # The file is missing or broken. Read the vectors from the database, as far as the videos still exist.
            keys, _, matrix = self._vectors(connection, spec, arrays["keys"].tolist())
            owner = arrays["keys"].repeat(arrays["counts"])
            fit = Fit(fit.coordinates[np.isin(owner, keys)], fit.model)
            if len(matrix) != len(fit.coordinates):  # frames were sampled again since the fit
                raise Lost from None
            if len(keys) == len(arrays["keys"]):
                self._keep(f"{basis}.npy", lambda file: np.save(file, matrix, allow_pickle=False))
        return fit, lambda vectors: graph.nearest(matrix, vectors, min(count, len(matrix)))

    # --- files

    def _keep(self, name: str, write: Callable[[Any], None]) -> None:
        """Write a file, whole or not at all, unless it exists. An error is logged, and only costs time later."""
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
        """Remove the files that no projection depends on any more."""
        if not self._folder.is_dir():
            return
        with self._db.read() as connection:
            if maps.being_laid_out(connection):
                return  # no row refers to its files yet; the fit that ends last removes stale files
            wanted = maps.bases(connection)
        for path in self._folder.glob("[!.]*"):
            if path.name.split(".")[0] not in wanted:
                with system_errors.named("the atlas cannot be tidied"):
                    path.unlink(missing_ok=True)

    def _change(self, map_id: str, how: Callable[[sa.Connection, int], None]) -> Map:
        """Apply a change to a projection in a write transaction; return the projection. Raises NotFound."""
        with self._db.write() as connection:
            key = maps.row_by_id(connection, map_id).key
            how(connection, key)
            return maps.by_key(connection, key)
