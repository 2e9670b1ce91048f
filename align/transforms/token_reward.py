"""Rewards of single tokens, and the returns and advantages that PPO computes from them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from align import ops
from align.batch import Batch
from align.ranges import ClipBound, Coef, Discount, Whitening
from align.transforms.transform import Stage, Transform


def at_last_token(value_B: Tensor, batch: Batch) -> Tensor:
    """[B,T] with each row's value at the last token that the policy chose, and 0 elsewhere and where it chose none."""
    place = torch.arange(batch.mask.shape[1]) == ops.up_to_last(batch.mask)[:, None] - 1
    return torch.where(place, value_B[:, None], 0.0)


def token_reward(
    *,
    kl_coef: Coef = 0.01,
    reward_coef: float = 1.0,
    reward_clip: ClipBound = 10.0,
) -> Transform:
    """Set each token's reward: -kl_coef * (old_logprob - ref_logprob), and the response's reward at its last token.

    The latter is reward_coef * clip(reward, -reward_clip, reward_clip). PPO from human feedback (arXiv 2203.02155) as
    OpenRLHF has it. The last token is the end token, or the last one of a response that was cut.
    """

    def apply(batch: Batch) -> Batch:
        old, ref = batch.need("old_logprob", "token_reward"), batch.need("ref_logprob", "token_reward")
        kl = torch.where(batch.mask, old - ref, 0.0)
        outcome = reward_coef * batch.need("reward", "token_reward").clamp(-reward_clip, reward_clip)
        reward = -kl_coef * kl + at_last_token(outcome.to(kl.dtype), batch)
        return replace(batch, token_reward=reward)

    needs = ("reward", "old_logprob", "ref_logprob")
    return Transform("token_reward", apply, needs=needs, gives=("token_reward",), stage=Stage.REWARD, scope="group")


def gae(
    *,
    gamma: Discount = 1.0,
    lam: Discount = 0.95,
    whitening: Whitening = "population",
) -> Transform:
    """Set advantages and returns by generalised advantage estimation (arXiv 1506.02438), over the kept rows.

    delta[t] = token_reward[t] + gamma * value[t+1] - value[t], advantage[t] = delta[t] + gamma * lam * advantage[t+1],
    returns = advantage + value; the value behind the last token is 0. t runs over the tokens of the policy: what
    others put in between is skipped, so a turn's end bootstraps from the next turn's first token. `whitening`
    then makes the advantages (A - mean) / sqrt(max(var, 1e-8)) over all of those tokens of the kept rows of the batch;
    the returns are not whitened.
    """

    def apply(batch: Batch) -> Batch:
        taking_part = batch.mask & batch.kept[:, None]
        reward = torch.where(taking_part, batch.need("token_reward", "gae"), 0.0)
        value = torch.where(taking_part, batch.need("value", "gae"), 0.0)
        advantage = torch.zeros_like(reward)
        follow_A, follow_V = torch.zeros_like(reward[:, 0]), torch.zeros_like(reward[:, 0])
        for t in reversed(range(reward.shape[1])):
            delta = reward[:, t] + gamma * follow_V - value[:, t]
            here = taking_part[:, t]
            follow_A = torch.where(here, delta + gamma * lam * follow_A, follow_A)
            follow_V = torch.where(here, value[:, t], follow_V)
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
        "gae",
        apply,
        needs=("token_reward", "value"),
        gives=("advantage", "returns"),
        stage=Stage.ADVANTAGE,
        scope="group" if whitening == "none" else "batch",
    )
