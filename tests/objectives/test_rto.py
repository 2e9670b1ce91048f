"""RTO: golden token rewards and returns, its variants, the limit that is PPO, and a bandit that is solved."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import oracle
from support.batches import batch_of, no_model, result_of
from support.compare import allclose, exactly, row, same
from support.draws import few, seeds
from support.token_rewards import (
    COLUMNS,
    INF,
    NEW,
    NEW_VALUE,
    VALUE,
    VARIANTS,
    close,
    drawn,
    golden,
    rewarded,
    token_lists,
)

from align.batch import Batch
from align.credit import assign
from align.losses import Current
from align.losses.loss import Constant
from align.objectives import ppo, rto, rto_reinforce
from align.objectives.rto import guide_reward
from align.transforms import gae


@pytest.mark.parametrize("name", COLUMNS)
def test_golden_columns(name):
    objective, tokens, rewards, advantages, returns = COLUMNS[name]
    plain = rewarded(ppo(), golden())
    allclose(rewarded(objective, golden()) - plain, [[*tokens, 0]])
    allclose(rewarded(objective, golden()), [[*rewards, 0]])
    bare = replace(objective, chain=(*objective.chain[:-1], gae(whitening="none")))
    credited = assign(bare, golden(), no_model).batch
    allclose(credited.advantage, [[*advantages, 0]])
    allclose(credited.returns[:, :3], [returns])
    allclose(assign(objective, golden(), no_model).batch.returns[:, :3], [returns])  # never whitened


def test_scale_0_is_no_scale_of_1():
    """In the released code it is: these would be the clipped log-ratios."""
    added = rewarded(rto(guide_scale=0), golden()) - rewarded(ppo(), golden())
    assert not added.any()
    allclose(rewarded(rto(guide_scale=1), golden()) - rewarded(ppo(), golden()), [[0.05, -0.05, 0.05, 0]])


def test_golden_whitening_and_losses():
    credited = assign(rto(), golden(), no_model)
    allclose(credited.batch.advantage, [[0.2470037759, 1.0824176164, -1.3294213923, 0]])
    actor, critic = (term.contribution(Current(NEW, value=NEW_VALUE), credited.batch) for term in credited.terms)
    assert (float(actor), float(critic)) == (exactly(0.0997676870), exactly(0.2307202451))
    doubled = rto(value_coef=2)
    total = result_of(doubled, golden(), logprob=NEW, value=NEW_VALUE)[0]
    assert float(total) == exactly(0.0997676870 + 2 * 0.2307202451)


def test_whitening_by_sample_variance():
    sample = assign(rto(whitening="sample"), golden(), no_model).batch.advantage
    allclose(sample * math.sqrt(3 / 2), [[0.2470037759, 1.0824176164, -1.3294213923, 0]])


def test_golden_reward_to_go():
    objective = rto(lam=1, whitening="none")
    batch = golden(value=torch.zeros_like(VALUE))
    assert float(assign(objective, batch, no_model).batch.advantage[0, 0]) == exactly(1.191)


def test_golden_variants():
    shaping = rewarded(rto(variant="rs_ppo", guide_clip=INF, kl_coef=0), golden())
    allclose(shaping, [[0.025, -0.125, 1.3, 0]])
    assert float(shaping.sum()) == exactly(1.2)
    allclose(rewarded(rto(variant="ddpo", guide_clip=INF, kl_coef=0), golden(reward=0)), [[0, 0, -0.08, 0]])


@few
@given(seed=seeds, clip=st.sampled_from([0.06, INF]), beta3=st.sampled_from([0.0, 1.0, -0.5]))
def test_token_rewards_are_the_oracle_s(seed, clip, beta3):
    batch, _, _ = drawn(seed)
    objective = rto(guide_scale=0.3, guide_clip=clip, kl_coef=0.2, reward_coef=beta3)
    found = rewarded(objective, batch)
    rows = token_lists(batch, "old_logprob", "ref_logprob", "guide_logprob")
    for i, (old, ref, guide) in enumerate(rows):
        expected = oracle.token_rewards(old, ref, guide, float(batch.reward[i]), 0.3, 0.2, beta3, clip)
        assert found[i, : len(old)].tolist() == pytest.approx(expected, abs=1e-12)
        assert not found[i, len(old) :].any()


@few
@given(seed=seeds, clip=st.sampled_from([0.06, INF]))
def test_variants_pay_the_same_clipped_rewards_elsewhere(seed, clip):
    batch, _, _ = drawn(seed)
    batch = replace(batch, reward=torch.zeros_like(batch.reward))
    found = {v: rewarded(rto(variant=v, guide_clip=clip, kl_coef=0), batch) for v in VARIANTS}
    for i, n in enumerate(batch.length.tolist()):
        h = found["token"][i, :n].tolist()
        expected = {
            "ddpo": [0.0] * (n - 1) + [sum(h)],
            "rs_ppo": [*h[:-1], h[-1] - sum(h)],
            "semi": oracle.paid_at_sentence_ends(h, batch.token_text[i], list(".!?\n")),
        }
        for variant, values in expected.items():
            assert found[variant][i, :n].tolist() == pytest.approx(values, abs=1e-12), variant
    assert not any(value[~batch.mask].any() for value in found.values())


def test_sentences_end_where_one_says():
    texts = [["One", " two.", " ", "x.y", "three. ", " four"]]
    batch = replace(batch_of([0], [6], guide_logprob=[[1.0, 2, 4, 8, 16, 32]]), token_text=texts)
    batch = replace(batch, ref_logprob=torch.zeros_like(batch.weight), token_reward=torch.zeros_like(batch.weight))
    ends = {".": [0, 3, 0, 0, 28, 32], " two.": [0, 3, 0, 0, 0, 60], "y": [0, 0, 0, 15, 0, 48], "none": [0] * 5 + [63]}
    for delimiter, expected in ends.items():
        transform = guide_reward(scale=1, variant="semi", delimiters=(delimiter,))
        assert transform.apply(batch).token_reward.tolist() == [expected]


@pytest.mark.parametrize("variant", VARIANTS)
@few
@given(seed=seeds)
def test_rto_without_a_guide_s_reward_is_ppo_bit_for_bit(variant, seed):
    batch, logprob, value = drawn(seed)
    loss, gradients, _ = result_of(ppo(), batch, logprob=logprob, value=value)
    unguided = replace(batch, guide_logprob=batch.ref_logprob)
    for objective, given_batch in ((rto(variant=variant, guide_scale=0), batch), (rto(variant=variant), unguided)):
        found = result_of(objective, given_batch, logprob=logprob, value=value)
        same(found[0], loss)
        for field in gradients:
            same(found[1][field], gradients[field])


@pytest.mark.parametrize("variant", VARIANTS)
@few
@given(seed=seeds)
def test_unclipped_rewards_of_a_response_sum_to_the_equation_s(variant, seed):
    batch, _, _ = drawn(seed)
    found = rewarded(rto(variant=variant, guide_clip=INF, guide_scale=0.3, kl_coef=0.2), batch).sum(1)
    h = torch.where(batch.mask, batch.guide_logprob - batch.ref_logprob, 0.0).sum(1)
    kl = torch.where(batch.mask, batch.old_logprob - batch.ref_logprob, 0.0).sum(1)
    expected = -0.2 * kl + batch.reward.clamp(-10, 10)
    close(found, expected if variant == "rs_ppo" else expected + 0.3 * h)


@few
@given(seed=seeds, scale=st.sampled_from([0.05, 1.0]), clip=st.sampled_from([0.01, 0.2]))
def test_the_guide_s_reward_of_a_token_stays_within_the_clip(seed, scale, clip):
    batch, _, _ = drawn(seed)
    batch = replace(batch, token_reward=torch.zeros_like(batch.weight))
    added = guide_reward(scale=scale, clip=clip).apply(batch).token_reward
    assert added.abs().max() <= clip
    bounded = (scale * (batch.guide_logprob - batch.ref_logprob)).abs() >= clip
    assert (added[bounded & batch.mask].abs() == clip).all() and not added[~batch.mask].any()


PI_REF, PI_DPO = row(0.5, 0.3, 0.2), row(0.4, 0.4, 0.2)


def optimum(objective, reward=(0.0, 0.0, 0.0)):
    """The policy where gradient descent stops; all actions are rows that count by their probability."""
    batch = Batch.of([0, 0, 0], [[0], [1], [2]], dtype=torch.float64)
    batch = replace(
        batch,
        reward=torch.tensor(reward, dtype=torch.float64),
        ref_logprob=PI_REF.log().T,
        guide_logprob=PI_DPO.log().T,
        value=torch.zeros(3, 1, dtype=torch.float64),
        token_text=[["."]] * 3,
    )
    logits = PI_REF[0].log().requires_grad_()
    for _ in range(400):
        logprob = logits.log_softmax(-1)[:, None]
        now = replace(batch, old_logprob=logprob.detach(), weight=logprob.detach().exp())
        credited = assign(objective, now, no_model)
        loss = credited.terms[0].contribution(Current(logprob), credited.batch)
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - 200 * gradient).detach().requires_grad_()
    return logits.softmax(-1).detach()


def bandit(**arguments):
    return rto(**{"guide_clip": INF, "whitening": "none", "aggregation": Constant(constant=1), **arguments})


def test_the_bandit_s_optimum_is_the_guide_extrapolated():
    allclose(optimum(bandit(guide_scale=0.05, kl_coef=0.01)), [0.1006365006, 0.7765162086, 0.1228472908])


@pytest.mark.parametrize("variant", ["token", "ddpo", "semi"])
def test_the_bandit_s_optimum_is_the_guide_where_its_scale_is_the_kl_s(variant):
    allclose(optimum(bandit(guide_scale=0.01, kl_coef=0.01, variant=variant)), PI_DPO[0])


def test_the_bandit_s_optimum_tilts_by_the_reward():
    reward = np.array([0.002, -0.004, 0.01])
    expected = np.array([0.5, 0.3, 0.2]) * np.array([0.8, 4 / 3, 1]) ** 2 * np.exp(reward / 0.01)
    allclose(optimum(bandit(guide_scale=0.02, kl_coef=0.01), reward), expected / expected.sum())


def test_the_bandit_without_a_guide_stays_at_the_reference_or_tilts_it():
    allclose(optimum(bandit(guide_scale=0, kl_coef=0.01)), PI_REF[0])
    shaped = optimum(bandit(variant="rs_ppo", kl_coef=0.01), (0.01, 0.0, 0.0))
    expected = np.array([0.5 * math.e, 0.3, 0.2])
    allclose(shaped, expected / expected.sum())  # in one step, shaping takes away all that it gives


# ---- on REINFORCE++


def test_golden_reinforce_without_a_critic():
    """Sums of the token rewards [0.023, -0.049, 1.217] from each token on; no value is read."""
    objective, batch = rto_reinforce(whitening="none"), golden(value=None)
    credited = assign(objective, batch, no_model)
    allclose(credited.batch.advantage, [[1.191, 1.168, 1.217, 0]])
    assert credited.batch.value is None and "value" not in objective.needs
    assert len(objective.losses) == 1 and not objective.losses[0].heads
    allclose(assign(rto_reinforce(), batch, no_model).batch.advantage.sum(), 0.0)  # whitened


@few
@given(seed=seeds, variant=st.sampled_from(VARIANTS), gamma=st.sampled_from([1.0, 0.9]))
def test_reinforce_is_rto_with_lam_1_and_a_value_of_0(seed, variant, gamma):
    batch, logprob, _ = drawn(seed)
    same_keys = {"variant": variant, "gamma": gamma, "guide_clip": 0.1, "kl_coef": 0.05}
    nothing = replace(batch, value=torch.zeros_like(batch.value))
    one, two = rto_reinforce(**same_keys), rto(lam=1.0, **same_keys)
    same(assign(one, batch, no_model).batch.advantage, assign(two, nothing, no_model).batch.advantage)
    actor = replace(two, losses=two.losses[:1])
    found = result_of(one, batch, logprob=logprob)
    expected = result_of(actor, nothing, logprob=logprob)
    same(found[0], expected[0])
    same(found[1]["logprob"], expected[1]["logprob"])


@few
@given(seed=seeds, gamma=st.sampled_from([1.0, 0.7]))
def test_the_credit_of_a_token_is_what_follows_it(seed, gamma):
    batch, _, _ = drawn(seed)
    objective = rto_reinforce(gamma=gamma, whitening="none")
    credited = assign(objective, batch, no_model).batch
    for rewards, advantages in token_lists(credited, "token_reward", "advantage"):
        for t, advantage in enumerate(advantages):
            expected = sum(gamma**n * reward for n, reward in enumerate(rewards[t:]))
            assert advantage == pytest.approx(expected, rel=1e-9, abs=1e-12)
