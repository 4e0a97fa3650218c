"""Projections as users see them: requested, fitted, stored, and extended as videos arrive.

A fit moves every point and is slow. A transform gives a new video its position among points that stay. A projection
depends on the vectors that it was fitted to. They lie in a file, with the neighbour graph that UMAP and t-SNE share,
for every projection of the same videos. These files are derived and can be made again.
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
from service.database import change_log, generation_rows, projection_jobs, projection_rows, vector_rows, video_rows
from service.database.db import Database
from service.database.leases import LEASE_SECONDS
from service.database.projection_rows import Embedding, Points, Projection, ProjectionSpec
from service.errors import InvalidInput, NotFound, ReelsError
from service.index import graph
from service.index.files import write_synced
from service.models import Aggregation, Generation, Kind, Method, Neighbours, Vectors, VideoPks, check_seed
from service.names import normalised
from service.projections import reduction
from service.projections.arrays import prefixed, unprefixed, vectors_digest
from service.projections.fits import Fit, ProgressCallback
from service.projections.steps import Cancelled, FittedVectorsLost, ProgressParts

log = structlog.get_logger(__name__)
_TRANSFORM_VIDEOS = 256  # videos; other work may use the processor between two batches
_MIN_STABLE_POINTS = 100
"""A projection of fewer points has no shape to keep: it is fitted again each time it has doubled."""
_QUALITY_NEIGHBOURS = 15
_QUALITY_SAMPLE = 1000


class Projections:
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
    ) -> ProjectionSpec:
        """Return the specification of a projection, with all parameters of the method.

        Raises InvalidInput, which names the wrong argument. `parameters` replace defaults of the method. `category`
        limits the projection to one category; None means all videos.
        """
        if dimensions not in (2, 3):
            raise InvalidInput("dimensions", f"must be 2 or 3, not {dimensions}")
        kind: Kind = self._aggregation if embedding == "aggregated" else embedding
        return ProjectionSpec(
            generation=self._generation().id,
            embedding=embedding,
            kind=kind,
            method=method,
            dimensions=dimensions,
            seed=check_seed(seed),
            parameters=reduction.complete_parameters(method, parameters or {}),
            category=None if category is None else normalised(category),
        )

    def request(self, spec: ProjectionSpec) -> tuple[Projection, bool]:
        """Return the projection of this specification; queue a fit if it is new or had failed.

        The second value is whether this call queued the fit.
        """
        with self._db.write() as connection:
            return projection_jobs.request(connection, spec)

    def find(self, projection_id: str) -> Projection:
        """Return a projection and its current state. Raises NotFound."""
        with self._db.read() as connection:
            return projection_rows.by_id(connection, projection_id)

    def all(self) -> list[Projection]:
        """Return the projections of the active generation, newest first."""
        with self._db.read() as connection:
            return projection_rows.all_of(connection, self._generation().id)

    def refit(self, projection_id: str) -> Projection:
        """Queue a new fit of a projection; its points stay until the fit is done. Raises NotFound."""
        return self._change(projection_id, projection_jobs.queue)

    def cancel(self, projection_id: str) -> Projection:
        """Cancel the fit of a projection if it is queued or running. Raises NotFound."""
        return self._change(projection_id, projection_jobs.cancel)

    def delete(self, projection_id: str) -> None:
        """Delete a projection and the files that only it needed. Raises NotFound."""
        with self._db.write() as connection:
            projection_rows.delete(connection, projection_rows.row_by_id(connection, projection_id).pk)
        self._remove_stale_files()

    def points(self, state: Projection) -> Points:
        """Return every point of a projection."""
        with self._db.read() as connection:
            return projection_rows.points(connection, state)

    # --- fitting

    def fit_and_wait(
        self, spec: ProjectionSpec, *, refit: bool = False, progress: ProgressCallback = lambda _: None
    ) -> Projection:
        """Return the projection of this specification, fitted and up to date with the library.

        Fit it in this process if it is not fitted yet or `refit` is set. If another process is fitting it, wait for
        that process. `progress` receives the share that is done, 0 to 1. Raises ReelsError if the fit fails.
        """
        state, _ = self.request(spec)
        if refit and state.status == "ready":
            state = self.refit(state.id)
        owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        while (state := self.update(state.id)).status != "ready":
            if state.status == "failed":
                raise ReelsError(f"the map could not be fitted: {state.error}")
            with self._db.write() as connection:
                claimed = projection_jobs.claim(connection, owner, projection_pk=state.pk)
            if claimed is None:
                progress(state.progress)
                time.sleep(0.2)
            else:
                with self._renewing_lease(state.pk, owner):
                    self.run_fit(state.pk, owner, progress)
        return state

    @contextmanager
    def _renewing_lease(self, projection_pk: int, owner: str) -> Iterator[None]:
        """Renew the lease while the block runs; it might expire between two steps of a fit."""
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(LEASE_SECONDS / 3):
                with suppress(ReelsError), self._db.write() as connection:
                    projection_jobs.renew(connection, projection_pk, owner)

        thread = threading.Thread(target=renew, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def run_fit(self, projection_pk: int, owner: str, progress: ProgressCallback = lambda _: None) -> None:
        """Run the fit that `owner` has claimed; `progress` receives the share that is done, 0 to 1.

        Errors are recorded in the projection's row, not raised. Raises Cancelled once `owner` no longer holds the
        claim.
        """

        def report(done: float) -> None:
            with self._db.write() as connection:
                if not projection_jobs.renew(connection, projection_pk, owner, round(done, 3)):
                    raise Cancelled
            progress(done)

        try:
            self._fit(projection_pk, owner, ProgressParts(report))
        except Cancelled:
            raise
        except Exception as error:
            log.exception("fit failed", projection=projection_pk)
            with self._db.write() as connection:
                projection_jobs.fail(connection, projection_pk, owner, str(error) or type(error).__name__)
        self._remove_stale_files()

    def _fit(self, projection_pk: int, owner: str, progress: ProgressParts) -> None:
        with self._db.read() as connection:
            spec = projection_rows.row_by_pk(connection, projection_pk).spec
            applied_change = change_log.last_change(connection, spec.generation)
            ready_pks = video_rows.ready_pks(connection, spec.category)
            video_pks, counts, vectors = self._vectors(connection, spec, ready_pks)
        progress.report(0.03)
        count = reduction.neighbours_needed(spec.method, len(vectors), spec.parameters)
        digest = vectors_digest(spec, video_pks, counts, vectors)
        neighbours = None
        if count:
            self._write_file(f"{digest}.npy", lambda file: np.save(file, vectors, allow_pickle=False))
            neighbours = self._graph(digest, vectors, count, progress.part(0.03, 0.3))
        fit = reduction.fit(
            vectors,
            spec.method,
            spec.dimensions,
            seed=spec.seed,
            parameters=spec.parameters,
            neighbours=neighbours,
            progress=progress.part(0.3, 0.9),
        )
        progress.report(0.9)
        quality = reduction.quality(
            vectors, fit.coordinates, neighbours=_QUALITY_NEIGHBOURS, sample=_QUALITY_SAMPLE, seed=spec.seed
        )
        progress.report(0.97)
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {"keys": video_pks, "counts": counts, "coordinates": fit.coordinates}
        np.savez(buffer, **arrays, **prefixed(fit.model))
        split_by_video = np.split(fit.coordinates, np.cumsum(counts)[:-1]) if len(video_pks) else []
        with self._db.write() as connection:
            if not projection_jobs.owns(connection, projection_pk, owner):
                raise Cancelled
            projection_jobs.finish(
                connection,
                projection_pk,
                points=zip(video_pks.tolist(), split_by_video, strict=True),
                applied_change=applied_change,
                vectors_digest=digest,
                model=buffer.getvalue(),
                quality=None if quality is None else asdict(quality),
            )

    def _vectors(
        self, connection: sa.Connection, spec: ProjectionSpec, video_pks: list[int]
    ) -> tuple[VideoPks, VideoPks, Vectors]:
        """Return video primary keys (M,), the number of vectors of each (M,), and the vectors (N, D) float32.

        Of the videos `video_pks`, only those with embeddings of this kind are included, in ascending order.
        """
        generation = generation_rows.generation(connection, spec.generation)
        found = vector_rows.vectors_of(connection, video_pks, generation, spec.kind)
        order = sorted(found)
        nothing = np.zeros((0, generation.dimension), dtype=np.float32)
        matrix = np.concatenate([nothing, *(found[video_pk] for video_pk in order)])
        counts = np.array([len(found[video_pk]) for video_pk in order], dtype=np.int64)
        return np.array(order, dtype=np.int64), counts, matrix

    def _graph(self, digest: str, vectors: Vectors, count: int, progress: ProgressCallback) -> Neighbours:
        """Return the neighbour graph, from a file if one with at least `count` neighbours exists."""
        for path in self._folder.glob(f"{digest}.*.npz"):
            if int(path.name.split(".")[1]) >= count:
                with np.load(path, allow_pickle=False) as kept:
                    return Neighbours(kept["rows"][:, :count], kept["distances"][:, :count])
        found = graph.neighbours(vectors, count, progress)
        arrays: dict[str, Any] = {"rows": found.rows, "distances": found.distances}
        self._write_file(f"{digest}.{count}.npz", lambda file: np.savez(file, **arrays))
        return found

    # --- new points

    def update_all(self) -> bool:
        """Bring all projections up to date with new and removed videos; return whether any was out of date."""
        with self._db.read() as connection:
            generation = generation_rows.active_generation(connection)
            projection_pks = [] if generation is None else projection_rows.out_of_date(connection, generation.id)
        for projection_pk in projection_pks:
            try:
                self._update_step(projection_pk)
            except NotFound:
                continue  # the projection was deleted meanwhile
            except ReelsError:
                raise
            except Exception as error:
                # Record the error where users see it, and do not retry forever: embedding must go on.
                log.exception("placing new points failed", projection=projection_pk)
                with self._db.write() as connection:
                    projection_jobs.fail(
                        connection, projection_pk, None, f"placing new points failed: {error or type(error).__name__}"
                    )
        return bool(projection_pks)

    def update(self, projection_id: str) -> Projection:
        """Return a projection; if it is fitted, bring it up to date with the library first. Raises NotFound."""
        while (state := self.find(projection_id)).status == "ready" and self._update_step(state.pk):
            pass
        return self.find(projection_id)

    def _update_step(self, projection_pk: int) -> bool:
        """Run one step of an update: transform a batch or queue a new fit. Return False if nothing is left to do."""
        with self._db.read() as connection:
            state = projection_rows.by_pk(connection, projection_pk)
            spec = state.spec
            last_change = change_log.last_change(connection, spec.generation)
            if state.status != "ready" or state.applied_change >= last_change:
                return False
            changed = change_log.changed_since(connection, state.applied_change, spec.generation)
            points_changed = bool(projection_rows.pks_with_points(connection, projection_pk, changed)) or (
                len(video_rows.existing_pks(connection, changed)) < len(changed)
            )
            missing = projection_rows.pks_without_points(connection, spec, projection_pk)
            digest, model = projection_rows.stored_fit(connection, projection_pk)
            fitted = state.points - state.transformed
            if missing and fitted < _MIN_STABLE_POINTS and state.transformed + len(missing) >= fitted:
                with self._db.write() as writing:
                    projection_jobs.queue(writing, projection_pk)
                return True
            batch = missing[:_TRANSFORM_VIDEOS] if reduction.can_transform(spec.method, spec.dimensions) else []
            video_pks, counts, vectors = self._vectors(connection, spec, batch)
            points: list[tuple[int, Vectors]] = []
            if len(video_pks):
                try:
                    fit, nearest = self._load_fit(connection, spec, digest, model)
                except FittedVectorsLost:
                    with self._db.write() as writing:
                        projection_jobs.queue(writing, projection_pk)
                    return True
                coordinates = reduction.transform(
                    vectors, fit, spec.method, parameters=spec.parameters, seed=spec.seed, neighbours=nearest(vectors)
                )
                points = list(zip(video_pks.tolist(), np.split(coordinates, np.cumsum(counts)[:-1]), strict=True))
        with self._db.write() as connection:
            now = projection_rows.row_by_pk(connection, projection_pk)
            if now.status != "ready" or now.fitted_at != state.fitted_at:
                return True  # fitted again meanwhile
            # Videos that have changed since are left out; the next step transforms their current vectors.
            changed_meanwhile = set(change_log.changed_since(connection, last_change, spec.generation))
            points = [(video_pk, rows) for video_pk, rows in points if video_pk not in changed_meanwhile]
            projection_rows.add_transformed(connection, projection_pk, points)
            applied = last_change if len(batch) == len(missing) or not batch else state.applied_change
            points_changed = points_changed or len(video_pks) > 0
            projection_rows.record_applied_change(connection, projection_pk, applied, changed=points_changed)
        return True

    def _load_fit(
        self, connection: sa.Connection, spec: ProjectionSpec, digest: str, model: bytes
    ) -> tuple[Fit, Callable[[Vectors], Neighbours]]:
        """Return the fit, and a search for the nearest fitted vectors. Raises FittedVectorsLost if they are gone."""
        with np.load(io.BytesIO(model), allow_pickle=False) as kept:
            arrays = dict(kept)
        fit = Fit(arrays["coordinates"], unprefixed(arrays))
        count = reduction.neighbours_needed(spec.method, len(fit.coordinates), spec.parameters)
        if "components" in fit.model or not count:
            return fit, lambda vectors: Neighbours(np.zeros((len(vectors), 0), np.int32), vectors[:, :0])
        matrix: Vectors
        try:
            matrix = np.load(self._folder / f"{digest}.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            # The file is missing or broken. Read the vectors from the database, as far as the videos still exist.
            video_pks, _, matrix = self._vectors(connection, spec, arrays["keys"].tolist())
            fitted_pks = arrays["keys"].repeat(arrays["counts"])
            fit = Fit(fit.coordinates[np.isin(fitted_pks, video_pks)], fit.model)
            if len(matrix) != len(fit.coordinates):  # frames were sampled again since the fit
                raise FittedVectorsLost from None
            if len(video_pks) == len(arrays["keys"]):
                self._write_file(f"{digest}.npy", lambda file: np.save(file, matrix, allow_pickle=False))
        return fit, lambda vectors: graph.nearest(matrix, vectors, min(count, len(matrix)))

    # --- files

    def _write_file(self, name: str, write: Callable[[Any], None]) -> None:
        """Write a file, whole or not at all, unless it exists. An error is logged, and only costs time later."""
        path = self._folder / name
        if path.exists():
            return
        aside = path.with_name(f".{name}.{os.getpid()}.part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_synced(aside, write)
            aside.replace(path)
        except OSError as error:
            log.warning("projection file not written", reason=str(error))

    def _remove_stale_files(self) -> None:
        """Remove the files that no projection depends on any more."""
        if not self._folder.is_dir():
            return
        with self._db.read() as connection:
            if projection_rows.is_fitting(connection):
                return  # no row refers to its files yet; the fit that ends last removes stale files
            needed = projection_rows.vectors_digests(connection)
        for path in self._folder.glob("[!.]*"):
            if path.name.split(".")[0] not in needed:
                with system_errors.converted("old files of maps cannot be removed"):
                    path.unlink(missing_ok=True)

    def _change(self, projection_id: str, change: Callable[[sa.Connection, int], None]) -> Projection:
        """Apply a change to a projection in a write transaction; return the projection. Raises NotFound."""
        with self._db.write() as connection:
            projection_pk = projection_rows.row_by_id(connection, projection_id).pk
            change(connection, projection_pk)
            return projection_rows.by_pk(connection, projection_pk)
