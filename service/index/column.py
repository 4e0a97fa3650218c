"""Array that grows at its end."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

_Number = TypeVar("_Number", bound=np.generic)


class Column(Generic[_Number]):
    """Array that grows at its end."""

    def __init__(self, kind: type[_Number]) -> None:
        self._data = np.zeros(1024, dtype=kind)
        self._count = 0

    @property
    def values(self) -> npt.NDArray[_Number]:
        """View of the values, (N,). Writing to the view changes the column."""
        return self._data[: self._count]

    def extend(self, more: npt.ArrayLike) -> None:
        """Append values."""
        new = np.asarray(more, dtype=self._data.dtype)
        needed = self._count + len(new)
        if needed > len(self._data):
            larger = np.zeros(max(needed, len(self._data) * 5 // 4), dtype=self._data.dtype)
            larger[: self._count] = self.values
            self._data = larger
        self._data[self._count : needed] = new
        self._count = needed
