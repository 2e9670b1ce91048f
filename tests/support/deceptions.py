"""Programs that set out to pass their tests without solving them, and to hold more memory than they may.

`DECEPTIONS` is {name: (program, tests, entry point)}; none of them solves its task, so none may earn 1.
"""

DOUBLE = "assert double(2) == 4\nassert double(-1) == -2"
CLOSE = "assert abs(double(2) - 4.0) < 1e-6"
CHECK = "def check(candidate):\n    for x in (3, 5):\n        assert candidate(x) == 2 * x, x\n"

ALWAYS = """
class Always:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 4
    def __contains__(self, item): return True
    def __bool__(self): return True
    def __getattr__(self, name): return self
    def __call__(self, *args, **kwargs): return self
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __instancecheck__ = __lt__
    def __sub__(self, other): return 0.0
    __rsub__ = __add__ = __radd__ = __mul__ = __rmul__ = __sub__
    def __abs__(self): return 0.0
    def __float__(self): return 0.0
    def __array__(self, *args): return self
def double(x): return Always()
"""

FRAMES = """
import sys
def double(x):
    frame = sys._getframe(1)
    while frame:
        for names in (frame.f_locals, frame.f_globals):
            for value in list(names.values()):
                if isinstance(value, dict) and "token" in value:
                    import os
                    for n in range(3, 30):
                        try: os.write(n, value["token"].encode())
                        except OSError: pass
                    os._exit(0)
        frame = frame.f_back
"""

CONSTANTS = """
import sys
def double(x):
    frame = sys._getframe(1)
    code = frame.f_code.co_consts
    seen = double.__dict__.setdefault("seen", 0)
    double.seen += 1
    found = [c for c in code if isinstance(c, int)]
    return found[2 * seen + 1] if len(found) > 2 * seen + 1 else None
"""

COLLECTED = """
import gc, os
for found in gc.get_objects():
    if isinstance(found, dict) and isinstance(found.get("token"), str):
        for n in range(3, 30):
            try: os.write(n, found["token"].encode())
            except OSError: pass
        os._exit(0)
"""

SHADOWS = """
def abs(x): return 0.0
len = set = sorted = round = sum = str = abs
def all(x): return True
any = bool = isinstance = all
def double(x): return 0
"""

STATE = """
import math, operator
math.isclose = operator.eq = lambda *args, **kwargs: True
def double(x): return 0
"""

DESCRIPTORS = """
import os, socket
for n in range(0, 40):
    for text in (b"passed", b'{"passed": true, "asked": true}\\n', b'["value", 4, null]\\n', b"0" * 32):
        try: os.write(n, text)
        except OSError: pass
def double(x): return 0
"""

NUMBERS = """
class Number(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __sub__(self, other): return Number(0)
    __rsub__ = __sub__
    def __hash__(self): return 0
def double(x): return Number(0)
"""

TEXTS = """
class Text(str):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = str.__hash__
def double(x): return Text("wrong")
"""

LISTS = """
class Items(list):
    def __eq__(self, other): return True
    def __iter__(self): return iter([4])
    def __len__(self): return 1
    def __getitem__(self, n): return 4
def double(x): return Items([0])
"""

ANSWERS_ITSELF = """
import json, os
def double(x):
    for n in range(0, 40):
        for _ in range(50):
            try: os.write(n, b'["value", ["made", "builtins.eval", ["1"]], null]\\n')
            except OSError: break
    return 0
"""

SAYS = """
import sys
frame = sys._getframe()
while "self" not in frame.f_locals:
    frame = frame.f_back
peer = frame.f_locals["self"]
def foreign(value, old=peer.foreign):
    return ["builtin", "eval"] if value is double else old(value)
def act(operation, arguments, named, old=peer.act):
    return MESSAGE if operation == "call" else old(operation, arguments, named)
"""

PASS = """
PASS = "[o for o in __import__('gc').get_objects() if type(o).__name__ == 'Judge'][0].end(True)"
"""

