"""Name the line of user code that raised, and turn its `sys.exit` into an error."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = str(Path(__file__).parents[1])  # align/

STANDARD = sysconfig.get_path("stdlib")

INSTALLED = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib")})


class UserExit(ValueError):
    """User code called `sys.exit`."""


def user_line(error: BaseException) -> str | None:
    """`file.py:12`, the innermost line of the user's own files that an error came through.

    Where all is installed, the line by which installed code was entered; None where there is no line but ours.
    """
    frames = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_file()]
    others = [(path, line) for path, line in frames if not path.startswith(f"{PACKAGE}/")]
    installed = [(path, line) for path, line in others if path.startswith(INSTALLED)]
    own = [frame for frame in others if frame not in installed and not frame[0].startswith(STANDARD)]
    if not own and not installed:
        return None
    path, line = own[-1] if own else installed[0]
    return f"{Path(path).name}:{line}"


@contextmanager
def no_exit(what: str) -> Iterator[None]:
    """Raise `UserExit`, which says where, for a `SystemExit` inside the block; `what` names the user's code."""
    try:
        yield
    except SystemExit as error:
        line = user_line(error)
        where = f" at {line}" if line else ""
        raise UserExit(f"{what} called sys.exit({error.code!r}){where}; raise an error instead") from error
