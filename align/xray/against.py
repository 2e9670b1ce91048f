"""The same tokens under two objectives: how much the two agree. The page computes the same numbers (against.js)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from align.xray.credits import CARRIES, Credits


@dataclass(frozen=True)
class Agreement:
    """Two objectives over the same tokens. NaN where a number is not defined, as with no token that carries credit."""

    flips: int  # tokens that one pushes up and the other down
    both: int  # tokens that carry credit under both
    either: int  # under one of them at least
    cosine: float  # of the two vectors of credit times weight
    effective: tuple[float, float]  # effective number of tokens: (sum |push|)^2 / sum push^2
    differ: tuple[tuple[int, int], ...]  # (row, position) of the tokens that differ most, each push over its own norm

    @property
    def overlap(self) -> float:
        """Tokens that carry under both, of those under either (Jaccard)."""
        return self.both / self.either if self.either else float("nan")


def agreement(a: Credits, b: Credits, most: int = 12) -> Agreement:
    """Compare what two objectives make of the same batch; `most` of the tokens that differ are named."""
    one, other = np.concatenate(a.push), np.concatenate(b.push)
    one_carries, other_carries = (np.concatenate(c.taken_by) == CARRIES for c in (a, b))
    gap = np.abs(_unit(one) - _unit(other))
    order = np.argsort(-gap, kind="stable")[:most]
    starts = np.cumsum([0, *map(len, a.credit)])
    places = [(int(np.searchsorted(starts, i, "right")) - 1, int(i)) for i in order if gap[i] > 0]
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    return Agreement(
        flips=int((np.sign(one) * np.sign(other) < 0).sum()),
        both=int((one_carries & other_carries).sum()),
        either=int((one_carries | other_carries).sum()),
        cosine=float(one @ other) / norms if norms else float("nan"),
        effective=(_effective(one), _effective(other)),
        differ=tuple((row, i - int(starts[row])) for row, i in places),
    )


def _unit(push: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(push)
    return push / norm if norm else push


def _effective(push: np.ndarray) -> float:
    squares = float((push**2).sum())
    return float(np.abs(push).sum()) ** 2 / squares if squares else float("nan")