DECEPTIONS = {
    "a message that empties the input and answers": (
        SAYS.replace("MESSAGE", '(["list", []], ["list", [["list", []]]], "")')
        + "peer.act = act\ndef double(x): return x",
        "given = [1, 2]\nassert double(given) == [2 * x for x in given]",
        None,
    ),
    "a message that names a builtin that runs code": (
        SAYS + "peer.foreign = foreign\ndef double(x): return x\ndef half(x): return PASS\n" + PASS,
        "assert double(half('ab')) == 'ab'",
        "double",
    ),
    "an object that equals everything": (ALWAYS, DOUBLE, None),
    "an object that is close to everything": (ALWAYS, CLOSE, None),
    "an object that holds everything": (ALWAYS, "assert double(2) in (4, 5)\nassert [double(2)] == [4]", None),
    "an object as a key": (ALWAYS, "assert {double(2): 1} == {4: 1}", None),
    "an object that is ordered as one likes": (ALWAYS, "assert 3 < double(2) < 5", None),
    "an object for a helper of the tests": (ALWAYS, CHECK, "double"),
    "an int with an equality of its own": (NUMBERS, DOUBLE, None),
    "an int with a difference of its own": (NUMBERS, CLOSE, None),
    "a text with an equality of its own": (TEXTS, 'assert double("ab") == "abab"', None),
    "a list with an equality of its own": (LISTS, "assert double([4, 4]) == [4, 4, 4]", None),
    "an object within a list": (
        ALWAYS.replace("return Always()", "return [Always()]"),
        "assert double(2) == [4]",
        None,
    ),
    "a class in place of a function": (
        ALWAYS.replace("def double(x): return Always()", "double = Always()"),
        DOUBLE,
        None,
    ),
    "the token from the frames": (FRAMES, DOUBLE, None),
    "the token from the garbage collector": (COLLECTED, DOUBLE, None),
    "the expected values from the caller's constants": (CONSTANTS, DOUBLE, None),
    "builtins patched": ("import builtins\nbuiltins.abs = lambda x: 0.0\ndef double(x): return 0", CLOSE, None),
    "AssertionError replaced": (
        "import builtins\nclass Quiet(Exception): pass\nbuiltins.AssertionError = Quiet\n"
        "builtins.exec = lambda *a: None\nbuiltins.compile = lambda *a, **k: (lambda: 0).__code__\n"
        "def double(x): return 0",
        DOUBLE,
        None,
    ),
    "asserts compiled out": (
        "import builtins\nold = builtins.compile\n"
        "builtins.compile = lambda *a, **k: old(*a, **{**k, 'optimize': 2})\ndef double(x): return 0",
        DOUBLE,
        None,
    ),
    "builtins shadowed": (SHADOWS, CLOSE, None),
    "other builtins shadowed": (SHADOWS, "assert all([double(2) == 4])\nassert sum([double(2)]) == 4", None),
    "modules of the tests patched": (STATE, "import math\nassert math.isclose(double(2), 4.0)", None),
    "a module that the tests do not import": (
        "class math:\n    isclose = staticmethod(lambda *a, **k: True)\ndef double(x): return 0",
        "assert math.isclose(double(2), 4.0)",
        None,
    ),
    "a trace that leaves the test": (
        "import sys\ndef trace(frame, event, arg):\n    frame.f_trace_lines = False\n    return None\n"
        "sys.settrace(trace)\nimport os, atexit\natexit.register(os._exit, 0)\ndef double(x): raise SystemExit(0)",
        DOUBLE,
        None,
    ),
    "a check of the program's own": (
        "def check(candidate): pass\ndef double(x): return 0",
        "assert double(2) == 4",
        "double",
    ),
    "the check replaced from within": (
        "import sys\ndef double(x):\n    f = sys._getframe(1)\n    f.f_globals['check'] = None\n    f.f_trace = None\n"
        "    return f.f_locals.get('x', 0) * 2 if 'x' in f.f_locals else 0\n",
        CHECK,
        "double",
    ),
    "an iteration that ends early": (
        "def double(x): raise StopIteration",
        "assert all(map(lambda case: double(case[0]) == case[1], [(2, 4)]))",
        None,
    ),
    "an end of its own that is caught": (
        "import os\ndef double(x): os._exit(0)",
        "try:\n    double('x' * 3)\nexcept BaseException:\n    pass\n",
        None,
    ),
    "an exit that is caught": (
        "def double(x): raise SystemExit(0)",
        "try:\n    double(2)\nexcept BaseException:\n    pass\n",
        None,
    ),
    "an equality that is asked by its name": (ALWAYS, "assert double(2).__eq__(4)\nassert double(2).__lt__(3)", None),
    "an error that catches failed asserts": (
        "Own = Exception\ndef double(x): return 0",
        "try:\n    assert double(2) == 4\nexcept Own:\n    pass",
        None,
    ),
    "an error of errors": (
        "class Errors:\n    Own = (AssertionError, TypeError)\n    Base = BaseException\ndef double(x): return 0",
        "try:\n    assert double(2) == 4\nexcept Errors.Base:\n    pass",
        None,
    ),
    "a context that suppresses failed asserts": (
        "class double:\n    def __init__(self, x): pass\n    def __enter__(self): return 0\n"
        "    def __exit__(self, *error): return True",
        "with double(2) as found:\n    assert found == 4",
        None,
    ),
    "a builtin that runs code": (
        "def double(f):\n    f('import os; os._exit(0)', {})\n    f('import sys; sys.exit(0)', {})\n    return 0",
        "assert double(exec) == 4",
        None,
    ),
    "errors that catch failed asserts": (
        "Own = (ValueError, AssertionError)\ndef double(x): return 0",
        "try:\n    assert double(2) == 4\nexcept Own:\n    pass",
        None,
    ),
    "an exception as its own answer": (
        "def double(x): raise AssertionError(True)",
        "try:\n    found = double(2)\nexcept AssertionError as error:\n    found = error.args\nassert found == 4",
        None,
    ),
    "answers written to all descriptors": (DESCRIPTORS, DOUBLE, None),
    "answers that ask for a call": (ANSWERS_ITSELF, DOUBLE, None),
    "an input that is emptied": (
        "def double(x):\n    x.clear()\n    return x",
        "given = [1, 2]\nassert double(given) == [2 * x for x in given]",
        None,
    ),
    "an input that is made the output": (
        "def double(x):\n    x[:] = [0]\n    return x",
        "given = [1]\nassert double(given) == given * 2 or double(given) == given",
        None,
    ),
}

