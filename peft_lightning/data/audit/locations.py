"""The locations of a million records in little memory: a number for each, and a few texts."""

import re

import numpy as np
from numpy.typing import NDArray

_NUMBER = re.compile(r"(\d{1,18})(?=\D*\Z)")


class Locations:
    """Locations such as "data/train.jsonl:17", in order."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, str], int] = {}
        self._rows: list[tuple[int, int]] = []
        self._packed: list[NDArray[np.int64]] = []
        self._before = 0

    def extend(self, locations: list[str]) -> None:
        """Add ``locations``."""
        rows = np.empty((len(locations), 2), dtype=np.int64)
        for i, location in enumerate(locations):
            start, number, end = location, "-1", ""
            if match := _NUMBER.search(location):
                start, number, end = (
                    location[: match.start()],
                    match.group(),
                    location[match.end() :],
                )
            if number != str(int(number)):  # leading zeros
                start, number, end = location, "-1", ""
            part = self._parts.setdefault((start, end), len(self._parts))
            rows[i] = part, int(number)
        self._packed.append(rows)

    def __len__(self) -> int:
        return sum(map(len, self._packed))

    def __getitem__(self, index: int) -> str:
        """Return the location with this index."""
        if len(self._packed) > 1:
            self._packed = [np.concatenate(self._packed)]
        part, number = self._packed[0][index].tolist()
        start, end = list(self._parts)[part]
        return f"{start}{number if number >= 0 else ''}{end}"
