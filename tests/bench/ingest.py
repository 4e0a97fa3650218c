"""Benchmark ingestion: this project, its parts alone, and two other methods on a folder of clips, in one run.

    python tests/bench/ingest.py FOLDER [--model ViT-B-32] [--precision float32 int8] [--limit N]
    python tests/bench/ingest.py FOLDER --memory

FOLDER is `<category>/<clip>`. The model is `tiny`, or an open_clip architecture with random weights, which take as long
as trained weights. All methods decode and embed ten frames per clip from the same files, on all cores:

    ours            as `reelsrs embed`: copy, probe, decode, embed frames and captions, rows, syncs, thumbnails
    decoding        our sampler alone, with as many processes as the service has
    forward         the model alone, over all those frames and captions at the best batch size
    seed            the scripts that this project started from, after their description: OpenCV reads every frame, PIL
                    preprocesses, and the model embeds one frame at a time in single precision
    clip_video_encode   the method of that tool, after its description: OpenCV reads a hundred videos in one thread per
                    core and resizes the requested frames, then the model embeds their frames in batches

The last line is JSON; `frames_per_second` counts from files to vectors. With --memory, measure instead the peak memory
of the process and of its largest decoder: for 1 and 1,000 clips, and for clips of 10 s and 1 h (model `tiny`).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np

from service.bootstrap import Runtime
from service.config import Settings
from service.embedding.encoder import BATCH, Encoder
from service.errors import ReelsError
from service.media import Sample
from service.operations.folder_import import FolderImport
from service.operations.folder_scan import Entry, scan
from service.operations.sidecars import read_sidecar

CORES = os.cpu_count() or 1


def model_folder(name: str, scratch: Path) -> str:
    """Save a checkpoint of this architecture with random weights; return its REELSRS_MODEL value."""
    if name == "tiny":
        return name
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    folder = scratch / name
    folder.mkdir()
    model = open_clip.create_model(name)
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {"mean": None, "std": None}}
    config["preprocess_cfg"] = {key: model.visual.preprocess_cfg[key] for key in ("mean", "std", "interpolation")}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return f"local-dir:{folder}"


def library(folder: Path, model: str, precision: str) -> Runtime:
    """Open an empty library, load its model and start its decoders, before any timing."""
    runtime = Runtime(Settings(data_dir=folder, model=model, precision=precision))  # type: ignore[arg-type]
    runtime.initialise()
    return runtime


def ours(runtime: Runtime, entries: list[Entry]) -> tuple[float, int]:
    """Return the seconds of the import, and the number of embedded clips."""
    started = time.perf_counter()
    done = FolderImport(runtime, runtime.settings.sampling).run(entries)
    return time.perf_counter() - started, done.embedded


def decoding(runtime: Runtime, entries: list[Entry]) -> tuple[float, list[Sample]]:
    """Return the seconds of decoding, and the samples."""

    def one(entry: Entry) -> Sample | None:
        try:
            return runtime.decoder.sample(entry.path, runtime.settings.sampling, runtime.serving.encoder().image_spec)
        except ReelsError:
            return None

    started = time.perf_counter()
    with ThreadPoolExecutor(runtime.decoder.processes) as pool:
        found = list(pool.map(one, entries))
    return time.perf_counter() - started, [one for one in found if one is not None]


def forward(embedder: Encoder, samples: list[Sample], captions: list[str]) -> float:
    """Return the seconds to embed all frames in one call, then all captions."""
    pixels = np.concatenate([sample.pixels for sample in samples])
    started = time.perf_counter()
    embedder.embed_images(pixels)
    if captions:
        embedder.embed_texts(captions)
    return time.perf_counter() - started


def frames_by_opencv(path: Path) -> list[Any]:
    """Read every frame to the end with OpenCV; return ten evenly spaced frames as RGB."""
    import cv2

    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    count = max(1, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
    wanted = {int((place + 0.5) * count / 10) for place in range(10)}
    found, number = [], 0
    while True:
        more, frame = video.read()
        if not more:
            break
        if number in wanted:
            found.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        number += 1
    video.release()
    return found


def seeds_way(clip: Any, entries: list[Entry]) -> tuple[float, int]:
    """Return seconds and frames of the seed method: one clip and one frame at a time."""
    import torch
    from PIL import Image

    model, preprocess, tokenizer = clip
    started, frames = time.perf_counter(), 0
    with torch.no_grad():
        for entry in entries:
            for frame in frames_by_opencv(entry.path):
                model.encode_image(preprocess(Image.fromarray(frame))[None], normalize=True).numpy()
                frames += 1
            if caption := read_sidecar(entry.path).caption:
                model.encode_text(tokenizer([caption]), normalize=True).numpy()
    return time.perf_counter() - started, frames


def clip_video_encodes_way(clip: Any, entries: list[Entry]) -> tuple[float, int]:
    """Return seconds and frames of clip-video-encode's method: read a hundred videos, then embed them."""
    import torch
    from PIL import Image

    model, preprocess, tokenizer = clip
    started, frames = time.perf_counter(), 0
    with torch.no_grad(), ThreadPoolExecutor(CORES) as readers:
        for first in range(0, len(entries), 100):
            hundred = entries[first : first + 100]

            def read(entry: Entry) -> list[torch.Tensor]:
                return [preprocess(Image.fromarray(frame)) for frame in frames_by_opencv(entry.path)]

            pictures = [one for clips in readers.map(read, hundred) for one in clips]
            for start in range(0, len(pictures), BATCH):
                model.encode_image(torch.stack(pictures[start : start + BATCH]), normalize=True).numpy()
            captions = [caption for entry in hundred if (caption := read_sidecar(entry.path).caption)]
            if captions:
                model.encode_text(tokenizer(captions), normalize=True).numpy()
            frames += len(pictures)
    return time.perf_counter() - started, frames


