"""PPO and RTO: golden values of token rewards, returns and losses, what must hold, and a bandit that is solved."""

import itertools
import math
from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
from helpers import batch_of, no_model, random_batch, result_of, widen, widened
from hypothesis import given, settings
from hypothesis import strategies as st

from align.batch import Batch
from align.credit import assign
from align.losses import Current, value_loss
from align.losses.loss import Constant
from align.objectives import Objective, ppo, rto
from align.objectives.rto import guide_reward
from align.transforms import gae, token_reward

INF = math.inf
VARIANTS = ("token", "ddpo", "rs_ppo", "semi")


def exactly(value):
    return pytest.approx(value, abs=5e-10)


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


def allclose(found, golden):
    np.testing.assert_allclose(found, golden, rtol=0, atol=5e-10)


def same(a, b):
    assert torch.equal(a, b), (a, b)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


# ---- golden values: three tokens and a column of padding with garbage in it

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


# ---- every token reward, as a loop


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
every_objective = pytest.mark.parametrize("name", OBJECTIVES)
seeds = st.integers(0, 10_000)
few = settings(max_examples=5)


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


@few
@given(seed=seeds, gamma=st.sampled_from([0.0, 0.9, 1.0]), lam=st.sampled_from([0.0, 0.95, 1.0]))
def test_advantages_and_returns_are_the_oracle_s(seed, gamma, lam):
    batch, logprob, _ = drawn(seed)
    batch = replace(batch, token_reward=logprob, kept=batch.group != 1)
    found = gae(gamma=gamma, lam=lam, whitening="none").apply(batch)
    for i, (rewards, values) in enumerate(token_lists(batch, "token_reward", "value")):
        n = len(rewards)
        if batch.kept[i]:
            advantages, returns = oracle.gae(rewards, values, gamma, lam)
            assert found.advantage[i, :n].tolist() == pytest.approx(advantages, abs=1e-12)
            assert found.returns[i, :n].tolist() == pytest.approx(returns, abs=1e-12)
        else:
            assert not found.advantage[i].any()
    assert not found.advantage[~batch.mask].any()


@few
@given(seed=seeds, clip=st.sampled_from([0.1, 0.3, INF]), mode=st.sampled_from(["token-mean", "seq-mean-token-mean"]))
def test_the_value_loss_is_the_oracle_s_and_its_gradient_finite_differences(seed, clip, mode):
    batch, logprob, value = drawn(seed)
    batch = replace(batch, returns=batch.value + logprob)
    objective = Objective("v", (), (value_loss(clip=clip, coef=0.7, aggregation=mode),))
    losses = [
        [oracle.value_error(*token, clip) for token in zip(*tokens, strict=True)]
        for tokens in token_lists(replace(batch, entropy=value), "entropy", "value", "returns")
    ]
    expected = 0.7 * oracle.aggregate(losses, [True] * 12, mode)
    loss, gradients, _ = result_of(objective, batch, logprob=logprob, value=value)
    assert float(loss) == pytest.approx(expected, rel=1e-12)
    assert not gradients["logprob"].any()

    def at(new):
        return float(result_of(objective, batch, logprob=logprob, value=new)[0])

    for i, t in batch.mask.nonzero().tolist()[::5]:
        step = torch.zeros_like(value)
        step[i, t] = 1e-6
        slope = (at(value + step) - at(value - step)) / 2e-6
        assert float(gradients["value"][i, t]) == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_a_clipped_value_that_is_too_good_gets_no_gradient():
    """The pessimistic one of the two counts: beyond the clip only moves away from the return are punished."""
    batch = replace(batch_of([0], [2], value=[[0.0, 0.0]]), returns=row(1.0, -1.0))
    _, gradients, _ = result_of(
        Objective("v", (), (value_loss(clip=0.2, aggregation="token-mean"),)),
        batch,
        logprob=row(-1, -1),
        value=row(0.5, 0.5),
    )
    assert gradients["value"].tolist() == [[0.0, 0.75]]


def test_the_value_loss_logs_what_the_head_says():
    _, _, metrics = result_of(rto(), golden(), logprob=NEW, value=NEW_VALUE)
    returns = COLUMNS["clip"][4]
    assert metrics["value"] == exactly((0.9 + 0.1 + 0.9) / 3) and metrics["returns"] == exactly(np.mean(returns))
    assert metrics["value_error"] == exactly(np.abs(np.array(returns) - [0.9, 0.1, 0.9]).mean())


