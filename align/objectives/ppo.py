"""PPO with a value head, and RTO, which adds a guide's reward to each token."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from align.losses.loss import Aggregation
from align.losses.surrogate import clipped_surrogate
from align.losses.value import value_loss
from align.objectives.objective import Objective
from align.transforms.token_reward import gae, token_reward

Fraction = Annotated[float, Ge(0), Le(1)]

Positive = Annotated[float, Gt(0)]

Whitening = Literal["population", "sample", "none"]


def ppo(
    *,
    kl_coef: Annotated[float, Ge(0)] = 0.01,
    reward_coef: float = 1.0,
    reward_clip: Positive = 10.0,
    gamma: Fraction = 1.0,
    lam: Fraction = 0.95,
    whitening: Whitening = "population",
    clip_low: Annotated[float, Ge(0), Lt(1)] = 0.2,
    clip_high: Annotated[float, Ge(0)] = 0.2,
    value_clip: Positive = 0.2,
    value_coef: Positive = 1.0,
    value_lr: Positive | None = None,
    value_hidden: Literal["shared", "detached"] = "detached",
    aggregation: Aggregation = "seq-mean-token-mean",
) -> Objective:
    """PPO from human feedback: KL to the reference as a reward of each token, a value head, GAE.

    The value head is linear on the policy's last hidden state, in the same engine. `value_lr` is its learning rate (by
    default the policy's); `value_hidden: shared` lets its loss train the policy's layers too. Defaults are those of
    RTO's baseline (OpenRLHF 0.4.4), whose critic is a model of its own with lr 9e-6 beside 5e-7.

    Paper: PPO, arXiv 1707.06347 and 2203.02155.
    Limit: gamma = lam = 1 and a value of 0 is REINFORCE with the KL in the reward.
    """
    return Objective(
        "ppo",
        chain=(
            token_reward(kl_coef=kl_coef, reward_coef=reward_coef, reward_clip=reward_clip),
            gae(gamma=gamma, lam=lam, whitening=whitening),
        ),
        losses=(
            clipped_surrogate(clip_low=clip_low, clip_high=clip_high, aggregation=aggregation),
            value_loss(coef=value_coef, clip=value_clip, lr=value_lr, hidden=value_hidden, aggregation=aggregation),
        ),
    )
