"""Probe clips, sample their frames and compute their fingerprints (PyAV).

Clips are untrusted uploads. `Decoder` (`process`) does all decoding in child processes (`child`), which `sandbox`
restricts to the one file that they receive. Inside a child, `container` opens and describes the clip, and `streams`
chooses the stream that is read. `timeline` finds frames by their time stamps and decodes as few as possible. `shape`
finds their displayed size, `fields` deinterlaces them, `colours` converts their colours, and `pixels` makes upright
images of them. `sampling` and `fingerprint` combine these parts. `images` reads image files.
"""

from service.media.colours import Pixels
from service.media.container import Limits, probe
from service.media.fingerprint import FINGERPRINT_SIDE, Fingerprint, fingerprint
from service.media.pixels import resize_and_crop
from service.media.process import Decoder
from service.media.sampling import Sample, sample
from service.media.timeline import select_frames

SUFFIXES = frozenset(
    [
        ".3g2",
        ".3gp",
        ".asf",
        ".avi",
        ".flv",
        ".gif",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".ogv",
        ".ts",
        ".webm",
        ".wmv",
    ]
)
"""File name extensions that an import treats as videos. The actual format is detected from the bytes."""

__all__ = [
    "FINGERPRINT_SIDE",
    "SUFFIXES",
    "Decoder",
    "Fingerprint",
    "Limits",
    "Pixels",
    "Sample",
    "fingerprint",
    "probe",
    "resize_and_crop",
    "sample",
    "select_frames",
]