def speed(given: argparse.Namespace, entries: list[Entry], scratch: Path) -> dict[str, object]:
    """Measure every method in turn; return the figures."""
    model = model_folder(given.model, scratch)
    captions = [caption for entry in entries if (caption := read_sidecar(entry.path).caption)]
    result: dict[str, object] = {"model": given.model, "clips": 0, "frames": 0}
    for precision in given.precision:
        runtime = library(scratch / precision, model, precision)
        embedder = runtime.serving.encoder(image_tower=True)
        alone, samples = decoding(runtime, entries)
        frames = sum(len(sample.times) for sample in samples)
        model_alone = forward(embedder, samples, captions)
        del samples
        whole, clips = ours(runtime, entries)
        runtime.close()
        result |= {"clips": clips, "frames": frames, "device": embedder.device}
        result[precision] = {
            "seconds": round(whole, 2),
            "seconds_decoding_alone": round(alone, 2),
            "seconds_forward_alone": round(model_alone, 2),
            "to_the_sum_of_both": round(whole / (alone + model_alone), 3),
            "frames_per_second": round(frames / whole, 1),
            "frames_per_second_forward": round(frames / model_alone, 1),
        }
        print(precision, result[precision], file=sys.stderr)
    if not given.ours_only:
        import open_clip

        name = model if model != "tiny" else f"local-dir:{Path(sys.modules['service'].__path__[0]) / 'tiny'}"
        network, _, preprocess = open_clip.create_model_and_transforms(name)
        clip = (network.eval(), preprocess, open_clip.get_tokenizer(name))
        for label, way in (("seed", seeds_way), ("clip_video_encode", clip_video_encodes_way)):
            seconds, frames = way(clip, entries)
            result[label] = {"seconds": round(seconds, 2), "frames_per_second": round(frames / seconds, 1)}
            print(label, result[label], file=sys.stderr)
        for precision in given.precision:
            mine = result[precision]["frames_per_second"]  # type: ignore[index]
            result[f"{precision}_to_seed"] = round(mine / result["seed"]["frames_per_second"], 2)  # type: ignore[index]
            result[f"{precision}_to_clip_video_encode"] = round(
                mine / result["clip_video_encode"]["frames_per_second"],  # type: ignore[index]
                2,
            )
    if {"float32", "int8"} <= set(given.precision):
        result["int8_forward_to_float32_forward"] = round(
            result["int8"]["frames_per_second_forward"] / result["float32"]["frames_per_second_forward"],  # type: ignore[index]
            2,
        )
    return result


