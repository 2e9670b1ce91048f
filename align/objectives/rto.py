"""RTO: DPO Meets PPO: Reinforced Token Optimization for RLHF, arXiv 2404.18922.

    h = clip(guide_scale * (guide_logprob - ref_logprob), -guide_clip, guide_clip)  of each token
    token_reward += h                                                               variant: token       (eq. 4.7)

on top of PPO's rewards, and PPO's losses. Other variants of the paper:

    token_reward[last] += sum(h)                                                    variant: ddpo
    token_reward += h, token_reward[last] -= sum(h)                                 variant: rs_ppo
    token_reward[last of each sentence] += sum(h of the sentence)                   variant: semi

On REINFORCE++ instead of PPO (appendix E, arXiv 2501.03262), without a critic:

    advantage[t] = sum over s >= t of gamma^(s - t) * token_reward[s], then whitened
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from align.batch import Batch
from align.losses.loss import Aggregation
from align.losses.surrogate import clipped_surrogate
from align.objectives.objective import Objective
from align.objectives.ppo import ppo
from align.ranges import (
    ClipBound,
    ClipHigh,
    ClipLow,
    Coef,
    Discount,
    HeadLearningRate,
    PositiveCoef,
    ValueHidden,
    Whitening,
)
from align.transforms.token_reward import at_last_token, gae, token_reward
from align.transforms.transform import Stage, Transform

SENTENCE_ENDS = (".", "!", "?", "\n")

Variant = Literal["token", "ddpo", "rs_ppo", "semi"]


def at_sentence_ends(h_BT: Tensor, batch: Batch, delimiters: tuple[str, ...]) -> Tensor:
    """[B,T] with each sentence's sum of h at its last token and 0 elsewhere.

    A sentence ends at a token whose text ends in one of `delimiters`, spaces aside, and at the end of a turn.
    """
    out = torch.zeros_like(h_BT)
    for i, (texts, turns) in enumerate(zip(batch.token_text, batch.turn.tolist(), strict=True)):
        start, own = 0, batch.mask[i].nonzero()[:, 0].tolist()
        for t, following in pairwise([*own, None]):
            last = following is None or turns[following] != turns[t]
            if last or texts[t].rstrip(" ").endswith(delimiters):
                out[i, t] = h_BT[i, start : t + 1].sum()
                start = t + 1
    return out


def guide_reward(
    *,
    scale: Coef = 0.05,
    clip: ClipBound = math.inf,
    variant: Variant = "token",
    delimiters: tuple[str, ...] = SENTENCE_ENDS,
) -> Transform:
    """Add the guide's scaled and clipped log-ratio to each token's reward: RTO (arXiv 2404.18922).

    The clip comes after the scale, in units of the reward. `variant`: `ddpo` pays the response's sum at its last
    token; `rs_ppo` takes that sum away there, so that the total stays PPO's (pure shaping); `semi` pays each
    sentence's sum at its end. What ends a sentence was not at hand: see `at_sentence_ends`. Scale 0 is PPO.
    """
    places: dict[Variant, Callable[[Tensor, Batch], Tensor]] = {
        "token": lambda h, batch: h,
        "ddpo": lambda h, batch: at_last_token(h.sum(1), batch),
        "rs_ppo": lambda h, batch: h - at_last_token(h.sum(1), batch),
        "semi": lambda h, batch: at_sentence_ends(h, batch, delimiters),
    }
    place = places[variant]

    def apply(batch: Batch) -> Batch:
        guide, ref = batch.need("guide_logprob", "guide_reward"), batch.need("ref_logprob", "guide_reward")
        h = (scale * torch.where(batch.mask, guide - ref, 0.0)).clamp(-clip, clip)
        return replace(batch, token_reward=batch.need("token_reward", "guide_reward") + place(h, batch))

    needs = ("token_reward", "guide_logprob", "ref_logprob", *(("token_text",) if variant == "semi" else ()))
    return Transform("guide_reward", apply, needs=needs, stage=Stage.REWARD, scope="group")


def rto(
    *,
    guide_scale: Coef = 0.05,
    guide_clip: ClipBound = 0.05,
    variant: Variant = "token",
    delimiters: tuple[str, ...] = SENTENCE_ENDS,
    kl_coef: Coef = 0.01,
    reward_coef: float = 1.0,
    reward_clip: ClipBound = 10.0,
    gamma: Discount = 1.0,
    lam: Discount = 0.95,
    whitening: Whitening = "population",
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    value_clip: ClipBound = 0.2,
    value_coef: PositiveCoef = 1.0,
    value_lr: HeadLearningRate | None = None,
    value_hidden: ValueHidden = "detached",
    aggregation: Aggregation = "seq-mean-token-mean",
) -> Objective:
    """PPO whose tokens also earn what a DPO-trained guide says they are worth.

    `guide_scale` is the paper's beta1, `kl_coef` beta2 and `reward_coef` beta3; the guide is `model: {guide: ...}`.
    `guide_clip` bounds each token's reward after scaling: 0.05 is the released script's, the paper has no clip, which
    is .inf. With few clipped tokens and many steps the optimum is the guide extrapolated by beta1 / beta2. `variant`
    and `delimiters`: see `guide_reward`. Paper and script normalise the reward model's rewards and take 8 updates on
    each rollout (1024 responses in batches of 128): here rewards count as they are, so have yours near mean 0 and
    deviation 1, and set `optim.updates_per_step`.

    Paper: RTO, arXiv 2404.18922.
    Limit: guide_scale 0, or the reference as guide, is PPO.
    """
    base = ppo(
        kl_coef=kl_coef,
        reward_coef=reward_coef,
        reward_clip=reward_clip,
        gamma=gamma,
        lam=lam,
        whitening=whitening,
        clip_low=clip_low,
        clip_high=clip_high,
        value_clip=value_clip,
        value_coef=value_coef,
        value_lr=value_lr,
        value_hidden=value_hidden,
        aggregation=aggregation,
    )
    guide = guide_reward(scale=guide_scale, clip=guide_clip, variant=variant, delimiters=delimiters)
    rewards, advantages = base.chain
    return Objective("rto", (rewards, guide, advantages), base.losses)


def returns_to_go(*, gamma: Discount = 1.0, whitening: Whitening = "population") -> Transform:
    """Set each token's advantage to the discounted sum of the rewards from it on, over the kept rows: REINFORCE++
    (arXiv 2501.03262).

    It is `gae` with lam 1 where every value is 0. `whitening` is over all tokens of the kept rows, as there.
    """
    step = gae(gamma=gamma, lam=1.0, whitening=whitening)

    def apply(batch: Batch) -> Batch:
        return replace(step.apply(replace(batch, value=torch.zeros_like(batch.weight))), value=batch.value)

    return Transform(
        "returns_to_go",
        apply,
        needs=("token_reward",),
        gives=("advantage", "returns"),
        stage=Stage.ADVANTAGE,
        scope=step.scope,
    )


def rto_reinforce(
    *,
    guide_scale: Coef = 0.05,
    guide_clip: ClipBound = 0.05,
    variant: Variant = "token",
    delimiters: tuple[str, ...] = SENTENCE_ENDS,
    kl_coef: Coef = 0.01,
    reward_coef: float = 1.0,
    reward_clip: ClipBound = 10.0,
    gamma: Discount = 1.0,
    whitening: Whitening = "population",
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    aggregation: Aggregation = "seq-mean-token-mean",
) -> Objective:
    """RTO without a critic: a token's credit is the sum of the rewards from it on, whitened over the batch.

    The tokens' rewards are `rto`'s, so are the keys; no value head is trained. The paper runs its reward on REINFORCE++
    too; its text and code for that were not at hand, so the defaults are those of `rto`.

    Paper: RTO on REINFORCE++, arXiv 2404.18922 (appendix E) and 2501.03262.
    Limit: rto with lam 1 and a value of 0 has the same advantages.
    """
    rewards = token_reward(kl_coef=kl_coef, reward_coef=reward_coef, reward_clip=reward_clip)
    guide = guide_reward(scale=guide_scale, clip=guide_clip, variant=variant, delimiters=delimiters)
    loss = clipped_surrogate(clip_low=clip_low, clip_high=clip_high, aggregation=aggregation)
    chain = (rewards, guide, returns_to_go(gamma=gamma, whitening=whitening))
    return Objective("rto_reinforce", chain, losses=(loss,))
