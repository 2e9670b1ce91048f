"""Golden columns and random batches of PPO and RTO, and the objectives that their invariants are tested on."""

import math
from dataclasses import replace

import torch

from align.objectives import ppo, rto
from support.batches import batch_of, random_batch, widened
from support.compare import row

INF = math.inf
VARIANTS = ("token", "ddpo", "rs_ppo", "semi")


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


OLD, REF, GUIDE = row(-0.9, -1.6, -0.4, -3), row(-1.1, -1.5, -0.7, -9), row(-0.6, -4.0, -0.3, -2)
VALUE = row(0.5, 0.4, 0.8, 7.7)
NEW, NEW_VALUE = row(-0.7, -1.9, -0.35, -1), row(0.9, 0.1, 0.9, 5)


def golden(reward=1.2, **changed):
    batch = widened(batch_of([0], [3], rewards=[reward]), 1, 7.7)
    fields = {"old_logprob": OLD, "ref_logprob": REF, "guide_logprob": GUIDE, "value": VALUE}
    text = [["a", "b", "c", "."]]
    return replace(batch, token_text=text, **{**fields, **changed})


def rewarded(objective, batch):
    """[B,T] token rewards before the advantages, 0 outside the responses."""
    for transform in objective.chain[:-1]:
        batch = transform.apply(batch)
    return torch.where(batch.mask, batch.token_reward, 0.0)


COLUMNS = {
    "clip": (
        rto(),
        [0.025, -0.05, 0.02],
        [0.023, -0.049, 1.217],
        [0.6327925, 0.74715, 0.417],
        [1.1327925, 1.14715, 1.217],
    ),
    "no clip": (
        rto(guide_clip=INF),
        [0.025, -0.125, 0.02],
        [0.023, -0.124, 1.217],
        [0.5615425, 0.67215, 0.417],
        [1.0615425, 1.07215, 1.217],
    ),
    "ppo": (ppo(), [0, 0, 0], [-0.002, 0.001, 1.197], [0.6372425, 0.77815, 0.397], [1.1372425, 1.17815, 1.197]),
    "scale 0": (
        rto(guide_scale=0),
        [0, 0, 0],
        [-0.002, 0.001, 1.197],
        [0.6372425, 0.77815, 0.397],
        [1.1372425, 1.17815, 1.197],
    ),
}


def drawn(seed):
    """(batch with all that PPO and RTO read, log-probabilities of now, values of now)"""
    batch, logprob = random_batch(seed)
    generator = torch.Generator().manual_seed(seed)

    def draw(scale):
        return scale * torch.randn(batch.mask.shape, generator=generator, dtype=torch.float64)

    texts = ["a", ". ", "b!", "?", " ", "\n", ".c"]
    places = torch.randint(len(texts), batch.mask.shape, generator=generator)
    text = [[texts[i] for i in r[:n]] for r, n in zip(places.tolist(), batch.length.tolist(), strict=True)]
    value = draw(1.0)
    batch = replace(batch, guide_logprob=batch.ref_logprob + draw(1.5), value=value, token_text=text)
    return replace(batch, reward=10 * batch.reward - 12), logprob, value + draw(0.3)


def token_lists(batch, *names):
    """For each row its values of each quantity, unpadded."""
    for i, n in enumerate(batch.length.tolist()):
        yield [getattr(batch, name)[i, :n].tolist() for name in names]


OBJECTIVES = {
    "ppo": ppo(),
    "ppo other": ppo(kl_coef=0.2, reward_coef=0.5, gamma=0.9, lam=0.7, whitening="sample", aggregation="token-mean"),
    "ppo plain": ppo(whitening="none", value_coef=0.3, value_clip=0.05, value_hidden="shared"),
    **{f"rto {variant}": rto(variant=variant, guide_clip=0.06) for variant in VARIANTS},
    "rto unclipped": rto(guide_clip=INF, guide_scale=0.4, whitening="none"),
    "rto sum": rto(aggregation="seq-mean-token-sum", kl_coef=0.1),
}

UNWHITENED = ("ppo plain", "rto unclipped")
