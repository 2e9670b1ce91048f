"""Tests that a right program passes, of all kinds that `rewards.code` can ask: `QUESTIONS`, about `PROGRAM`."""

PROGRAM = """
from __future__ import annotations
import collections, contextlib, dataclasses, enum

def same(x): return x
def sort(x): x.sort()
def sorted_too(x):
    x.sort()
    return x
def fill(table, rows): table.update(a=1); rows.append([2])
def counts(text): return collections.Counter(text)
def squares(n):
    for i in range(n): yield i * i
def apply(f, *args, **named): return f(*args, **named)
def adder(n): return lambda x: x + n
def fails(kind="value"):
    raise {"value": ValueError("wrong", 3), "key": KeyError("k"), "own": Own("mine"), "child": Child(),
           "assertion": AssertionError("no"), "any": Exception("any")}[kind]
def hello(): print("hello")
class Own(Exception): pass
class Child(Own): pass
Pair = collections.namedtuple("Pair", "a b")
class Color(enum.IntEnum):
    RED = 1
class Stack(list):
    def push(self, x): self.append(x)
@dataclasses.dataclass(order=True)
class Point:
    x: int
    y: int = 0
    def __add__(self, other): return Point(self.x + other.x, self.y + other.y)
    def __len__(self): return 2
    def __getitem__(self, n): return (self.x, self.y)[n]
    def __iter__(self): return iter((self.x, self.y))
class Cache:
    def __init__(self, size): self.size, self.held = size, {}
    def get(self, key): return self.held.get(key, -1)
    def put(self, key, value): self.held[key] = value
    @property
    def full(self): return len(self.held) >= self.size
@contextlib.contextmanager
def opened():
    log.append("in")
    yield 7
    log.append("out")
log = []
calls = 0
def count():
    global calls
    calls += 1
"""

QUESTIONS = [
    r"""
for x in (None, True, 1, 2.5, 'a\n\ud800', b'\xff', 1j, [1, (2, {3})], {'a': [1], 2: (3,)}, range(3), 10**40,
          frozenset({1}), -(10**5000), float('inf'), bytearray(b'x')):
    assert same(x) == x and type(same(x)) is type(x), x
""",
    "import math\nassert math.isnan(same(float('nan'))) and math.isclose(same(0.1), 0.1)",
    "assert math.isclose(same(0.1), 0.1)",
    """
from decimal import Decimal
from fractions import Fraction
import datetime
from collections import deque
for x in (Decimal('1.10'), Fraction(1, 3), datetime.date(2020, 1, 2), datetime.timedelta(days=1),
          datetime.datetime(2020, 1, 2, 3), deque([1, 2], 5)):
    assert same(x) == x and type(same(x)) is type(x)
""",
    "a = [3, 1]\nassert sort(a) is None and a == [1, 3]",
    "assert sorted_too([3, 1]) == [1, 3]",
    "t, r = {}, [1]\nfill(t, rows=r)\nassert t == {'a': 1} and r == [1, [2]]",
    "assert counts('aab') == {'a': 2, 'b': 1}",
    "assert list(squares(4)) == [0, 1, 4, 9] and set(squares(2)) == {0, 1} and next(squares(1)) == 0",
    "assert 9 in squares(10) and sum(squares(4)) == 14 and [x for x in squares(3)] == [0, 1, 4]",
    "assert apply(lambda x: x + 1, 2) == 3 and apply(max, 1, 2) == 2 and apply(sorted, [2, 1], reverse=True) == [2, 1]",
    "assert adder(2)(3) == 5 and apply(adder(1), 1) == 2 and apply(apply, apply, max, 1, 2) == 2",
    "def f(x): raise KeyError(x)\ntry:\n    apply(f, 1)\nexcept KeyError as e:\n    assert e.args == (1,)",
    "assert apply(lambda x: same(x) + 1, 2) == 3",
    "try:\n    fails()\n    assert False\nexcept ValueError as error:\n    assert error.args == ('wrong', 3)",
    """
for kind, wanted in {'key': KeyError, 'own': Own, 'child': Own}.items():
    try:
        fails(kind)
    except wanted:
        continue
    assert False
""",
    "try:\n    fails('own')\nexcept Child:\n    assert False\nexcept Own as e:\n    assert str(e) == 'mine'",
    "assert apply(isinstance, 3, int) and apply(apply, int, '3') == 3",
    "assert Pair(1, 2).a == 1 and apply(tuple, Pair(1, 2)) == (1, 2) and Color.RED == 1",
    "s = Stack()\ns.push(1)\nassert len(s) == 1 and s[0] == 1 and s and list(s) == [1] and str(s) == '[1]'",
    "p = Point(1) + Point(2, 3)\nassert p.x == 3 and p == Point(3, 3) and p != Point(1) and p > Point(1)",
    "p = Point(1, 2)\nassert len(p) == 2 and p[1] == 2 and 2 in p and list(p) == [1, 2] and isinstance(p, Point)",
    "p = Point(1)\np.x = 5\nassert p.x == 5 and repr(p) == 'Point(x=5, y=0)' and hasattr(p, 'y')",
    "assert not hasattr(Point(1), 'z') and getattr(Point(1), 'z', 4) == 4",
    "c = Cache(1)\nassert c.get(1) == -1 and not c.full\nc.put(1, 2)\nassert c.get(1) == 2 and c.full",
    "with opened() as x:\n    assert x == 7 and log == ['in']\nassert log == ['in', 'out']",
    "count(); count()\nassert calls == 2",
    """
import contextlib, io
with contextlib.redirect_stdout(io.StringIO()) as said:
    assert apply(hello) is None and apply(print, 1) is None
assert said.getvalue() == 'hello\\n1\\n'
""",
    "try:\n    fails('assertion')\nexcept AssertionError as error:\n    assert str(error) == 'no'",
    "try:\n    fails('any')\n    assert False\nexcept Exception as e:\n    assert not isinstance(e, AssertionError)",
    "assert same.__name__ == 'same' and callable(same)",
    "def helper(x):\n    return same(x) * 2\nassert helper(2) == 4 and all(same(x) == x for x in range(3))",
    "assert abs(same(2.0000001) - 2) < 1e-6 and round(same(2.4)) == 2 and sorted(same([2, 1])) == [1, 2]",
]
