"""Credit of turns: what an episode earned from each turn on, given to the tokens that the policy chose in it.

r[k]   = turn_reward of turn k;  of the last turn: reward - sum of the turn rewards before it
R[k]   = r[k] + discount * R[k + 1]                                                             return of turn k
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from align import ops
from align.batch import Batch
from align.ranges import Coef, Discount, Eps, Std
from align.transforms.transform import Stage, Transform


def turn_sums(value_BT: Tensor, batch: Batch) -> Tensor:
    """[B,K] sum of a value over the tokens of each turn, K the most turns of a response and at least 1."""
    turn = torch.where(batch.mask, batch.turn, -1)
    turns = int(turn.max()) + 1 if turn.numel() else 1
    sums = torch.zeros(len(turn), max(1, turns), dtype=value_BT.dtype)
    return sums.scatter_add(1, turn.clamp(min=0), torch.where(batch.mask, value_BT, 0))


def there(batch: Batch) -> Tensor:
    """[B,K] bool: turns of rows that take part in which the policy chose a token."""
    return (turn_sums(batch.mask.long(), batch) > 0) & batch.kept[:, None]


def returns_of_turns(batch: Batch, discount: float, reader: str) -> Tensor:
    """[B,K] R of each turn; `reader` is who needs it, for messages."""
    rewards, reward = turn_sums(batch.need("turn_reward", reader), batch), batch.need("reward", reader)
    out, follow = torch.zeros_like(rewards, dtype=reward.dtype), torch.zeros_like(reward)
    last = ops.up_to_last(there(batch))[:, None] - 1
    before = torch.arange(rewards.shape[1]) < last
    rest = reward - torch.where(before, rewards, 0.0).sum(1)
    for k in reversed(range(rewards.shape[1])):
        follow = torch.where(before[:, k], rewards[:, k] + discount * follow, torch.where(last[:, 0] == k, rest, 0.0))
        out[:, k] = follow
    return out


def to_tokens(value_BK: Tensor, batch: Batch) -> Tensor:
    """[B,T] each token's turn's value, 0 where the policy did not choose the token."""
    value = value_BK.to(batch.weight.dtype).gather(1, torch.where(batch.mask, batch.turn, 0))
    return torch.where(batch.mask, value, 0.0)


def compared(value_BK: Tensor, among_BK: Tensor, index_BK: Tensor, std: Std, eps: float) -> Tensor:
    """[B,K] (value - mean) / (std + eps) within the turns of an index, of those in `among_BK`; 0 elsewhere."""
    out = torch.zeros_like(value_BK)
    out[among_BK] = ops.group_norm(value_BK[among_BK], index_BK[among_BK], std, eps)
    return out


def turn_returns(
    *, discount: Discount = 1.0, scope: Literal["turn", "group"] = "turn", std: Std = "population", eps: Eps = 0.0
) -> Transform:
    """Set advantage = (R - mean) / (std + eps), the same for the tokens of a turn; R is the return of the turn.

    R is the discounted sum of the rewards of this turn and those behind it; what of the episode's reward no turn
    earned by itself is the last turn's. Mean and std are over the kept rows of a group: over their turns of the same
    number (`scope: turn`), or over all of their turns (`group`). `std` and `eps` as in `group_advantage`, which it is
    to the last bit where every response is one turn; one without tokens has none, and is compared with nothing.
    """

    def apply(batch: Batch) -> Batch:
        returns, among = returns_of_turns(batch, discount, "turn_returns"), there(batch)
        group, _ = ops.group_index(batch.group)
        turns = returns.shape[1]
        number = torch.arange(turns) if scope == "turn" else torch.zeros(turns, dtype=torch.int64)
        advantage = compared(returns, among, group[:, None] * turns + number, std, eps)
        return replace(batch, advantage=to_tokens(advantage, batch))

    needs = ("reward", "turn_reward")
    return Transform(
        "turn_returns", apply, needs=needs, gives=("advantage",), stage=Stage.ADVANTAGE, scope="group", compares=True
    )


def anchor_advantage(*, weight: Coef = 1.0, discount: Discount = 0.95, std: Std = "none", eps: Eps = 0.0) -> Transform:
    """Add weight * (R - mean) / (std + eps) over the turns of a group that began in the same state: GiGPO's step level
    (arXiv 2505.10978, eq. 6 to 8).

    R is the return of the turn, as in `turn_returns`. States are equal where what the environment calls its state is,
    or where the policy saw exactly the same before its turn; a turn whose state no other turn had adds 0. One episode
    may meet a state more than once. The paper divides by the std or by 1; its code does not by default (`none`), and
    has `std: sample, eps: 1.0e-6` as its other mode. Weight 0 adds nothing.
    """

    def apply(batch: Batch) -> Batch:
        returns, among = returns_of_turns(batch, discount, "anchor_advantage"), there(batch)
        state = turn_sums(batch.need("turn_state", "anchor_advantage"), batch)
        group, _ = ops.group_index(batch.group)
        keys = torch.stack([group[:, None].expand_as(state), state], -1)
        _, index = torch.unique(keys.flatten(0, 1), dim=0, return_inverse=True)
        step = to_tokens(compared(returns, among, index.view(state.shape), std, eps), batch)
        return replace(batch, advantage=batch.need("advantage", "anchor_advantage") + weight * step)

    needs = ("advantage", "reward", "turn_reward", "turn_state")
    return Transform("anchor_advantage", apply, needs=needs, stage=Stage.TOKEN_CREDIT, scope="group", compares=True)
