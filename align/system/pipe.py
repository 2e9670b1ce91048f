"""Messages between the trainer and a process of user code: a number, a length, then bytes; each has a deadline."""

from __future__ import annotations

import socket
import struct
import time

HEAD = struct.Struct("!QQ")  # number of the request, length of the body in bytes

TRANSFER_S = 30.0  # for one message to pass, once it began

PART = 2**20  # bytes that are read at once


def send(pipe: socket.socket, number: int, body: bytes, seconds: float | None = None) -> None:
    """Send a whole message. Raises `OSError`, `TimeoutError` where the other side does not read it within `seconds`."""
    end = _end(seconds)
    for part in (HEAD.pack(number, len(body)), body):
        pipe.settimeout(_left(end))
        pipe.sendall(part)


def receive(pipe: socket.socket, seconds: float | None = None, longest: int | None = None) -> tuple[int, bytes]:
    """(number, body) of the next message, which must begin within `seconds` and then pass within `TRANSFER_S`.

    Raises `OSError`, `TimeoutError` where it does not begin, `EOFError` where the other side is gone, and `ValueError`
    for a body of more than `longest` bytes and for one that stops in its middle.
    """
    pipe.settimeout(_left(_end(seconds)))
    begun = _part(pipe, HEAD.size)
    end = _end(None if seconds is None else TRANSFER_S)
    try:
        number, length = HEAD.unpack(begun + _rest(pipe, HEAD.size - len(begun), end))
        if longest is not None and length > longest:
            raise ValueError(f"a message of {length} bytes, where at most {longest} can come")
        return number, _rest(pipe, length, end)
    except TimeoutError as error:
        raise ValueError(f"a message that stopped in its middle for {TRANSFER_S:g} s") from error


def _rest(pipe: socket.socket, length: int, end: float | None) -> bytes:
    """Read so many bytes."""
    out = bytearray()
    while len(out) < length:
        pipe.settimeout(_left(end))
        out += _part(pipe, length - len(out))
    return bytes(out)


def _part(pipe: socket.socket, most: int) -> bytes:
    """Read what there is. Raises `EOFError` where the other side is gone."""
    part = pipe.recv(min(most, PART))
    if not part:
        raise EOFError("the pipe was closed")
    return part


def _end(seconds: float | None) -> float | None:
    return None if seconds is None else time.monotonic() + seconds


def _left(end: float | None) -> float | None:
    """Seconds until then; what has come already is still read after it."""
    return None if end is None else max(0.001, end - time.monotonic())
