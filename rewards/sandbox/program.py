"""The side of the program, in a sandbox of its own: it holds the program's objects, and never a test."""

import builtins
import contextlib
import io
import json
import os
import socket
import sys
import types

from rewards.sandbox.wire import MUTABLE, OPERATIONS, Peer, enter

LONGEST = 100_000  # characters of what a call prints


class Program(Peer):
    """The program's side: it holds the program's objects, and answers until its process is killed."""

    def __init__(self, channel):
        super().__init__(channel)
        self.objects, self.numbers = [], {}

    def run(self):
        module = types.ModuleType("program")
        sys.modules["program"] = module  # where dataclasses look
        self.names = module.__dict__
        exec(compile(self.receive()[0], "<program>", "exec"), self.names)
        while True:
            self.answer(*self.receive())

    def answer(self, what, operation, arguments, named):
        self.answering(lambda: self.act(operation, arguments, named))

    def act(self, operation, arguments, named):
        """The encoded result of an operation, its mutable arguments where that is None, and what it printed."""
        values, named = [self.decode(part) for part in arguments], {k: self.decode(v) for k, v in named.items()}
        if operation == "name":
            if values[0] not in self.names:
                raise NameError(f"name {values[0]!r} is not defined")
            return self.encode(self.names[values[0]]), None, ""
        with contextlib.redirect_stdout(Printed()) as printed:
            result = OPERATIONS[operation](*values, **named)
        made = operation == "call" and isinstance(values[0], type) and type(result).__module__ == "program"
        given = [value for value in (*values, *named.values()) if isinstance(value, MUTABLE)]
        changed = self.encode(given) if result is None else None
        return self.encode(result, kept=made), changed, printed.getvalue()

    def foreign(self, value):
        if isinstance(value, Theirs):
            return ["yours", value.number]
        number = self.numbers.setdefault(id(value), len(self.objects))
        if number == len(self.objects):
            self.objects.append(value)
        if isinstance(value, type) and issubclass(value, Exception):
            base = next(base for base in value.__mro__[1:] if issubclass(base, Exception))
            return ["error", number, value.__name__, self.encode(base)]
        return ["object", number]

    def known(self, tag, number):
        if tag == "builtin":
            return getattr(builtins, number)
        return self.objects[number] if tag == "yours" else Theirs(self, number)


class Printed(io.StringIO):
    """The beginning of what is printed."""

    def write(self, text):
        return super().write(text) if self.tell() < LONGEST else len(text)


class Theirs:
    """A function of the tests, in the program's process."""

    def __init__(self, peer, number):
        self.peer, self.number = peer, number

    def __call__(self, *args, **named):
        encode = self.peer.encode
        self.peer.send("call", self.number, [encode(arg) for arg in args], {k: encode(v) for k, v in named.items()})
        what, *rest = self.peer.outcome()
        if what == "raise":
            raise self.peer.error(*rest)
        return self.peer.decode(rest[0])


def main(settings):
    """Run the program that comes through standard input, and answer."""
    peer = Program(socket.socket(fileno=os.dup(0)))
    enter(settings)
    peer.send("started")
    peer.run()


if __name__ == "__main__":
    main(json.loads(sys.argv[2]))
