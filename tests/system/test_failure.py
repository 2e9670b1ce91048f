"""Why a call of user code gave no value, in words."""

import re

import pytest

from align.system.failure import LARGEST, LONGEST, Failure, attempt, number, short, shown, too_slow

KEY = "some.memory_gib"


class Rude(Exception):
    def __str__(self):
        raise RuntimeError("no text for you")


def raises(error):
    raise error


def told(error):
    """The failure of a call that raises, without its line."""
    found = attempt(lambda: raises(error), KEY)
    assert isinstance(found, Failure) and re.search(r" \(test_failure\.py:\d+\)", found.why)
    return re.sub(r" \(test_failure\.py:\d+\)", "", found.why), found.out_of_memory


@pytest.mark.parametrize(
    "error, why",
    [
        (KeyError("x"), "KeyError: 'x'"),
        (ValueError(), "ValueError"),
        (SystemExit(3), "SystemExit: 3"),
        (Rude(), "Rude, which cannot be shown"),
        (ValueError("\ud800"), "ValueError: ?"),
        (ValueError("x" * 10**6), "ValueError: " + "x" * (LONGEST - 12)),
    ],
)
def test_whatever_it_raises(error, why):
    assert told(error) == (why, False)


def test_a_lack_of_memory_names_the_key_that_limits_it():
    assert told(MemoryError()) == ("MemoryError; raise some.memory_gib if it needs more", True)


def test_what_returns_is_returned():
    assert attempt(lambda: 3, KEY) == 3


def test_a_call_that_is_too_slow_names_the_key_that_limits_it():
    assert too_slow(1.5, "some.seconds").why == "took longer than 1.5 s; raise some.seconds if it needs more"


@pytest.mark.parametrize("value, found", [(1, 1.0), (True, 1.0), (None, None), (LARGEST, LARGEST), (-0.5, -0.5)])
def test_numbers(value, found):
    assert number(value) == found and type(number(value)) is type(found)


@pytest.mark.parametrize(
    "value, why",
    [
        (float("nan"), "returned nan; return a finite number or None"),
        (float("inf"), "returned inf; return a finite number or None"),
        ("1", "returned '1'; return a finite number or None"),
        (1e39, "returned 1e+39; return a number within float32, up to 3.4e+38 or None"),
        (10**400, "return a number within float32, up to 3.4e+38 or None"),
    ],
)
def test_what_is_no_number_of_float32(value, why):
    assert number(value).why.endswith(why)


class Shy(float):
    def __repr__(self):
        raise RuntimeError("no text for you")


def test_values_are_shown_in_short(monkeypatch):
    assert shown("x" * 99) == "'xxxxxxxxxxxx...xxxxxxxxxxxxx'" and len(shown(Shy())) < 50
    monkeypatch.setattr("align.system.failure.reprlib.repr", Shy.__repr__)
    assert shown(Shy()) == "a value of type Shy"
    assert short("\ud800" + "x" * 9, 3) == "?xx"
