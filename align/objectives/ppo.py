"""PPO: Proximal Policy Optimization Algorithms, arXiv 1707.06347; Training Language Models to Follow Instructions with
Human Feedback, arXiv 2203.02155.

    token_reward = -kl_coef * (old_logprob - ref_logprob), and at the last token
                   reward_coef * clip(reward, -reward_clip, reward_clip) besides
    delta[t] = token_reward[t] + gamma * value[t+1] - value[t]
    advantage[t] = delta[t] + gamma * lam * advantage[t+1], then whitened            (GAE, arXiv 1506.02438)
    returns = advantage before whitening + value

    ratio = exp(logprob - old_logprob)                                              of each token
    policy loss = -min(ratio * advantage, clip(ratio, 1 - clip_low, 1 + clip_high) * advantage)
    near = value + clip(new - value, -value_clip, value_clip)
    value loss = value_coef / 2 * max((new - returns)^2, (near - returns)^2)

`value` is what the value head gave before the update, `new` what it gives now.
"""

from __future__ import annotations

import math

from align.losses.loss import Aggregation
from align.losses.surrogate import clipped_surrogate
from align.losses.value import value_loss
from align.objectives.objective import Objective
from align.ranges import (
    ClipBound,
    ClipHigh,
    ClipLow,
    Coef,
    Discount,
    DualClip,
    HeadLearningRate,
    PositiveCoef,
    ValueHidden,
    Whitening,
)
from align.transforms.token_reward import gae, token_reward


def ppo(
    *,
    kl_coef: Coef = 0.01,
    reward_coef: float = 1.0,
    reward_clip: ClipBound = 10.0,
    gamma: Discount = 1.0,
    lam: Discount = 0.95,
    whitening: Whitening = "population",
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = math.inf,
    value_clip: ClipBound = 0.2,
    value_coef: PositiveCoef = 1.0,
    value_lr: HeadLearningRate | None = None,
    value_hidden: ValueHidden = "detached",
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
            clipped_surrogate(clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip, aggregation=aggregation),
            value_loss(coef=value_coef, clip=value_clip, lr=value_lr, hidden=value_hidden, aggregation=aggregation),
        ),
    )
