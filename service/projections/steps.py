"""How far a layout is, and how it is broken off."""

from __future__ import annotations

from service.projections.fits import Progress


class Cancelled(Exception):
    """The layout is not wanted any more."""


class Lost(Exception):
    """What a map was laid out from is not there any more."""


class Steps:
    """Progress of the parts of a layout as one, told at most a hundred times."""

    def __init__(self, report: Progress) -> None:
        self._report = report
        self._told = 0.0

    def reached(self, done: float) -> None:
        if done >= self._told + 0.01:
            self._told = done
            self._report(done)

    def part(self, start: float, end: float) -> Progress:
        return lambda share: self.reached(start + (end - start) * min(max(share, 0.0), 1.0))
