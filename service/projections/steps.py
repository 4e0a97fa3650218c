"""Report the progress of a fit, and define the errors that end it."""

from __future__ import annotations

from service.projections.fits import ProgressCallback


class Cancelled(Exception):
    """The fit was cancelled, or its claim was lost."""


class FittedVectorsLost(Exception):
    """The vectors that a projection was fitted to no longer exist."""


class ProgressParts:
    """Combined progress of the parts of a fit, reported at most a hundred times."""

    def __init__(self, on_progress: ProgressCallback) -> None:
        self._on_progress = on_progress
        self._reported = 0.0

    def report(self, done: float) -> None:
        """Report that the share `done` (0 to 1) is reached, unless it has grown by less than 0.01."""
        if done >= self._reported + 0.01:
            self._reported = done
            self._on_progress(done)

    def part(self, start: float, end: float) -> ProgressCallback:
        """Return a progress callback for the part of the fit from `start` to `end` (0 to 1)."""
        return lambda share: self.report(start + (end - start) * min(max(share, 0.0), 1.0))
