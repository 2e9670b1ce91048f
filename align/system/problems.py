"""The base of errors that list everything that is wrong at once."""

from __future__ import annotations

from collections.abc import Iterable


class ProblemList(ValueError):
    """Lists what a user can mend; `problems` has one line for each: where it is, what is wrong, and the fix."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))
