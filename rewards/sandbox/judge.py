"""The side of the tests, in a sandbox of its own: they run as they stand, and what they take from the program is asked
of its process."""

import ast
import builtins
import importlib
import json
import os
import socket
import sys
import types

from rewards.sandbox.wire import MUTABLE, OF_BUILTINS, OF_ONE, OF_TWO, Broken, Peer, enter


class Remote:
    """An object of the program, in the process of the tests.

    It equals no data, is ordered against none and reckons with none, whatever the program says: only between two of its
    own objects is the program asked.
    """

    def __init__(self, judge, number):
        self.__dict__.update(_judge=judge, _number=number)

    def __getattr__(self, name):
        return self._judge.ask("getattr", self, name)

    def __setattr__(self, name, value):
        self._judge.ask("setattr", self, name, value)

    def __next__(self):
        found = self._judge.ask("next", self)
        if not isinstance(found, list) or not found:
            raise StopIteration
        return found[0]

    def __enter__(self):
        return self.__getattr__("__enter__")()

    def __exit__(self, *_):
        self.__getattr__("__exit__")(None, None, None)  # whatever it returns, a failed assert is not suppressed


def asked(operation):
    return lambda self, *args, **named: self._judge.ask(operation, self, *args, **named)


def asked_of_two(operation):
    def answer(self, other):
        if isinstance(other, Remote):
            return self._judge.ask(operation, self, other)
        if operation in ("eq", "ne"):
            return operation == "ne"
        raise TypeError(f"{operation} of an object of the program's own class and data of the tests")

    return answer


for _name in (*OF_ONE, *OF_BUILTINS, "instancecheck", "call"):
    setattr(Remote, f"__{_name}__", asked(_name))
for _name in OF_TWO:
    setattr(Remote, f"__{_name}__", asked_of_two(_name))


class Judge(Peer):
    """The tests' side: it asks the program, and says whether they pass."""

    def __init__(self, channel, answers):
        super().__init__(channel)
        self.answers, self.functions, self.errors, self.asked = answers, [], {}, False

    def run(self, job):
        if self.receive() != ["started"]:
            raise Broken
        os.write(self.answers, b"started\n")
        self.send(job["program"])
        names, entry = Names(self, job["tests"], job["entry_point"]), job["entry_point"]
        try:
            exec(compile(job["tests"], "<tests>", "exec"), names)
            if entry and "check" in names:
                exec(f"check({entry})", names)
        except BaseException as error:
            self.end(False, f"{type(error).__name__}: {error}")
        self.end(True)

    def end(self, passed, why=""):
        """Give the verdict, and leave at once: no test goes on behind a program that ended."""
        os.write(self.answers, json.dumps({"passed": passed, "asked": self.asked, "why": why[:400]}).encode())
        os._exit(0)

    def ask(self, operation, *args, **named):
        """What the program answers. Lists, dicts and sets that were given are changed in place where that is None."""
        self.asked = True
        given = (*args, *named.values())
        data = [self.encode(arg) for arg in args], {name: self.encode(value) for name, value in named.items()}
        try:
            self.send("ask", operation, *data)
            what, *rest = self.outcome()
            error = self.error(*rest) if what == "raise" else None
            value, changed, printed = map(self.decode, rest if what == "value" else (None, None, None))
        except (AttributeError, Broken, LookupError, MemoryError, OSError, RecursionError, TypeError, ValueError):
            self.end(False, "the program ended")
        if what == "raise":
            raise error
        sys.stdout.write(printed or "")  # where tests read what was printed
        if value is None:  # the program's process may say more than it should
            for old, new in zip([value for value in given if isinstance(value, MUTABLE)], changed or (), strict=False):
                change(old, new)
        return value

    def answer(self, what, number, arguments, named):
        """Call a function that the tests gave to the program."""
        if what != "call":
            raise Broken
        call = self.functions[number]
        named = {k: self.decode(v) for k, v in named.items()}
        self.answering(lambda: (self.encode(call(*[self.decode(part) for part in arguments], **named)), None))

    def foreign(self, value):
        if isinstance(value, Remote):
            return ["yours", value._number]
        if isinstance(value, types.BuiltinFunctionType) and getattr(builtins, value.__name__, None) is value:
            return ["builtin", value.__name__]
        if not callable(value):
            raise TypeError(f"a {type(value).__name__} of the tests cannot be given to the program")
        self.functions.append(value)
        return ["function", len(self.functions) - 1]

    def known(self, tag, number, name=None, base=None):
        if tag == "yours":
            return self.functions[number]
        if tag == "builtin":
            return catching_no_assert(getattr(builtins, number))
        if tag == "error":
            if number not in self.errors:
                self.errors[number] = type(name, (self.decode(base),), {})
            return self.errors[number]
        return Remote(self, int(number))


class Names(dict):
    """What the tests name: what they define, then builtins, modules of the standard library, then the program's."""

    def __init__(self, judge, tests, entry):
        super().__init__(__name__="tests")
        self.judge = judge
        names = [node for node in ast.walk(ast.parse(entry or "0")) if isinstance(node, ast.Name)]
        self.tested = {node.id for node in names}
        dotted = [node.value for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Attribute)]
        self.modules = {node.id for node in dotted if isinstance(node, ast.Name)} & sys.stdlib_module_names

    def __missing__(self, name):
        if name not in self.tested:
            if hasattr(builtins, name):
                raise KeyError(name)
            if name in self.modules:
                return importlib.import_module(name)
        return self.judge.ask("name", name)


def catching_no_assert(kind):
    """A builtin class, narrowed where `except` with it would catch a failed assert of the tests."""
    if kind is not object and issubclass(AssertionError, kind):
        return type(kind.__name__, (kind,), {})
    return kind


def change(old, new):
    """Give a mutable value another's content."""
    if isinstance(old, dict | set):
        old.clear()
        old.update(new)
    else:
        old[:] = new


def main(settings):
    """Run the tests of the job that comes through standard input; the verdict goes to standard output."""
    job, answers = json.load(sys.stdin), os.dup(1)
    peer = Judge(socket.socket(fileno=settings["channel"]), answers)
    enter(settings)
    peer.run(job)


if __name__ == "__main__":
    main(json.loads(sys.argv[2]))