# --- memory


def imported(entries: list[Entry], folder: Path) -> None:
    """Import the entries in a new process, and print the peak memory in MiB."""
    runtime = library(folder, "tiny", "float32")
    peaks: dict[int, float] = {}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            for child in multiprocessing.active_children():
                if child.name == "reelsrs-decoder" and child.pid:
                    peaks[child.pid] = max(peaks.get(child.pid, 0), peak(child.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    ours(runtime, entries)
    stop.set()
    watcher.join()
    print(json.dumps({"process": peak(os.getpid()), "decoder": max(peaks.values())}))
    runtime.close()


def peak(pid: int) -> float:
    """Return the peak resident memory of a process in MiB. (getrusage counts the parent's memory for a child.)"""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def memory(given: argparse.Namespace, entries: list[Entry], scratch: Path) -> dict[str, object]:
    """Measure peak memory for 1 and many clips, and for clips of 10 seconds and of an hour."""
    source = entries[0].path

    def measured(name: str, fill: Callable[[Path], None]) -> dict[str, float]:
        folder = scratch / name / "clips" / "all"
        folder.mkdir(parents=True)
        fill(folder)
        command = [sys.executable, __file__, str(folder.parent), "--imported", str(scratch / name / "data")]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, check=True, env={**os.environ, "REELSRS_NUM_FRAMES": "10"}
        )
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        print(name, found, file=sys.stderr)
        return found

    def copies(count: int) -> Callable[[Path], None]:
        def fill(folder: Path) -> None:
            for number in range(count):  # an empty box with a number after the clip: different bytes, same frames
                box = b"\x00\x00\x00\x10free" + number.to_bytes(8, "big")
                (folder / f"{number:04d}.mp4").write_bytes(source.read_bytes() + box)

        return fill

    def lasting(seconds: int) -> Callable[[Path], None]:
        return lambda folder: strung(source, folder / "one.mp4", seconds)

    one, thousand = measured("one", copies(1)), measured("thousand", copies(given.thousand))
    short, hour = measured("short", lasting(10)), measured("hour", lasting(3600))
    return {
        "peak_mib": {"one clip": one, f"{given.thousand} clips": thousand, "10 s": short, "1 h": hour},
        "many_to_one": {part: round(thousand[part] / one[part], 3) for part in one},
        "hour_to_ten_seconds": {part: round(hour[part] / short[part], 3) for part in one},
    }


def strung(source: Path, target: Path, seconds: int) -> None:
    """Repeat a clip without encoding it again, up to `seconds`."""
    with av.open(str(target), "w") as out:
        stream, offset = None, 0
        while True:
            with av.open(str(source)) as inside:
                origin = inside.streams.video[0]
                stream = stream or out.add_stream_from_template(origin)
                length = 0
                for packet in inside.demux(origin):
                    if packet.dts is None:
                        continue
                    length = max(length, packet.pts + packet.duration)
                    packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, stream
                    if packet.pts * origin.time_base > seconds - 0.1:
                        return
                    out.mux(packet)
                offset += length


def main() -> None:
    """Measure speed or memory, and print one JSON line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--model", default="ViT-B-32", help="an architecture of open_clip, or tiny")
    arguments.add_argument("--precision", nargs="+", default=["float32"], help="as REELSRS_PRECISION")
    arguments.add_argument("--limit", type=int, help="the first so many clips only")
    arguments.add_argument("--ours-only", action="store_true", help="leave the other ways out")
    arguments.add_argument("--memory", action="store_true")
    arguments.add_argument("--thousand", type=int, default=1000, help="with --memory: how many are many")
    arguments.add_argument("--imported", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    av.logging.set_level(None)
    entries = scan(given.folder)[: given.limit]
    if given.imported:
        imported(entries, given.imported)
        return
    with tempfile.TemporaryDirectory() as scratch:
        measure = memory if given.memory else speed
        found = measure(given, entries, Path(scratch))
    print(json.dumps({"benchmark": "memory" if given.memory else "ingest", "cores": CORES, **found}))


if __name__ == "__main__":
    main()
