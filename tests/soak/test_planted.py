"""Splice a foreign second into some of a hundred clips: an image of that second finds its clip and its time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from service.bootstrap import Runtime
from service.media.synthetic.drawing import draw_frame
from service.media.synthetic.scenes import Scene, distinct_scenes
from service.models import Sampling, Weights
from service.operations.folder_import import FolderImport
from service.operations.folder_scan import scan
from tests.support.queries import like

RATE = 8
SECONDS = 6
SAMPLED = 12
SIDE = 128


def _splice(path: Path, scene: Scene, odd: Scene | None, at: int) -> None:
    """Encode a clip of `scene` that shows `odd` for the second starting at `at`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "20", "preset": "veryfast"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for number in range(RATE * SECONDS):
            planted = odd is not None and at <= number / RATE < at + 1
            shown = odd if planted and odd is not None else scene
            moment = (number / RATE - at) if planted else number / (RATE * SECONDS)
            frame = av.VideoFrame.from_ndarray(np.asarray(draw_frame(shown, moment, SIDE, SIDE)), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_a_picture_of_a_planted_second_finds_its_clip_and_its_time(
    runtime: Runtime, tmp_path: Path, soak: bool
) -> None:
    count = 100 if soak else 16
    scenes = distinct_scenes(150, seed=31)
    odd = scenes[100:]
    folder = tmp_path / "Data" / "clips"
    folder.mkdir(parents=True)
    places = {}
    for number, scene in enumerate(scenes[:count]):
        planted = odd[number // 2] if number % 2 == 0 else None
        places[number] = 1 + number // 2 % (SECONDS - 2)
        _splice(folder / f"clip{number:03d}.mp4", scene, planted, places[number])
    summary = FolderImport(runtime, Sampling(SAMPLED)).run(scan(tmp_path / "Data"))
    assert summary.embedded == count
    interval = SECONDS / SAMPLED
    found, tried = 0, 0
    for number in range(0, count, 2):
        for moment in (0.25, 0.7):
            # Size, moment of the motion and encoding differ from those of the sampled frames.
            query = tmp_path / "query.jpg"
            Image.fromarray(np.asarray(draw_frame(odd[number // 2], moment, 320, 240))).save(query, quality=85)
            example = runtime.serving.query_encoder.image(query)
            answer = like(runtime.serving.recommender, example, weights=Weights(1, 0), k=1, group_by="moment")
            hit = answer.hits[0]
            start, end = places[number], places[number] + 1
            near = start - interval <= hit.moment.time <= end + interval
            assert hit.moment.start is not None
            assert hit.moment.end is not None
            tried += 1
            found += hit.video.title == f"clip{number:03d}" and near
            if hit.video.title == f"clip{number:03d}" and near:
                assert hit.moment.start >= start - interval - 1e-6, "the moment reaches into what was there before"
                assert hit.moment.end <= end + interval + 1e-6
    assert tried == count
    assert found >= 0.95 * count, f"{found} of {count} planted seconds were found"
