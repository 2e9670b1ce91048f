"""Put into words why a call of user code gave no value: short, in UTF-8, and without any object of the user's."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

from align.system.blame import user_line

LONGEST = 600  # characters of a reason; an error of user code may be of any size

LARGEST = (2 - 2**-23) * 2.0**127  # of float32: the batch holds rewards in it


@dataclass(frozen=True)
class Failure:
    """Why a call gave no value."""

    why: str
    out_of_memory: bool = False  # what it left behind may be broken, or fill the memory


def attempt(step: Callable[[], Any], memory: str) -> Any:
    """Return what user code returns, or a `Failure` for whatever it raises, `SystemExit` included.

    `memory` is the recipe's key of the limit on its memory.
    """
    try:
        return step()
    except BaseException as error:
        return failure(error, memory)


def failure(error: BaseException, memory: str) -> Failure:
    """Put an error of user code, with its line, into about `LONGEST` characters."""
    line, out_of_memory = user_line(error), isinstance(error, MemoryError)
    hint = f"; raise {memory} if it needs more" if out_of_memory else ""
    try:
        what = short(f"{type(error).__name__}: {error}".removesuffix(": "))
    except Exception:  # of the error's own class
        what = f"{type(error).__name__}, which cannot be shown"
    return Failure(what + (f" ({line})" if line else "") + hint, out_of_memory)


def too_slow(seconds: float, limit: str) -> Failure:
    """The failure of a call that took longer than `seconds`, which the recipe's key `limit` sets."""
    return Failure(f"took longer than {seconds:g} s; raise {limit} if it needs more")


def number(value: Any) -> float | None | Failure:
    """The value as a float, None where it is None, a `Failure` for all that float32 does not hold."""
    if value is None:
        return None
    try:
        found = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:  # an integer beyond all floats
        found = 2 * LARGEST
    if abs(found) <= LARGEST:
        return found
    fix = f"return a number within float32, up to {LARGEST:.2g}" if math.isfinite(found) else "return a finite number"
    return Failure(f"returned {shown(value)}; {fix} or None")


def shown(value: Any) -> str:
    """The value in short."""
    try:
        return short(reprlib.repr(value))
    except Exception:  # of the user's class; or an integer of more digits than Python prints
        return f"a value of type {type(value).__name__}"


def short(text: str, longest: int = LONGEST) -> str:
    """At most so many characters of a text, in UTF-8."""
    return text[:longest].encode(errors="replace").decode()
