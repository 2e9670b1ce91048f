"""The trainer's end of a pipe to a process of user code: numbered requests, and answers that are data, each in time."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter, ValidationError

from align.system.pipe import receive, send


class Lost(Exception):
    """The process is of no use any more; its message says why."""


class Line:
    """Asks one process, one request at a time.

    `ended` says how the process ended; it is called where the other side reads and sends no more.
    """

    def __init__(self, pipe: socket.socket, ended: Callable[[], str]):
        self.pipe, self._ended = pipe, ended
        self._number = 0  # of the newest request

    def send(self, message: bytes, seconds: float) -> None:
        """Send a request. Raises `Lost` where the process does not read it within `seconds`."""
        self._number += 1
        try:
            send(self.pipe, self._number, message, seconds)
        except TimeoutError as error:
            raise Lost(f"its process did not read the call within {seconds:g} s") from error
        except OSError as error:
            raise Lost(self._ended()) from error

    def receive(self, kind: TypeAdapter, until: float, longest: int, late: str) -> Any:
        """The answer to the newest request, in JSON, of at most `longest` bytes.

        Raises `Lost` where it does not begin by `until`, of `time.monotonic`, for the reason `late`, or is no answer.
        """
        try:
            number, body = receive(self.pipe, max(0.0, until - time.monotonic()), longest)
            if number == self._number:
                return kind.validate_json(body, strict=True)
            why = f"its process answered call {number}, and call {self._number} was asked"
        except TimeoutError:
            why = late
        except (EOFError, OSError):
            why = self._ended()
        except ValidationError:
            why = "its process sent something else than an answer"
        except ValueError as error:
            why = f"its process sent no answer: {error}"
        raise Lost(why)