# ---- limits


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


@few
@given(seed=seeds)
def test_with_gamma_and_lambda_1_and_no_value_it_is_reinforce(seed):
    """Reward-to-go of every token, the KL among them."""
    batch, _, _ = drawn(seed)
    batch = replace(batch, value=torch.zeros_like(batch.value))
    objective = ppo(lam=1, whitening="none", kl_coef=0.2)
    credited, rewards = assign(objective, batch, no_model).batch, rewarded(objective, batch)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    close(credited.advantage, torch.where(batch.mask, to_go, 0.0))
    close(torch.where(batch.mask, credited.returns, 0.0), credited.advantage)


# ---- where the outcome is paid


@pytest.mark.parametrize("truncated", [False, True])
def test_the_outcome_is_paid_at_the_last_token_alone(truncated):
    """Of a response that was cut, too; an empty response has none to pay at."""
    batch = batch_of([0] * 4, [3, 1, 0, 2], rewards=[1.0, -20.0, 5.0, 0.5])
    zeros = torch.zeros_like(batch.weight)
    batch = replace(batch, old_logprob=zeros, ref_logprob=zeros, truncated=torch.full((4,), truncated))
    found = token_reward(reward_coef=2, reward_clip=3).apply(batch).token_reward
    assert found.tolist() == [[0, 0, 2], [-6, 0, 0], [0, 0, 0], [0, 1, 0]]


@every_objective
@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [0, 2], [0, 0], [3, 0, 1]])
def test_short_and_empty_responses_stay_finite(name, lengths):
    """One token has no variance, and no token no mean."""
    batch = batch_of([0] * len(lengths), lengths, rewards=[1.0] * len(lengths))
    half = torch.full_like(batch.weight, -0.5)
    fields = dict.fromkeys(("old_logprob", "ref_logprob", "guide_logprob", "value"), half)
    batch = replace(batch, token_text=[["a"] * n for n in lengths], **fields)
    loss, gradients, _ = result_of(OBJECTIVES[name], batch, logprob=half - 0.1, value=half + 0.04)
    credited = assign(OBJECTIVES[name], batch, no_model).batch
    assert loss.isfinite() and credited.advantage.isfinite().all() and credited.returns.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert gradients["value"].any() == any(lengths)
    if sum(lengths) == 1 and name not in UNWHITENED:
        assert not credited.advantage.any()


@every_objective
def test_equal_advantages_are_whitened_to_0(name):
    batch = batch_of([0] * 3, [1, 1, 1], rewards=[0.7] * 3)
    zeros = torch.zeros_like(batch.weight)
    fields = dict.fromkeys(("old_logprob", "ref_logprob", "guide_logprob", "value"), zeros)
    batch = replace(batch, token_text=[["a"]] * 3, **fields)
    advantage = assign(OBJECTIVES[name], batch, no_model).batch.advantage
    assert advantage.abs().max() < 1e-6 if name not in UNWHITENED else (advantage == 0.7).all()


# ---- invariants


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in UNWHITENED])
@few
@given(seed=seeds)
def test_whitened_advantages_have_mean_0_and_variance_1_over_the_kept_tokens(name, seed):
    batch, _, _ = drawn(seed)
    batch = replace(batch, kept=batch.group != 1)
    credited = assign(OBJECTIVES[name], batch, no_model).batch
    taken = credited.advantage[batch.mask & batch.kept[:, None]]
    assert float(taken.mean()) == pytest.approx(0, abs=1e-12)
    assert float(taken.var(correction=int(name == "ppo other"))) == pytest.approx(1)
    assert not credited.advantage[~batch.kept].any()


