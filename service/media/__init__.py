"""Probe clips, sample their frames and take their fingerprints (PyAV). Knows no row and no model.

Clips come from strangers: `Decoder` does all of it in child processes (`process`), which `jail` keeps from everything
but the file that they are handed. Inside them `container` opens it and says what it is, `timeline` finds frames by
their time stamps and decodes no more than it must, `pixels` makes pictures of them, and `sampling` and `fingerprint`
put the three together.
"""

from service.media.container import Limits, probe
from service.media.fingerprint import FINGERPRINT_SIDE, Fingerprint, fingerprint
from service.media.pixels import Pixels, fit
from service.media.process import Decoder
from service.media.sampling import Sample, sample
from service.media.timeline import choose

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
"""File name endings that an import takes for videos. What a file really is, its bytes say."""

__all__ = [
    "FINGERPRINT_SIDE",
    "SUFFIXES",
    "Decoder",
    "Fingerprint",
    "Limits",
    "Pixels",
    "Sample",
    "choose",
    "fingerprint",
    "fit",
    "probe",
    "sample",
]
