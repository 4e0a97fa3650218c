"""How fast clips become vectors, and where the time goes.

    python tests/bench/ingest.py FOLDER [--model tiny] [--limit N]

FOLDER is `<category>/<clip>`. Two passes, each over a library of its own: one as the service runs, several decoders
beside the model, for frames per second; one with a single decoder and one clip at a time, where nothing overlaps, for
the shares of decoding, embedding and the rest (copying, hashing, probing, rows, syncs). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service import catalog, jobs
from service.config import Settings
from service.embedder import Embedder
from service.errors import ReelsError
from service.folder import Entry, FolderImport, scan, sidecar
from service.ingest import describe
from service.runtime import Runtime
from service.video import Decoder, Limits


class Stopwatch:
    """Adds up the seconds spent in the functions that it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


def library(folder: Path, model: str, embedder: Embedder | None) -> Runtime:
    """An empty one; the model is loaded once and not timed."""
    runtime = Runtime(Settings(data_dir=folder, model=model))
    if embedder is not None:
        runtime.__dict__["_embedder"] = embedder
    runtime.activate()
    return runtime


def together(runtime: Runtime, entries: list[Entry]) -> dict[str, float]:
    """As `reelsrs embed` does it."""
    started = time.perf_counter()
    done = FolderImport(runtime, runtime.settings.sampling).run(entries)
    seconds = time.perf_counter() - started
    with runtime.db.read() as connection:
        frames = sum(len(video.frame_times) for video in catalog.list_videos(connection, limit=1_000_000))
    return {"clips": done.embedded, "frames": frames, "seconds": seconds}


def one_by_one(runtime: Runtime, entries: list[Entry]) -> dict[str, float]:
    """One clip after the other, in this thread alone."""
    decoding, embedding = Stopwatch(), Stopwatch()
    decoder = Decoder(Limits(runtime.settings.max_duration_seconds, runtime.settings.max_pixels), processes=1)
    runtime.__dict__["decoder"] = decoder
    decoder.sample = decoding.around(decoder.sample)  # type: ignore[method-assign]
    model = runtime.embedder()
    kept = model.embed_pictures, model.embed_texts
    model.embed_pictures = embedding.around(model.embed_pictures)  # type: ignore[method-assign]
    model.embed_texts = embedding.around(model.embed_texts)  # type: ignore[method-assign]
    started = time.perf_counter()
    for entry in entries:
        description = describe(entry.path.name, sampling=runtime.settings.sampling, caption=sidecar(entry.path))
        try:
            with runtime.ingest.receive() as incoming:
                incoming.write(entry.path.read_bytes())
                incoming.finish()
                runtime.ingest.accept(incoming, description)
        except ReelsError:
            continue  # the odd files among the clips
        with runtime.db.write() as connection:
            claims = [jobs.claim(connection, "bench", 1)]
        runtime.ingest.process(lambda: claims.pop() if claims else [], "bench")
    seconds = time.perf_counter() - started
    model.embed_pictures, model.embed_texts = kept  # type: ignore[method-assign]
    return {"seconds": seconds, "decoding": decoding.seconds, "embedding": embedding.seconds}


def main() -> None:
    """Both passes, then one line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--model", default="tiny", help="as REELSRS_MODEL")
    arguments.add_argument("--limit", type=int, help="the first so many clips only")
    given = arguments.parse_args()
    entries = scan(given.folder)[: given.limit]
    with tempfile.TemporaryDirectory() as scratch:
        first = library(Path(scratch) / "together", given.model, None)
        whole = together(first, entries)
        peak, decoder_peak = _peak(), _decoder_peak()
        embedder = first.embedder()
        first.close()
        second = library(Path(scratch) / "alone", given.model, embedder)
        alone = one_by_one(second, entries)
        second.close()
    rest = alone["seconds"] - alone["decoding"] - alone["embedding"]
    print(f"{whole['clips']} clips, {whole['frames']} frames", file=sys.stderr)
    print(
        json.dumps(
            {
                "benchmark": "ingest",
                "model": given.model,
                "device": embedder.device,
                "cores": os.cpu_count(),
                "clips": whole["clips"],
                "frames": whole["frames"],
                "frames_per_second": round(whole["frames"] / whole["seconds"], 1),
                "frames_per_second_one_by_one": round(whole["frames"] / alone["seconds"], 1),
                "share_decoding": round(alone["decoding"] / alone["seconds"], 3),
                "share_embedding": round(alone["embedding"] / alone["seconds"], 3),
                "share_rest": round(rest / alone["seconds"], 3),
                "peak_memory_mib": round(peak, 1),
                "peak_memory_of_a_decoder_mib": decoder_peak,
            }
        )
    )


def _peak() -> float:
    """This process's, MiB: ru_maxrss is KiB on Linux, bytes on macOS."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _decoder_peak() -> float | None:
    """The largest decoding process's, MiB, where the system tells. (Not by getrusage: what it says of a child
    begins with the size of the parent that it was forked from.)"""
    found = []
    for child in multiprocessing.active_children():
        status = Path(f"/proc/{child.pid}/status")
        if child.name == "reelsrs-decoder" and status.exists():
            found += [
                int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM")
            ]
    return round(max(found), 1) if found else None


if __name__ == "__main__":
    main()
