"""Tests that several processes draw the same synthetic scenes."""

from __future__ import annotations

import subprocess
import sys

from tests.support.paths import ROOT


def test_a_frame_is_the_same_in_another_process() -> None:
    code = (
        "import hashlib; from service.media.synthetic.drawing import draw_frame; "
        "from service.media.synthetic.scenes import distinct_scenes; "
        "print([hashlib.sha256(draw_frame(s, 0.4, 64, 48).tobytes()).hexdigest()"
        " for s in distinct_scenes(6, 2)])"
    )
    answers = [
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert len(answers[0]) > 6 * 64
