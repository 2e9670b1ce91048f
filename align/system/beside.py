"""Do work beside the main thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Beside:
    """One thread for work that the main thread need not wait for, one piece at a time.

    What a piece raises is raised where the main thread hands over the next one or waits, as if it had been done there.
    """

    def __init__(self):
        self._thread = ThreadPoolExecutor(1, "beside")  # the interpreter waits for it before it ends
        self._last: Future | None = None

    def do(self, work: Callable[[], None]) -> None:
        """Hand over a piece of work, once the one before it is done: two at once would hold twice the memory."""
        self.wait()
        self._last = self._thread.submit(work)

    def wait(self) -> None:
        """Wait until everything is done."""
        last, self._last = self._last, None
        if last:
            last.result()
