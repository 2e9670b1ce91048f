"""Links of a chain: each takes the batch and returns it with rows or tokens taken out, or with credit added.

A link is pure: no gradient, no I/O, no rank; every rank applies it to the whole batch and gets the same
result. To add one, write a function that returns a `Transform` and name it in `TRANSFORMS`, or in YAML by
its dotted path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from align import ops
from align.adaptive import AdaptiveK, DifficultyTracker
from align.batch import Batch
from align.losses import LOG_RATIO


class State(Protocol):
    """What a link remembers from step to step; saved in the checkpoint."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Transform:
    """A link: what it does, the quantities that it reads, and the one that it brings."""

    name: str
    apply: Callable[[Batch], Batch]
    needs: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    state: State | None = None
    check: Callable[[int], None] = lambda group_size: None  # raises ValueError where the group size cannot work


Metric = Literal["shortest", "token_efficiency"]
Rank = Annotated[int, Ge(2)]  # one row has no variance: nothing could be learned from it


def keep_top(*, k: Rank | AdaptiveK, metric: Metric = "shortest") -> Transform:
    """Keep the k best responses of each group by length or by reward a token (GFPO, arXiv 2508.09726, sec. 3).

    `metric`: `shortest` scores -|o|, `token_efficiency` scores R / |o|. |o| counts tokens. Ties go to the
    row that comes first. `k` is one number (2 to group_size), or one for each difficulty (sec. 3.2).
    A row that an earlier link dropped is never kept; where fewer than k are left, all are.
    Token efficiency needs rewards of both signs: with 0/1 rewards all wrong responses tie at 0, and among
    negative rewards it prefers the longest.
    """
    adaptive = k if isinstance(k, AdaptiveK) else None
    state = DifficultyTracker(adaptive) if adaptive else None
    largest = max(adaptive.levels()) if adaptive else k

    def check(group_size: int) -> None:
        if largest > group_size:
            raise ValueError(f"k = {largest} of a group of {group_size}: k must be at most the group size")

    def apply(batch: Batch) -> Batch:
        index, groups = ops.group_index(batch.group)
        reward = batch.need("reward", "keep_top") if adaptive or metric == "token_efficiency" else None
        k_Q = state.update(ops.group_mean(reward.double(), index, groups)) if state else torch.full((groups,), k)
        length = batch.length.double().clamp(min=1)
        score = -length if metric == "shortest" else reward.double() / length
        rows = batch.kept.nonzero()[:, 0]
        place = ops.rank_within_group(score[rows], batch.group[rows])
        kept = torch.zeros_like(batch.kept)
        kept[rows[place < k_Q[index[rows]]]] = True
        return replace(batch, kept=kept)

    needs = ("reward",) if adaptive or metric == "token_efficiency" else ()
    return Transform("keep_top", apply, needs=needs, state=state, check=check)


def group_advantage(*, std: ops.Std = "population", eps: Annotated[float, Ge(0)] = 0.0) -> Transform:
    """A = (R - mean) / (std + eps) over the kept rows of each group, the same for every token of a row.

    DeepSeekMath (arXiv 2402.03300) and GFPO eq. 2 with `population`, eps 0; TRL and verl use `sample` with
    eps 1e-4 and 1e-6; Dr.GRPO (arXiv 2503.20783) does not divide: `none`. A constant group, and a group of
    one, gets exactly 0.
    """

    def apply(batch: Batch) -> Batch:
        rows = batch.kept.nonzero()[:, 0]
        reward = batch.need("reward", "group_advantage")
        advantage = torch.zeros_like(reward)
        advantage[rows] = ops.group_norm(reward[rows], batch.group[rows], std, eps)
        return replace(batch, advantage=torch.where(batch.mask, advantage[:, None], 0.0).to(batch.weight.dtype))

    return Transform("group_advantage", apply, needs=("reward",), gives=("advantage",))


def importance_weight(
    *,
    level: Literal["token", "sequence"] = "token",
    mode: Literal["truncate", "mask"] = "truncate",
    high: Annotated[float, Gt(0)] = 2.0,
    low: Annotated[float, Ge(0)] = 0.0,
) -> Transform:
    """w = pi_old / pi_sampler on each token's loss, no gradient: corrects what the sampler computes differently.

    `truncate` clamps w to [low, high] (TIS), `mask` gives 0 outside (MIS). `sequence` uses the product over
    the response for each of its tokens. Needs `sampling.old_logprob: trainer`: where the sampler's
    log-probabilities already are the old ones, the ratio contains w and it would count twice.
    """

    if low > high:
        raise ValueError(f"low ({low}) must not be above high ({high})")

    def apply(batch: Batch) -> Batch:
        old = batch.need("old_logprob", "importance_weight")
        sampler = batch.need("sampler_logprob", "importance_weight")
        log_w: Tensor = torch.where(batch.mask, old - sampler, 0.0)
        if level == "sequence":
            log_w = log_w.sum(1, keepdim=True).expand_as(log_w)
        w = log_w.clamp(-LOG_RATIO, LOG_RATIO).exp()
        inside = (w >= low) & (w <= high)
        w = w.clamp(low, high) if mode == "truncate" else torch.where(inside, w, 0.0)
        return replace(batch, weight=batch.weight * torch.where(batch.mask, w, 0.0))

    return Transform("importance_weight", apply, needs=("old_logprob", "sampler_logprob"))


TRANSFORMS = {"keep_top": keep_top, "group_advantage": group_advantage, "importance_weight": importance_weight}