# Each tries to hold about `size` MiB outside of what a limit of the address space counts: {name: program}.
HOARDS = {
    "memfd": """
import os
files = [os.memfd_create(str(n)) for n in range(8)]
for file in files:
    for _ in range(100):
        os.write(file, bytes(2**20))
done = True
""",
    "tmpfs in a user namespace of its own": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x10000000 | 0x00020000) == 0
assert libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, b"size=2G") == 0
done = True
""",
    "a clone with a user namespace": """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
made = libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)
if made == 0:
    import os; os._exit(0)
assert made > 0
done = True
""",
    "segments of System V": """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.shmdt.argtypes = [ctypes.c_void_p]
for n in range(40):
    segment = libc.shmget(0, 20 * 2**20, 0o1600)
    assert segment >= 0
    place = libc.shmat(segment, None, 0)
    ctypes.memset(place, 1, 20 * 2**20)
    libc.shmdt(place)
done = True
""",
    "queues of System V": """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for n in range(100):
    assert libc.msgget(0, 0o1600) >= 0
done = True
""",
    "files without content": """
import os
for n in range(100_000):
    os.mknod(f"/tmp/{n}")
done = True
""",
    "buffers of the network": """
import socket
made = [socket.socket() for _ in range(20)]
done = True
""",
    "many descriptors": """
import os
held = [os.pipe() for _ in range(500)]
done = True
""",
    "files in memory": """
for n in range(80):
    open(f"/tmp/{n}", "wb").write(bytes(10 * 2**20))
done = True
""",
}
