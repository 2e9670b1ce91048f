"""Rewards that attack the trainer through their process: what each does, and how the call must end.

`ATTACKS` is {function: pattern of the reason for which its first call fails; None where it must be answered}.
"""

import ctypes
import gc
import os
import pickle
import signal
import socket
import struct
import sys
import time

HEAD = struct.Struct("!QQ")


def pipe():
    """The socket to the trainer, which nothing hides from user code."""
    return next(o for o in gc.get_objects() if isinstance(o, socket.socket) and o.fileno() >= 0)


def number():
    """That of the request which is being answered."""
    frame = sys._getframe()
    while "number" not in frame.f_locals:
        frame = frame.f_back
    return frame.f_locals["number"]


class Evil:
    def __reduce__(self):
        return os.system, (f"touch {os.environ['EVIL']}",)


def answer(body, length=None, of=None):
    """Send an answer to a request by hand, of another length than it has or to another request where asked."""
    pipe().sendall(HEAD.pack(number() if of is None else of, len(body) if length is None else length) + body)


def forks(completions, **columns):
    os.fork()  # both come back
    return [float(len(text)) for text in completions]


def forks_in_c(completions, **columns):
    ctypes.CDLL(None).fork()
    return [float(len(text)) for text in completions]


def forks_and_leaves(completions, **columns):
    """The copy holds the pipe open as long as it lives, so the trainer would not see that this process is gone."""
    if os.fork():
        os._exit(7)
    time.sleep(30)


def copy_exits(completions, **columns):
    if not os.fork():
        sys.exit(0)
    return [float(len(text)) for text in completions]


def threads(completions, **columns):
    """Answers the next request too, before it is asked."""
    answer(b"[9.0]", of=number() + 1)
    return [float(len(text)) for text in completions]


def sends_a_pickle(completions, **columns):
    answer(pickle.dumps(Evil()))
    return [0.0] * len(completions)


def sends_noise(completions, **columns):
    pipe().sendall(os.urandom(4096))
    return [0.0] * len(completions)


def sends_endlessly(completions, **columns):
    answer(b"[" * 10**6, length=2**62)
    return [0.0] * len(completions)


def sends_half(completions, **columns):
    answer(b"[1.0", length=10)
    time.sleep(1000)


def sends_drops(completions, **columns):
    """A byte now and then: each part is on time, the message is not."""
    answer(b"", length=1000)
    while True:
        pipe().sendall(b" ")
        time.sleep(0.05)


def sends(body):
    def attack(completions, **columns):
        answer(body)
        return [0.0] * len(completions)

    return attack


sends_nan, sends_infinity, sends_too_large = sends(b"[NaN]"), sends(b"[1e999]"), sends(b"[1e39]")
sends_text, sends_true, sends_object = sends(b'["1"]'), sends(b"[true]"), sends(b'[{"value": 1}]')
sends_deep, sends_digits = sends(b"[" * 10**4 + b"]" * 10**4), sends(b"[" + b"9" * 9000 + b"]")
sends_surrogate, sends_bytes = sends(b'[{"why": "\\ud800"}]'), sends(b'[{"why": "\xff"}]')
sends_too_many, sends_nothing = sends(b"[1.0, 1.0]"), sends(b"")


def closes(completions, **columns):
    os.closerange(3, 256)
    time.sleep(1000)


def shuts_down(completions, **columns):
    pipe().shutdown(socket.SHUT_RDWR)
    time.sleep(1000)


def stops_itself(completions, **columns):
    os.kill(os.getpid(), signal.SIGSTOP)


class Rude(Exception):
    def __str__(self):
        raise RuntimeError("no text for you")


def raises_what_has_no_text(completions, **columns):
    raise Rude


class Shy:
    def __repr__(self):
        raise RuntimeError("no text for you")


def returns_what_has_no_text(completions, **columns):
    return [Shy() for _ in completions]


def raises_surrogates(completions, **columns):
    raise ValueError("\ud800 \udfff")


def returns_many_digits(completions, **columns):
    return [10**9000 for _ in completions]


FOREIGN = "sent something else than an answer"


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def cannot_be_shown(completions, **columns):
    raise Unspeakable


ATTACKS = {
    "cannot_be_shown": "Unspeakable, which cannot be shown",
    "forks": None,
    "forks_in_c": None,
    "copy_exits": None,
    "forks_and_leaves": "left with exit code 7",
    "sends_a_pickle": FOREIGN,
    "sends_noise": "sent no answer: a message of|answered call",
    "sends_endlessly": "sent no answer: a message of",
    "sends_half": "stopped in its middle",
    "sends_drops": "stopped in its middle",
    "sends_nan": FOREIGN,
    "sends_infinity": FOREIGN,
    "sends_too_large": FOREIGN,
    "sends_text": FOREIGN,
    "sends_true": FOREIGN,
    "sends_object": FOREIGN,
    "sends_deep": FOREIGN,
    "sends_digits": FOREIGN,
    "sends_surrogate": FOREIGN,
    "sends_bytes": FOREIGN,
    "sends_nothing": FOREIGN,
    "sends_too_many": "sent 2 values for 1 rows",
    "closes": "closed the pipe",
    "shuts_down": "closed the pipe",
    "stops_itself": "took longer than 1 s",
    "raises_what_has_no_text": "left with exit code|Rude",
    "returns_what_has_no_text": "returned .*Shy",
    "raises_surrogates": r"ValueError: \?",
    "returns_many_digits": "returned a value of type int; return a number within float32",
}


held = []


def leaks_memory(completions, **columns):
    held.append(bytearray(100 * 2**20))
    return [1.0] * len(completions)


def leaks_files(completions, **columns):
    held.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(100))
    return [1.0] * len(completions)


def ends(completions, **columns):
    """Ends its process where the text says so."""
    if "end" in completions:
        os._exit(3)
    return [float(os.getpid())] * len(completions)


def takes_its_time(completions, **columns):
    """Half a second a call, which fails where a text says so."""
    time.sleep(0.5)
    if "raises" in completions:
        raise ValueError("no judge")
    return [1.0] * len(completions)


def far_too_large(completions, **columns):
    return [{"huge": 1e39, "most": 1.7e308, "limit": 3.4028234663852886e38}.get(text, 1.0) for text in completions]


def prints(completions, **columns):
    print("printed:", *completions)
    print("to stderr", file=sys.stderr)
    os.system("echo from a program")
    return [1.0] * len(completions)
