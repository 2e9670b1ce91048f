"""Rewards of single tokens and what follows from them: PPO's returns and advantages, RTO's guide."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from align.batch import Batch
from align.transforms.transform import Stage, Transform

SENTENCE_ENDS = (".", "!", "?", "\n")


def _at_last(value_B: Tensor, batch: Batch) -> Tensor:
    """[B,T] with each row's value at its last token and 0 elsewhere; nowhere in an empty response."""
    place = torch.arange(batch.mask.shape[1]) == batch.length[:, None] - 1
    return torch.where(place, value_B[:, None], 0.0)


def token_reward(
    *,
    kl_coef: Annotated[float, Ge(0)] = 0.01,
    reward_coef: float = 1.0,
    reward_clip: Annotated[float, Gt(0)] = 10.0,
) -> Transform:
    """r_t = -kl_coef (old_logprob - ref_logprob), and at the last token reward_coef * clip(R, -c, c) besides.

    PPO from human feedback (arXiv 2203.02155) as OpenRLHF has it. The last token is the end token, or the last
    one of a response that was cut.
    """

    def apply(batch: Batch) -> Batch:
        old, ref = batch.need("old_logprob", "token_reward"), batch.need("ref_logprob", "token_reward")
        kl = torch.where(batch.mask, old - ref, 0.0)
        outcome = reward_coef * batch.need("reward", "token_reward").clamp(-reward_clip, reward_clip)
        reward = -kl_coef * kl + _at_last(outcome.to(kl.dtype), batch)
        return replace(batch, token_reward=reward)

    needs = ("reward", "old_logprob", "ref_logprob")
    return Transform("token_reward", apply, needs=needs, gives=("token_reward",), stage=Stage.REWARD)


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
        "ddpo": lambda h, batch: _at_last(h.sum(1), batch),
        "rs_ppo": lambda h, batch: h - _at_last(h.sum(1), batch),
        "semi": sentences,
    }
    place = places[variant]
    needs = ("token_reward", "guide_logprob", "ref_logprob", *(("token_text",) if variant == "semi" else ()))
    return Transform("guide_reward", apply, needs=needs, stage=Stage.REWARD)


def gae(
    *,
    gamma: Annotated[float, Ge(0), Le(1)] = 1.0,
    lam: Annotated[float, Ge(0), Le(1)] = 0.95,
    whitening: Literal["population", "sample", "none"] = "population",
) -> Transform:
    """delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1}, R_t = A_t + V_t (arXiv 1506.02438).

    V behind the last token is 0. `whitening` then makes A (A - mean) / sqrt(max(var, 1e-8)) over all tokens of the
    kept rows of the whole batch; the returns are not whitened.
    """

    def apply(batch: Batch) -> Batch:
        taking_part = batch.mask & batch.kept[:, None]
        reward = torch.where(taking_part, batch.need("token_reward", "gae"), 0.0)
        value = torch.where(taking_part, batch.need("value", "gae"), 0.0)
        advantage = torch.zeros_like(reward)
        follow_A, follow_V = torch.zeros_like(reward[:, 0]), torch.zeros_like(reward[:, 0])
        for t in reversed(range(reward.shape[1])):
            follow_A = reward[:, t] + gamma * follow_V - value[:, t] + gamma * lam * follow_A
            follow_V = value[:, t]
            advantage[:, t] = follow_A
        advantage = torch.where(taking_part, advantage, 0.0)
        return replace(batch, returns=advantage + value, advantage=whiten(advantage, taking_part))

    def whiten(advantage: Tensor, taking_part: Tensor) -> Tensor:
        if whitening == "none" or not taking_part.any():
            return advantage
        taken = advantage[taking_part].double()
        correction = 1 if whitening == "sample" and len(taken) > 1 else 0
        scale = taken.var(correction=correction).clamp(min=1e-8).rsqrt()
        white = ((advantage.double() - taken.mean()) * scale).to(advantage.dtype)
        return torch.where(taking_part, white, 0.0)

    return Transform(
        "gae", apply, needs=("token_reward", "value"), gives=("advantage", "returns"), stage=Stage.ADVANTAGE
    )