@every_objective
@few
@given(seed=seeds, by=st.integers(0, 3), fill=st.sampled_from([0.0, 1e30, -1e30, torch.inf, -torch.inf, torch.nan]))
def test_padding_and_what_stands_in_masked_slots_change_nothing(name, seed, by, fill):
    batch, logprob, value = drawn(seed)
    loss, gradients, metrics = result_of(OBJECTIVES[name], batch, logprob=logprob, value=value)
    wide = {field: widen(v, batch.mask, by, fill) for field, v in (("logprob", logprob), ("value", value))}
    wide_loss, wide_gradients, wide_metrics = result_of(OBJECTIVES[name], widened(batch, by, fill), **wide)
    close(wide_loss, loss)
    assert wide_metrics == pytest.approx(metrics, rel=1e-12)
    for field, gradient in gradients.items():
        found, T = wide_gradients[field], gradient.shape[1]
        close(found[:, :T], gradient)
        assert not found[:, T:].any() and not found[:, :T][~batch.mask].any()


@every_objective
@few
@given(seed=seeds, fill=st.sampled_from([1e30, torch.nan]))
def test_dropped_rows_change_neither_credit_nor_the_loss_of_the_value(name, seed, fill):
    """Dropped by a link before: the whitening, too, is that of the kept rows. Both losses count all rows."""
    batch, logprob, value = drawn(seed)
    rows = (batch.group != 1).nonzero()[:, 0]
    alone = assign(OBJECTIVES[name], batch.rows(rows), no_model)
    dropped = (batch.group == 1)[:, None]
    garbage = {
        field: getattr(batch, field).masked_fill(dropped, fill)
        for field in ("old_logprob", "ref_logprob", "guide_logprob", "value")
    }
    found = assign(OBJECTIVES[name], replace(batch, kept=batch.group != 1, **garbage), no_model)
    close(found.batch.advantage[rows], alone.batch.advantage)
    close(found.batch.returns[rows], alone.batch.returns)
    current = Current(logprob.masked_fill(dropped, fill), value=value.masked_fill(dropped, fill))
    shares = [term.contribution(current, found.batch) for term in found.terms]
    expected = [term.contribution(Current(logprob[rows], value=value[rows]), alone.batch) for term in alone.terms]
    count = found.terms[0].token_weights.count / alone.terms[0].token_weights.count
    close(shares[0] * count, expected[0])
    close(shares[1] * count, expected[1])


@every_objective
@few
@given(seed=seeds, rng=st.randoms(use_true_random=False))
def test_permuting_rows_permutes_credit_and_gradient(name, seed, rng):
    batch, logprob, value = drawn(seed)
    loss, gradients, _ = result_of(OBJECTIVES[name], batch, logprob=logprob, value=value)
    order = torch.tensor(rng.sample(range(12), 12))
    found = result_of(OBJECTIVES[name], batch.rows(order), logprob=logprob[order], value=value[order])
    close(found[0], loss)
    for field, gradient in gradients.items():
        close(found[1][field], gradient[order])


@every_objective
@few
@given(seed=seeds, rng=st.randoms(use_true_random=False))
def test_micro_batches_sum_to_the_whole(name, seed, rng):
    batch, logprob, value = drawn(seed)
    loss, gradients, _ = result_of(OBJECTIVES[name], batch, logprob=logprob, value=value)
    credited = assign(OBJECTIVES[name], batch, no_model)
    order, total = rng.sample(range(12), 12), 0.0
    for start, end in itertools.pairwise([0, 4, 5, 12]):
        rows = torch.tensor(order[start:end])
        leaves = [field[rows].requires_grad_() for field in (logprob, value)]
        current, part = Current(leaves[0], value=leaves[1]), credited.batch.rows(rows)
        share = sum(term.contribution(current, part, rows) for term in credited.terms)
        for gradient, whole in zip(torch.autograd.grad(share, leaves), gradients.values(), strict=True):
            close(gradient, whole[rows])
        total += float(share.detach())
    assert total == pytest.approx(float(loss), rel=1e-12)


@every_objective
def test_each_loss_trains_its_own_part(name):
    """The policy's loss not the head, the head's loss not the policy's log-probabilities."""
    batch, logprob, value = drawn(7)
    for i, trained in enumerate(("logprob", "value")):
        alone = replace(OBJECTIVES[name], losses=OBJECTIVES[name].losses[i : i + 1])
        _, gradients, _ = result_of(alone, batch, logprob=logprob, value=value)
        assert [field for field, gradient in gradients.items() if gradient.any()] == [trained]


# ---- one step of a bandit: T = 1, three actions, exact expectations

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
