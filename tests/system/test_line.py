"""The trainer's end of a pipe: what is no answer, or none in time, says why."""

import socket
import time

import pytest
from pydantic import TypeAdapter

from align.system import pipe
from align.system.line import Line, Lost

NUMBER = TypeAdapter(float)


@pytest.fixture
def ends():
    """A line, and the socket of the process at its other end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Line(ours, lambda: "it ended"), theirs


def asked(line, theirs, *answers, longest=100, wait_s=1.0):
    """Ask once, where these bytes are the answers, and receive one."""
    line.send(b"what?", 1.0)
    assert pipe.receive(theirs, 1.0)[1] == b"what?"
    for answer in answers:
        theirs.sendall(answer)
    return line.receive(NUMBER, time.monotonic() + wait_s, longest, "too late")


def answer(number, body):
    return pipe.HEAD.pack(number, len(body)) + body


def test_requests_are_numbered_and_answered(ends):
    assert [asked(*ends, answer(n, b"%d.5" % n)) for n in (1, 2)] == [1.5, 2.5]


@pytest.mark.parametrize(
    "sent, why",
    [
        (b"", "too late"),
        (answer(2, b"1.5"), "its process answered call 2, and call 1 was asked"),
        (answer(1, b"'1.5'"), "its process sent something else than an answer"),
        (answer(1, b'"1.5"'), "its process sent something else than an answer"),
        (answer(1, b"1" * 101), "its process sent no answer: a message of 101 bytes, where at most 100 can come"),
    ],
)
def test_what_is_no_answer(ends, sent, why):
    with pytest.raises(Lost) as caught:
        asked(*ends, sent, wait_s=0.05)
    assert str(caught.value) == why


def test_a_process_that_is_gone(ends):
    line, theirs = ends
    line.send(b"what?", 1.0)
    theirs.close()
    with pytest.raises(Lost, match="it ended"):
        line.receive(NUMBER, time.monotonic() + 1, 100, "too late")
    with pytest.raises(Lost, match="it ended"):
        line.send(b"what?", 1.0)


def test_a_process_that_does_not_read(ends):
    with pytest.raises(Lost, match=r"its process did not read the call within 0\.1 s"):
        ends[0].send(b"x" * 10**7, 0.1)
