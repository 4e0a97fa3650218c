"""Upload damaged clips: no crash, no 5xx, each ready or failed with a reason, memory bounded.

Forty by default, 2,000 with `--soak`; each mutation depends only on its number. The clips are the shared real clips if
available, otherwise drawn ones.
"""

from __future__ import annotations

import random
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.support.paths import SHARED_CLIPS
from tests.support.processes import family
from tests.support.server import serving
from tests.support.wait import until

_LARGEST = 3 << 20  # bytes; larger clips only take longer


def _bits(data: bytes, rng: random.Random, _: bytes) -> bytes:
    """Flip a few bits at random places."""
    out = bytearray(data)
    for _number in range(2 ** rng.randrange(10)):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _cut(data: bytes, rng: random.Random, _: bytes) -> bytes:
    """Remove the end, or a piece of the middle."""
    first = rng.randrange(len(data))
    return data[:first] if rng.random() < 0.5 else data[:first] + data[rng.randrange(first, len(data)) :]


def _splice(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """Join the beginning of one clip and the end of another, or overwrite a piece with one of the other."""
    place, start = rng.randrange(len(data)), rng.randrange(len(other))
    if rng.random() < 0.5:
        return data[:place] + other[start:]
    piece = other[start : start + rng.randrange(1, 65_536)]
    return data[:place] + piece + data[place + len(piece) :]


def _boxes(data: bytes, rng: random.Random, _: bytes) -> bytes:
    """Shuffle, duplicate or remove boxes of the outermost level, or blocks if the file is no MP4."""
    parts, place = [], 0
    while place + 8 <= len(data):
        size, kind = struct.unpack(">I4s", data[place : place + 8])
        if size < 8 or place + size > len(data) or not kind.isalnum():
            break
        parts.append(data[place : place + size])
        place += size
    if len(parts) < 2:
        step = max(1, len(data) // 8)
        parts = [data[start : start + step] for start in range(0, len(data), step)]
    how = rng.randrange(3)
    if how == 0:
        rng.shuffle(parts)
    elif how == 1:
        parts.insert(rng.randrange(len(parts)), rng.choice(parts))
    else:
        parts.pop(rng.randrange(len(parts)))
    return b"".join(parts)


def _header(data: bytes, rng: random.Random, _: bytes) -> bytes:
    """Overwrite numbers in the clip's header (sizes, counts, times) with extreme values."""
    out = bytearray(data)
    place = max(data.find(b"moov"), 0)
    for _number in range(rng.randrange(1, 12)):
        start = min(place + rng.randrange(4096), len(out) - 4)
        out[start : start + 4] = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", rng.randbytes(4)])
    return bytes(out)


MUTATIONS: list[Callable[[bytes, random.Random, bytes], bytes]] = [_bits, _cut, _splice, _boxes, _header]


def test_damaged_clips_end_ready_or_failed_with_a_reason(drawn: Path, tmp_path: Path, soak: bool) -> None:
    folder = SHARED_CLIPS if SHARED_CLIPS.is_dir() else drawn
    clips = [path.read_bytes() for path in sorted(folder.glob("*/*.*")) if path.suffix not in (".txt", ".tsv")]
    clips = [data for data in clips if 100 < len(data) <= (_LARGEST if soak else _LARGEST // 8)]
    assert len(clips) >= 12
    ends: Counter[str] = Counter()
    sent: list[str] = []
    with serving(tmp_path / "data") as server, server.client() as client:
        for number in range(2000 if soak else 40):
            rng = random.Random(number)
            mutate = MUTATIONS[number % len(MUTATIONS)]
            damaged = mutate(rng.choice(clips), rng, rng.choice(clips))
            answer = client.post("/v1/videos", files={"file": (f"{number}.mp4", damaged)})
            assert answer.status_code in (200, 201, 202, 415, 422), f"{number}: {answer.status_code} {answer.text}"
            assert server.process.poll() is None
            if answer.is_success:
                sent.append(answer.json()["id"])
            else:
                assert answer.json()["detail"], number
                ends[f"refused {answer.status_code}"] += 1
        deadline = time.monotonic() + 60 + 2 * len(sent)
        for name in sent:
            left = max(1.0, deadline - time.monotonic())
            address = f"/v1/videos/{name}"
            video = until(lambda address=address: _ended(client.get(address).json()), left, name, every=0.1)
            assert video["status"] == "ready" or video["error"], video
            ends[str(video["status"])] += 1
        assert client.get("/readyz").status_code == 200
        peak = _peak_mib(server.process.pid)
    print(f"{dict(ends)}, peak of any process {peak:.0f} MiB")
    assert ends["ready"] > 0  # not all mutations are so coarse that every clip is rejected
    assert ends["refused 415"] > 0
    assert peak < 4096


def _ended(video: dict[str, object]) -> dict[str, object] | None:
    return video if video["status"] in ("ready", "failed") else None


def _peak_mib(pid: int) -> float:
    """Return the peak memory of the service or one of its processes in MiB; 0 without /proc."""
    peaks = [0.0]
    for member in family(pid):
        try:
            status = Path(f"/proc/{member}/status").read_text().splitlines()
        except OSError:
            continue
        peaks += [int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM")]
    return max(peaks)
