"""Diagnose a library and the machine it runs on, and suggest fixes.

Every check returns findings: what was checked, its state, and what to do if something is wrong. Checks change nothing
and work beside a running service. `verify` checks the database, and compares the index and the store with it.
`diagnose` also checks the settings, the machine, the jobs, the decoder and the model. `rebuild` replaces the index.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import sqlalchemy as sa

from service import __version__
from service.config import Settings
from service.database import db, dialects, generation_rows, video_rows
from service.database.db import Database
from service.embedding import loading
from service.errors import NotFound, ReelsError, Unavailable
from service.generations import generations
from service.index.factory import VectorIndex, indexed_kinds, open_index, rebuild_index
from service.media import Decoder, Limits
from service.media.synthetic.drawing import write_clip
from service.media.synthetic.scenes import distinct_scenes
from service.models import Generation, ImageSpec, Kind, Sampling
from service.storage import Store, open_store

_MAX_FINDINGS = 20  # findings listed per problem; the others are only counted
_MIN_FREE_BYTES = 1 << 30
_MIN_OPEN_FILES = 1024
_TRIES = 3

ProgressCallback = Callable[[str], None]
"""Progress callback: receives the name of the check that starts."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check.

    `message` is what was found; `fix` is what to do, empty if there is nothing to do.
    """

    check: str
    state: Literal["ok", "warning", "problem"]
    message: str
    fix: str = ""


def verify(settings: Settings, *, deep: bool = False, progress: ProgressCallback = lambda _: None) -> list[Finding]:
    """Check the database, and compare the index and the store with it.

    With `deep`, read and hash every stored clip; otherwise compare sizes only. If the database has a problem, the index
    and the store are not checked.
    """
    progress("database")
    found = _check_database(settings)
    if any(one.state == "problem" for one in found):
        return found
    with _open_database(settings) as database:
        progress("index")
        found += _check_index(settings, database)
        progress("store")
        found += _check_store(settings, database, deep=deep)
    return found


def diagnose(settings: Settings, progress: ProgressCallback = lambda _: None) -> list[Finding]:
    """Run every check of the library and of the machine, without reading all stored bytes."""
    found = [_check_settings(settings), _check_versions(), _check_open_files()]
    progress("data folder")
    found += _check_folders(settings)
    exists = True
    with suppress(ReelsError):  # `verify` reports the error
        exists = _exists(settings)
    if exists:
        found += verify(settings, progress=progress)
        if not any(one.check == "database" and one.state == "problem" for one in found):
            with _open_database(settings) as database:
                found += _check_queue(database)
    else:
        found.append(Finding("database", "ok", "does not exist yet; the first start creates it"))
    progress("decoder")
    found.append(_check_decoder())
    progress("model")
    found += _check_models(settings)
    return found


def rebuild(settings: Settings) -> int:
    """Rebuild the indexes and their snapshots from the database; return the number of indexed videos.

    Return 0 if nothing was ever embedded. A running service continues to use the index that it has in memory.
    """
    with _open_database(settings) as database:
        generation = _active_generation(database)
        if generation is None:
            return 0
        count = 0
        for kind in indexed_kinds(settings, database, generation):
            synced = rebuild_index(settings, database, generation, kind)
            try:
                if kind != "frame":
                    with synced.current() as (index, _):
                        count = len(index)
            finally:
                synced.close(save=False)
    return count


# --- the library


def _check_database(settings: Settings) -> list[Finding]:
    try:
        if not _exists(settings):
            message = f"{dialects.shown_url(settings.database)} does not exist"
            return [Finding("database", "problem", message, "start `reelsrs serve`, or restore a backup")]
    except ReelsError as error:
        return [Finding("database", "problem", str(error), "check that its server runs and accepts connections")]
    broken = "restore the last backup into an empty folder: `reelsrs restore FILE`"
    try:
        revision, head = db.revision(settings.database), db.newest_revision()
        with _open_database(settings) as database, database.read() as connection:
            sqlite = connection.dialect.name == "sqlite"  # PostgreSQL ensures both by itself
            lines = list(connection.execute(sa.text("PRAGMA quick_check")).scalars()) if sqlite else []
            orphans = connection.execute(sa.text("PRAGMA foreign_key_check")).all() if sqlite else []
    except ReelsError as error:
        return [Finding("database", "problem", str(error), broken)]
    found = [Finding("database", "problem", line, broken) for line in lines[:_MAX_FINDINGS] if line != "ok"]
    found += [
        Finding("database", "problem", f"row {row[1]} of {row[0]} refers to a missing row of {row[2]}", broken)
        for row in orphans[:_MAX_FINDINGS]
    ]
    if revision != head:
        upgrade = "run `reelsrs db upgrade`, or start the service"
        found.append(Finding("database", "problem", f"schema revision {revision}, this version needs {head}", upgrade))
    return found or [Finding("database", "ok", f"no damage found, schema revision {revision}")]


def _check_index(settings: Settings, database: Database) -> list[Finding]:
    generation = _active_generation(database)
    if generation is None:
        return [Finding("index", "ok", "nothing has been embedded yet")]
    found = []
    for kind in indexed_kinds(settings, database, generation):
        name = "index of frames" if kind == "frame" else "index"
        synced = _open_index(settings, database, generation, kind)
        try:
            if synced.snapshot_error:
                again = "run `reelsrs index rebuild`, or restart the service"
                found.append(Finding(name, "problem", f"its snapshot cannot be used: {synced.snapshot_error}", again))
            differences = synced.differences()
            with synced.current() as (index, _):
                summary = f"{len(index)} rows, {index.kind}; vectors, captions and categories match the database"
        except Unavailable as error:
            found.append(Finding(name, "problem", str(error), "check that the vector store runs"))
            continue
        finally:
            synced.close(save=False)
        found += _limited(name, differences, "run `reelsrs index rebuild`") or (
            [] if synced.snapshot_error else [Finding(name, "ok", summary)]
        )
    with database.read() as connection:
        all_vectors, texts = generations.missing(connection, generation.id)
    if all_vectors or texts:
        message = f"{len(all_vectors) + len(texts)} ready videos lack vectors of the active model"
        found.append(Finding("index", "warning", message, "restart the service, which embeds them"))
    return found


def _open_index(settings: Settings, database: Database, generation: Generation, kind: Kind) -> VectorIndex:
    """Open the index as the next start would open it.

    Try several times, because a running service may replace the snapshot while it is read.
    """
    for _ in range(_TRIES - 1):
        synced = open_index(settings, database, generation, kind)
        if not synced.snapshot_error:
            return synced
        synced.close(save=False)
        time.sleep(0.2)
    return open_index(settings, database, generation, kind)


def _check_store(settings: Settings, database: Database, *, deep: bool) -> list[Finding]:
    files = open_store(settings.storage, settings.data_dir)
    with database.read() as connection:
        rows = connection.execute(sa.select(db.videos.c.id, db.videos.c.sha256, db.videos.c.size_bytes)).all()
    wrong, size = [], 0
    for name, sha256, size_bytes in rows:
        size += size_bytes
        problem = _check_clip(files, sha256, size_bytes, deep=deep)
        if problem:
            with database.read() as connection:  # ignore a video that was deleted meanwhile
                if video_rows.video_by_sha256(connection, sha256) is not None:
                    wrong.append(f"video {name}: {problem}")
    marks = set(files.marked())
    if marks:  # marks of uploads and deletions in progress disappear within seconds
        time.sleep(2)
        marks &= set(files.marked())
    found = _limited("store", wrong, "upload the clips again, or restore the last backup")
    messages = [f"clip {sha256[:12]} has a mark of an interrupted upload or deletion" for sha256 in sorted(marks)]
    found += _limited("store", messages, "restart the service, which completes or undoes it")
    checked = "every byte read" if deep else "sizes compared"
    return found or [Finding("store", "ok", f"{len(rows)} clips, {size / 1e6:,.1f} MB, {checked}")]


def _check_clip(files: Store, sha256: str, size_bytes: int, *, deep: bool) -> str:
    try:
        blob = files.video(sha256)
        if blob.size_bytes != size_bytes:
            return f"{blob.size_bytes} bytes are stored, {size_bytes} were uploaded"
        if deep:
            digest = hashlib.sha256()
            for piece in blob.pieces():
                digest.update(piece)
            if digest.hexdigest() != sha256:
                return "the stored bytes are not those that were uploaded"
    except NotFound:
        return "its bytes are not in the store"
    except OSError as error:
        return f"its bytes cannot be read: {error.strerror}"
    except ReelsError as error:  # of a store on a server
        return f"its bytes cannot be read: {error}"
    return ""


def _check_queue(database: Database) -> list[Finding]:
    with database.read() as connection:
        now = db.now(connection)
        waiting = connection.execute(sa.select(sa.func.count()).select_from(db.jobs)).scalar_one()
        stuck = connection.execute(
            sa.select(sa.func.count()).select_from(db.jobs).where(db.jobs.c.lease_expires_at < now)
        ).scalar_one()
        failed = connection.execute(
            sa.select(db.videos.c.error, sa.func.count())
            .where(db.videos.c.status == "failed")
            .group_by(db.videos.c.error)
            .order_by(sa.func.count().desc())
        ).all()
    found = [Finding("queue", "ok", f"{waiting} jobs waiting")]
    if stuck:
        run = "a worker runs them again: check that `reelsrs serve` or `reelsrs worker` runs"
        found.append(Finding("queue", "warning", f"the leases of {stuck} jobs have expired", run))
    again = "`POST /v1/videos/{id}/retry` retries one of them"
    found += [
        Finding("queue", "warning", f"{count} videos failed: {reason}", again)
        for reason, count in failed[:_MAX_FINDINGS]
    ]
    return found


# --- the machine


def _check_settings(settings: Settings) -> Finding:
    return Finding("settings", "ok", f"model {settings.model}, device {settings.device}, data in {settings.data_dir}")


def _check_versions() -> Finding:
    names = ("torch", "open_clip_torch", "faiss-cpu", "av", "fastapi", "sqlalchemy")
    libraries = ", ".join(f"{name} {version(name)}" for name in names)
    return Finding("versions", "ok", f"ReelsRS {__version__}, Python {platform.python_version()}, {libraries}")


def _check_open_files() -> Finding:
    try:
        import resource
    except ImportError:
        return Finding("open files", "ok", "this system does not limit them")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _MIN_OPEN_FILES:
        return Finding("open files", "warning", f"at most {soft}", f"raise the limit: `ulimit -n {_MIN_OPEN_FILES}`")
    return Finding("open files", "ok", f"at most {soft}")


def _check_folders(settings: Settings) -> list[Finding]:
    found = []
    folders = {"data folder": settings.data_dir}
    if "://" not in settings.storage:
        folders["store"] = Path(settings.storage)
    for name, path in folders.items():
        existing = next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
        free = shutil.disk_usage(existing).free
        try:
            with tempfile.TemporaryFile(dir=existing) as file:
                file.write(bytes(1 << 16))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            message = f"{path} cannot be written: {error.strerror}"
            found.append(Finding(name, "problem", message, "free disk space, or allow the service's user to write"))
            continue
        if free < _MIN_FREE_BYTES:
            message = f"{path} has {free / 1e6:,.0f} MB free"
            found.append(Finding(name, "warning", message, "free disk space: uploads fail if the disk is full"))
        else:
            found.append(Finding(name, "ok", f"{path} can be written, {free / 1e9:,.1f} GB free"))
    return found


def _check_decoder() -> Finding:
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        decoder = Decoder(Limits(60, 1 << 20))
        try:
            write_clip(distinct_scenes(1, seed=1)[0], clip, seconds=0.5, fps=8, width=64, height=64)
            sample = decoder.sample(clip, Sampling(2), ImageSpec(32, 32))
        except (ReelsError, OSError) as error:
            return Finding("decoder", "problem", f"cannot decode a test clip: {error}", "reinstall ReelsRS and PyAV")
        finally:
            decoder.close()
    if len(sample.times) != 2:
        return Finding(
            "decoder", "problem", f"decoded {len(sample.times)} of 2 frames of a test clip", "reinstall PyAV"
        )
    if decoder.unsandboxed_reason:
        message = f"decodes a test clip, but without a system call filter: {decoder.unsandboxed_reason}"
        return Finding("decoder", "warning", message, "accept uploads only from people you trust")
    return Finding("decoder", "ok", "decodes a test clip in its sandbox")


def _check_models(settings: Settings) -> list[Finding]:
    """Check the model of the active generation, and the configured model if it differs."""
    active = None
    with suppress(ReelsError):  # `_database` has reported the error already
        if _exists(settings):
            with _open_database(settings) as database:
                active = _active_generation(database)
    if active is None:
        return [_check_model(settings, settings.model, settings.precision, None)]
    found = [_check_model(settings, active.model, active.precision, active)]
    model, precision = settings.requested_model
    if model not in (None, active.model) or precision not in (None, active.precision):
        found.append(_check_model(settings, model or active.model, precision or settings.precision, None))
    return found


def _check_model(settings: Settings, name: str, precision: str, known: Generation | None) -> Finding:
    try:
        model = loading.load(name, device=settings.device, precision=precision, cache_dir=settings.data_dir / "models")
        model.embed_texts(["a word"])
    except ReelsError as error:
        return Finding("model", "problem", str(error), "check `reelsrs config` and the network connection")
    description = f"{name} runs on {model.device} in {model.generation.precision}"
    if known is not None and known.id != model.generation.id:
        message = f"{description}, but its weights are not those that the library was embedded with"
        return Finding("model", "warning", message, "restore those weights, or start the service, which re-embeds")
    return Finding("model", "ok", description)


# --- helpers


def _exists(settings: Settings) -> bool:
    """Return whether the library has a database, without creating one as opening a SQLite file would."""
    url = dialects.parse_url(settings.database)
    if url.get_backend_name() == "sqlite":
        return Path(url.database or "").is_file()
    return db.revision(settings.database) is not None


def _open_database(settings: Settings) -> closing[Database]:
    return closing(Database(settings.database))


def _active_generation(database: Database) -> Generation | None:
    with database.read() as connection:
        return generation_rows.active_generation(connection)


def _limited(check: str, problems: list[str], fix: str) -> list[Finding]:
    found = [Finding(check, "problem", message, fix) for message in problems[:_MAX_FINDINGS]]
    if len(problems) > _MAX_FINDINGS:
        found.append(Finding(check, "problem", f"and {len(problems) - _MAX_FINDINGS} more", fix))
    return found
