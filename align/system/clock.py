"""Measure the seconds of a step's phases."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Adds up the seconds of each phase: `with clock("update"): ...`."""

    def __init__(self):
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """{`seconds/PHASE`: seconds so far}, as metrics name them."""
        return {f"seconds/{phase}": seconds for phase, seconds in self._seconds.items()}
