"""RTO, Reinforced Token Optimization: arXiv 2404.18922."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from align.batch import Batch
from align.losses.loss import Aggregation
from align.objectives.objective import Objective
from align.objectives.ppo import Fraction, Positive, Whitening, ppo
from align.transforms.token_reward import at_last_token
from align.transforms.transform import Stage, Transform

SENTENCE_ENDS = (".", "!", "?", "\n")


def guide_reward(
    *,
    scale: Annotated[float, Ge(0)] = 0.05,
    clip: Annotated[float, Gt(0)] = math.inf,
    variant: Literal["token", "ddpo", "rs_ppo", "semi"] = "token",
    delimiters: tuple[str, ...] = SENTENCE_ENDS,
) -> Transform:
    """Adds h_t = clip(scale (guide_logprob - ref_logprob), -clip, clip) to each token's reward: RTO (arXiv 2404.18922).

    The clip comes after the scale, in units of the reward. Variants of the paper: `ddpo` pays the sum of h at
    the last token; `rs_ppo` takes that sum away there, so that the total stays the outcome's (pure shaping);
    `semi` pays the sum of each sentence at its end. What ends a sentence was not at hand: a token whose text
    ends in one of `delimiters`, spaces aside. Scale 0 is PPO.
    """

    def apply(batch: Batch) -> Batch:
        guide, ref = batch.need("guide_logprob", "guide_reward"), batch.need("ref_logprob", "guide_reward")
        h = (scale * torch.where(batch.mask, guide - ref, 0.0)).clamp(-clip, clip)
        return replace(batch, token_reward=batch.need("token_reward", "guide_reward") + place(h, batch))

    def sentences(h: Tensor, batch: Batch) -> Tensor:
        out = torch.zeros_like(h)
        for i, texts in enumerate(batch.token_text):
            start = 0
            for t, text in enumerate(texts):
                if t == len(texts) - 1 or text.rstrip(" ").endswith(delimiters):
                    out[i, t] = h[i, start : t + 1].sum()
                    start = t + 1
        return out

    places: dict[str, Callable[[Tensor, Batch], Tensor]] = {
        "token": lambda h, batch: h,
        "ddpo": lambda h, batch: at_last_token(h.sum(1), batch),
        "rs_ppo": lambda h, batch: h - at_last_token(h.sum(1), batch),
        "semi": sentences,
    }
    place = places[variant]
    needs = ("token_reward", "guide_logprob", "ref_logprob", *(("token_text",) if variant == "semi" else ()))
    return Transform("guide_reward", apply, needs=needs, stage=Stage.REWARD)


def rto(
    *,
    guide_scale: Annotated[float, Ge(0)] = 0.05,
    guide_clip: Positive = 0.05,
    variant: Literal["token", "ddpo", "rs_ppo", "semi"] = "token",
    delimiters: tuple[str, ...] = SENTENCE_ENDS,
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
    """PPO whose tokens also earn what a DPO-trained guide says they are worth.

    `guide_scale` is the paper's beta1, `kl_coef` beta2 and `reward_coef` beta3; the guide is `model: {guide: ...}`.
    `guide_clip` bounds each token's reward after scaling, .inf does not. With few clipped tokens and many steps the
    optimum is the guide extrapolated by beta1 / beta2. `variant` and `delimiters`: see `guide_reward`.

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
    guide: Transform = guide_reward(scale=guide_scale, clip=guide_clip, variant=variant, delimiters=delimiters)
    rewards, advantages = base.chain
    return Objective("rto", (rewards, guide, advantages), base.losses)
