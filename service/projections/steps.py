"""Report the progress of a fit, and define the errors that end it."""

from __future__ import annotations

from service.projections.fits import Progress


class Cancelled(Exception):
    """The fit was cancelled, or its claim was lost."""


class Lost(Exception):
    """The vectors that a projection was fitted to no longer exist."""


class Steps:
    """Combined progress of the parts of a fit, reported at most a hundred times."""

    def __init__(self, report: Progress) -> None:
        self._report = report
        self._told = 0.0

    def reached(self, done: float) -> None:
        """Report that the share `done` (0 to 1) is reached, unless it has grown by less than 0.01."""
        if done >= self._told + 0.01:
            self._told = done
            self._report(done)

    def part(self, start: float, end: float) -> Progress:
        """Return a progress callback for the part of the fit from `start` to `end` (0 to 1)."""
        return lambda share: self.reached(start + (end - start) * min(max(share, 0.0), 1.0))
