"""What passes between a program and its tests, each in a sandbox of its own; never imported by the trainer.

The program's process never holds the tests. It is asked for what they name, one request at a time, such as a call: the
inputs go to it as data, the output comes back as data, and the tests compare what they got in their own process. An
object that is no data stays where it is, and the other side gets a number for it.

The messages are lines of JSON: ["ask", operation, arguments, named], ["value", value, changed, printed], ["raise",
class, arguments] and, for a function of the tests that the program calls, ["call", number, arguments, named].
"""

import builtins
import ctypes
import importlib
import itertools
import json
import operator
import os
import resource

LARGEST = 2**63  # of an integer that is written in decimal, which takes quadratic time

SEQUENCES = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}

MUTABLE = (list, dict, set, bytearray)

MADE = {  # of what arguments a value of the standard library is made again
    "builtins.bytes": lambda v: [list(v)],
    "builtins.bytearray": lambda v: [list(v)],
    "builtins.complex": lambda v: [v.real, v.imag],
    "builtins.range": lambda v: [v.start, v.stop, v.step],
    "builtins.slice": lambda v: [v.start, v.stop, v.step],
    "collections.deque": lambda v: [list(v), v.maxlen],
    "datetime.date": lambda v: [v.year, v.month, v.day],
    "datetime.datetime": lambda v: [v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond],
    "datetime.time": lambda v: [v.hour, v.minute, v.second, v.microsecond],
    "datetime.timedelta": lambda v: [v.days, v.seconds, v.microseconds],
    "decimal.Decimal": lambda v: [str(v)],
    "fractions.Fraction": lambda v: [v.numerator, v.denominator],
}

OF_ONE = ("getitem", "setitem", "delitem", "neg", "abs")  # operations of the module `operator`

OF_TWO = (
    *("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"),
    *("and", "or", "xor"),
)

OF_BUILTINS = ("len", "iter", "bool", "str", "repr", "hash", "int", "float", "round")

OPERATIONS = {
    **{name: getattr(operator, f"__{name}__") for name in (*OF_ONE, *OF_TWO)},
    **{name: getattr(builtins, name) for name in (*OF_BUILTINS, "getattr", "setattr")},
    "next": lambda iterator: list(itertools.islice(iterator, 1)),
    "instancecheck": lambda kind, value: isinstance(value, kind),
    "call": lambda function, *args, **named: function(*args, **named),
}

ENDS = (StopIteration, StopAsyncIteration)

REMOUNT = 32 | 2 | 4  # MS_REMOUNT | MS_NOSUID | MS_NODEV


class Broken(Exception):
    """The other side ended, or sent what is no message."""


class Peer:
    """One side of the channel. Values travel as JSON; what is no data is `foreign` to the other side."""

    def __init__(self, channel):
        self.channel, self.reader = channel, channel.makefile("rb")

    def send(self, *message):
        self.channel.sendall(json.dumps(message).encode() + b"\n")

    def receive(self):
        try:
            line = self.reader.readline()
            message = json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError, RecursionError) as error:
            raise Broken from error
        if not isinstance(message, list) or not message:
            raise Broken
        return message

    def encode(self, value, kept=False):
        """Data of a value; `kept` where it stays an object although it could be data."""
        kind = type(value)
        if value is None or kind in (bool, float, str):
            return value
        if kept:
            return self.foreign(value)
        if isinstance(value, int):
            number = int.__int__(value)
            return number if -LARGEST < number < LARGEST else ["int", hex(number)]
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, str):
            return str.__str__(value)
        for tag, base in SEQUENCES.items():
            if isinstance(value, base):
                return [tag, [self.encode(item) for item in base.__iter__(value)]]
        if isinstance(value, dict):
            return ["dict", [[self.encode(key), self.encode(item)] for key, item in dict.items(value)]]
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name in MADE and getattr(value, "tzinfo", None) is None:
            return ["made", name, [self.encode(part) for part in MADE[name](value)]]
        if kind is type and value.__module__ == "builtins" and getattr(builtins, value.__name__, None) is value:
            return ["builtin", value.__name__]
        return self.foreign(value)

    def decode(self, data):
        """The value of data. Raises `Broken` for what is none."""
        if data is None or isinstance(data, bool | int | float | str):
            return data
        try:
            tag, *rest = data
            if tag in SEQUENCES:
                return SEQUENCES[tag](map(self.decode, rest[0]))
            if tag == "dict":
                return {self.decode(key): self.decode(item) for key, item in rest[0]}
            if tag == "int":
                return int(rest[0], 16)
            if tag == "made" and rest[0] in MADE:
                module, name = rest[0].split(".")
                return getattr(importlib.import_module(module), name)(*map(self.decode, rest[1]))
            return self.known(tag, *rest)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise Broken from error

    def outcome(self):
        """Wait for the answer to a request, and answer the other side's meanwhile."""
        while True:
            message = self.receive()
            if message[0] in ("value", "raise"):
                return message
            self.answer(*message)

    def answering(self, act):
        """Send the value and what it changed, as `act` gives them, or the exception that it raises."""
        try:
            text = json.dumps(["value", *act()])
        except Exception as error:
            try:
                text = json.dumps(["raise", self.encode(type(error)), [self.encode(part) for part in error.args]])
            except Exception:
                text = json.dumps(["raise", ["builtin", "RuntimeError"], ["an error that cannot be told"]])
        self.channel.sendall(text.encode() + b"\n")

    def error(self, kind, arguments):
        """The exception that the other side told; none that would end an iteration unseen."""
        kind, arguments = self.decode(kind), [self.decode(part) for part in arguments]
        told = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, ENDS)
        try:
            return (kind if told else RuntimeError)(*arguments)
        except Exception:
            return RuntimeError(*arguments)


def enter(settings):
    """Become nobody, within the limits."""
    nothing = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    if os.getuid() == 0:  # a limit of processes does not hold for root
        libc, most = ctypes.CDLL(None, use_errno=True), b"nr_inodes=%d" % settings["files"]
        if libc.mount(b"tmpfs", b"/tmp", None, REMOUNT, most):
            raise OSError(ctypes.get_errno(), "/tmp cannot be limited")
        os.setgroups([])
        os.setgid(settings["uid"])
        os.setuid(settings["uid"])
    for name, value in settings["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
