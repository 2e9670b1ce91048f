"""The family around GRPO: golden values A1, A4 to A6, and each objective at the limit where it is another."""

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import oracle
import pytest
import torch
from helpers import batch_of, loss_of, no_model, random_batch, widen, widened
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import fisher_exact

from align import objectives, ops
from align.batch import Batch
from align.config.experiment import load_experiment
from align.config.recipe_file import ConfigError
from align.credit import assign
from align.losses import Current, clipped_surrogate, sequence_surrogate
from align.losses.loss import TokensPerRow
from align.objectives import Objective, grpo
from align.objectives.cispo import weighted_logprob
from align.objectives.d3s import CountSchedule, FractionSchedule, max_variance_rows, scheduled, top_tokens
from align.objectives.gfpo import keep_top
from align.objectives.ktae import fisher_two_sided, information_gain, key_tokens
from align.transforms import group_advantage, leave_one_out_advantage, mask_truncated, outcome_advantage, sign_filter

OLD = [[-1, -0.5, -2], [-0.7, -1.2]]
NEW = torch.tensor([[-0.7, -0.6, -2.5], [-0.4, -1, 0]], dtype=torch.float64)


def a1(loss):
    batch = batch_of([0, 0], [3, 2], rewards=[1.0, -1.0], old_logprob=OLD)
    return float(loss_of(Objective("a1", grpo().chain, (loss,)), batch, NEW)[0])


@pytest.mark.parametrize("form", ["sequence", "token"])
def test_gspo_golden(form):
    assert a1(sequence_surrogate(form=form)) == pytest.approx(0.18959399933, abs=1e-10)


@pytest.mark.parametrize("low, high, golden", [(0.8, 1.2, 0.34058049016), (0, 5, 0.24855679684), (0, 0.28, 0.1344)])
def test_cispo_golden(low, high, golden):
    assert a1(weighted_logprob(ratio_low=low, ratio_high=high)) == pytest.approx(golden, abs=1e-10)


def test_dual_clip_golden():
    batch = batch_of([0, 0], [1, 1], rewards=[1.0, -1.0], old_logprob=[[0.0], [-math.log(5)]])
    new = torch.zeros(2, 1, dtype=torch.float64)
    plain = Objective("p", grpo().chain, (clipped_surrogate(aggregation="seq-mean-token-sum"),))
    dual = Objective("d", grpo().chain, (clipped_surrogate(dual_clip=3, aggregation="seq-mean-token-sum"),))
    assert float(loss_of(plain, batch, new)[0]) == pytest.approx((-1 + 5) / 2)
    loss, gradient = loss_of(dual, batch, new)
    assert float(loss) == pytest.approx((-1 + 3) / 2) and gradient[1, 0] == 0 and gradient[0, 0] != 0


def test_rloo_golden_and_its_link_to_dr_grpo():
    reward, group = torch.tensor([1.0, 0, 0, 1], dtype=torch.float64), [0] * 4
    batch = batch_of(group, [1] * 4, rewards=reward.tolist())
    advantage = leave_one_out_advantage().apply(batch).advantage[:, 0]
    np.testing.assert_allclose(advantage, [2 / 3, -2 / 3, -2 / 3, 2 / 3])
    np.testing.assert_allclose(advantage, group_advantage(std="none").apply(batch).advantage[:, 0] * 4 / 3)


# ---- KTAE (A4)

KTAE = [[5, 1, 2, 2, 9], [5, 1, 3, 9], [5, 1, 2, 9], [5, 4, 2, 9], [5, 4, 4, 3, 9], [5, 1, 4, 9]]


def ktae_batch(correct=(1, 1, 1, 0, 0, 0), rows=KTAE, group=None):
    batch = Batch.of(group or [0] * len(rows), rows, dtype=torch.float64)
    right = torch.tensor(correct, dtype=torch.bool)
    return replace(batch, correct=right, reward=right.double(), advantage=torch.zeros_like(batch.weight))


def key(batch, **args):
    return key_tokens(**args).apply(batch).advantage


def test_ktae_golden_keys():
    got = key(ktae_batch())
    np.testing.assert_allclose(got[0], [0, 0.646911707, 0.056615039, 0.056615039, 0], atol=1e-9)
    np.testing.assert_allclose(got[4], [0, -1, -1, 0, 0], atol=1e-9)
    np.testing.assert_allclose(key(ktae_batch(), combine="paper")[0, 1:3], [0.456055057, 0.056434152], atol=1e-9)
    table = key(ktae_batch(), combine="paper", fisher="table")
    np.testing.assert_allclose(table[0, 1:3], [0.478732371, 0.294913521], atol=1e-9)
    np.testing.assert_allclose(key(ktae_batch(), beta=2)[0, 1:3], [0.648521898, 0.075424012], atol=1e-9)


def test_ktae_golden_advantages():
    got = assign(objectives.ktae(), ktae_batch(), _with_old).batch.advantage
    np.testing.assert_allclose(got[0], [0.912869263, 1.559780969, 0.969484301, 0.969484301, 0.912869263], atol=1e-9)
    np.testing.assert_allclose(got[5, :4], [-0.912869263, -0.265957556, -1.912869263, -0.912869263], atol=1e-9)


def _with_old(batch, names, rows_B, reader):
    return replace(batch, old_logprob=torch.zeros_like(batch.weight)) if "old_logprob" in names else batch


def test_fisher_is_scipys_and_certainty_is_exact():
    """F = exp(-2p), and exactly 0 where p is 1: floats miss that in 20 of 25 cells at C = W = 8."""
    for C in range(1, 17):
        for W in range(1, 17):
            table = fisher_two_sided(C, W)
            for a in range(C + 1):
                for b in range(W + 1):
                    p = fisher_exact([[a, b], [C - a, W - b]]).pvalue
                    right = 0.0 if p > 1 - 1e-12 else math.exp(-2 * p)
                    assert float(table[a, b]) == pytest.approx(right, abs=1e-12), (C, W, a, b)
    assert float(information_gain(8, 8)[8, 4]) == pytest.approx(0.311278124, abs=1e-9)


def test_swapped_labels_negate_the_key_and_one_sided_groups_have_none():
    np.testing.assert_allclose(key(ktae_batch()), -key(ktae_batch((0, 0, 0, 1, 1, 1))), atol=1e-15)
    assert not key(ktae_batch((1,) * 6)).any() and not key(ktae_batch((0,) * 6)).any()


def test_keys_are_of_each_group_and_of_its_multiset():
    twice = ktae_batch((1, 1, 1, 0, 0, 0) * 2, [row for row in KTAE for _ in (0, 1)][::2] + KTAE, [0] * 6 + [1] * 6)
    got = key(twice)
    np.testing.assert_array_equal(got[:6], key(ktae_batch()))
    interleaved = twice.rows(torch.arange(12).view(2, 6).T.flatten())
    np.testing.assert_array_equal(key(interleaved), got[torch.arange(12).view(2, 6).T.flatten()])
    backwards = key(ktae_batch(rows=[row[::-1] for row in KTAE]))
    for i, row in enumerate(KTAE):
        np.testing.assert_array_equal(backwards[i, : len(row)].flip(0), got[i, : len(row)])


def test_keys_count_all_rows_and_go_to_kept_ones_but_not_to_special_tokens():
    batch = ktae_batch()
    some = replace(batch, kept=torch.tensor([1, 1, 0, 1, 1, 1]).bool(), special=batch.response_ids == 1)
    got, full = key(some), key(batch)
    assert not got[2].any() and not got[:, 1][batch.response_ids[:, 1] == 1].any()
    np.testing.assert_array_equal(got[0, 2:], full[0, 2:])
    np.testing.assert_array_equal(key(some, special="count")[0], full[0])


def test_min_count_and_rare_tokens():
    """A token seen once dominates; its size hangs on the length of all responses (golden)."""
    for tokens, golden in ((500, 0.9998921860), (5000, 0.4598947575)):
        rows = [[1] * (tokens // 8) for _ in range(16)]
        rows[0] = [2, *rows[0][1:]]
        rows[0] += [1] * (tokens - 8 * (tokens // 8))
        rows[8] += [1] * (tokens - 8 * (tokens // 8))
        batch = ktae_batch((1,) * 8 + (0,) * 8, rows)
        assert float(key(batch)[0, 0]) == pytest.approx(golden, abs=1e-8)
        assert float(key(batch, min_count=2)[0, 0]) == 0.0


def test_empty_responses_have_no_key_and_still_count():
    batch = ktae_batch((1, 0, 1, 0), [[5, 6], [6], [], []])
    assert key(batch).isfinite().all()


def test_ktae_without_weight_is_grpo():
    batch, logprob = random_batch(2)
    batch = replace(batch, correct=batch.reward > 1)
    base = grpo(std="sample", eps=1e-6)
    for a, b in zip(loss_of(objectives.ktae(weight=0), batch, logprob), loss_of(base, batch, logprob), strict=True):
        assert torch.equal(a, b)


# ---- D3S (A5)

D3S_REWARDS = [1.0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1]


def d3s_advantages():
    batch = batch_of([0] * 4 + [1] * 4 + [2] * 4, [1] * 12, rewards=D3S_REWARDS)
    return group_advantage(std="sample", eps=1e-6).apply(batch)


@pytest.mark.parametrize("number, golden", [(3, 1.2440122038), (4, 1.0998756835), (6, 0.8888856013), (8, 0.7499972010)])
def test_max_variance_golden(number, golden):
    advantage = d3s_advantages().advantage[:, 0]
    chosen = ops.max_variance_subset(advantage, number)
    assert len(set(chosen.tolist())) == number
    assert float(advantage[chosen].var(correction=0)) == pytest.approx(golden, abs=1e-9)


def test_max_variance_rows_of_batch_and_group():
    batch = d3s_advantages()
    assert max_variance_rows(rows=CountSchedule(start=1, end=1)).apply(batch).kept.sum() == 3
    assert ops.max_variance_subset(batch.advantage[:, 0], 4).sort().values.tolist() == [0, 4, 6, 7]
    kept = max_variance_rows(rows=2, scope="group").apply(batch).kept
    assert kept.view(3, 4).sum(1).tolist() == [2, 2, 2]


@given(values=st.lists(st.sampled_from([-1.5, -0.5, 0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=9), data=st.data())
def test_max_variance_is_brute_force(values, data):
    number = data.draw(st.integers(1, len(values)))
    x = torch.tensor(values, dtype=torch.float64)
    chosen = ops.max_variance_subset(x, number)
    assert len(set(chosen.tolist())) == number
    best = max(np.var([values[i] for i in subset]) for subset in combinations(range(len(values)), number))
    assert float(x[chosen].var(correction=0)) == pytest.approx(best, abs=1e-12)


def tokens_batch():
    entropy = [[0.1, 2, 0.5], [1.8, 0.3, 2.4, 0.2], [0.9, 0.05]]
    batch = batch_of([0, 0, 0], [3, 4, 2], entropy=entropy)
    advantage = torch.tensor([1.5, -0.5, 0.866025404], dtype=torch.float64)[:, None]
    return replace(batch, advantage=advantage * batch.mask)


def test_top_tokens_golden():
    batch = tokens_batch()
    assert top_tokens(share=0.5).apply(batch).selected.int().tolist() == [[0, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 0]]
    assert top_tokens(share=0.2).apply(batch).selected.int().tolist() == [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert torch.equal(top_tokens(share=1.0).apply(batch).selected, batch.mask)
    response = top_tokens(share=0.5, scope="response").apply(batch).selected.int()
    assert response.tolist() == [[0, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize(
    "denominator, aggregation, golden",
    [
        ("selected", "token-mean", -0.5732050808),
        ("full", "token-mean", -0.3184472671),
        ("selected", "seq-mean-token-mean", -0.6220084680),
    ],
)
def test_d3s_denominators_golden(denominator, aggregation, golden):
    batch = top_tokens(share=0.5).apply(tokens_batch())
    batch = replace(batch, old_logprob=torch.zeros_like(batch.weight))
    loss = clipped_surrogate(denominator=denominator, aggregation=aggregation)
    assert float(loss_of(Objective("l", (), (loss,)), batch, batch.old_logprob)[0]) == pytest.approx(golden, abs=1e-9)


def test_ties_of_tokens_go_to_the_first_and_the_number_is_exact():
    batch = replace(tokens_batch(), entropy=torch.zeros(3, 4, dtype=torch.float64))
    assert top_tokens(share=0.4).apply(batch).selected.int().tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_schedules():
    rows, share = CountSchedule(start=4, end=16), FractionSchedule(start=0.2, end=1.0)
    assert [math.floor(scheduled(rows, p) + 0.5) for p in (0.0, 0.25, 0.5, 1.0)] == [4, 7, 10, 16]
    assert [scheduled(share, p) for p in (0.25, 0.5)] == pytest.approx([0.4, 0.6])


@pytest.mark.parametrize("scope", ["batch", "group"])
def test_d3s_of_everything_is_grpo(scope):
    batch, logprob = random_batch(4)
    batch = replace(batch, entropy=torch.rand(batch.mask.shape, dtype=torch.float64))
    d3s = objectives.d3s(rows=4, share=1.0, row_scope=scope)
    for a, b in zip(loss_of(d3s, batch, logprob), loss_of(grpo(denominator="selected"), batch, logprob), strict=True):
        assert torch.equal(a, b)


# ---- negative gradients (A6) and the other limits


def test_negative_goldens():
    batch = batch_of([0] * 4, [1] * 4, rewards=[1.0, 0, 0, 1])
    n = sign_filter(sign="negative").apply(group_advantage(std="sample", eps=1e-6).apply(batch))
    np.testing.assert_allclose(n.advantage[:, 0], [0, -0.866023904, -0.866023904, 0], atol=1e-9)
    w = outcome_advantage(correct=0.1).apply(replace(batch, correct=torch.tensor([1, 1, 0, 0]).bool()))
    np.testing.assert_allclose(w.advantage[:, 0], [0.1, 0.1, -1, -1])


def test_nsr_denominators():
    """6 wrong of 8 at ratio 1: 1.0 over the wrong ones, 0.75 over all."""
    batch = batch_of([0] * 8, [3] * 8, rewards=[1.0, 1, 0, 0, 0, 0, 0, 0])
    batch = replace(batch, correct=batch.reward > 0, old_logprob=torch.zeros_like(batch.weight))
    assert float(loss_of(objectives.nsr(), batch, batch.old_logprob)[0]) == pytest.approx(1.0)
    assert float(loss_of(objectives.nsr(denominator="full"), batch, batch.old_logprob)[0]) == pytest.approx(0.75)


def outcomes(seed):
    batch, logprob = random_batch(seed)
    correct = batch.reward > 1
    return replace(batch, correct=correct, reward=torch.where(correct, 1.0, -1.0).double()), logprob


@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_limits_of_the_negative_line(seed):
    batch, logprob = outcomes(seed)

    def found(objective):
        return torch.cat([part.flatten() for part in loss_of(objective, batch, logprob)])

    one, zero = objectives.w_reinforce(positive_weight=1), objectives.w_reinforce(positive_weight=0)
    torch.testing.assert_close(found(one), found(objectives.reinforce()))
    torch.testing.assert_close(found(zero), found(objectives.nsr(denominator="full")))
    both = found(objectives.nsr(denominator="full")) + found(objectives.psr(denominator="full"))
    torch.testing.assert_close(both, found(one))
    positive = replace(grpo(), chain=(*grpo().chain, sign_filter(sign="positive")))
    torch.testing.assert_close(found(objectives.grpo_n()) + found(positive), found(grpo()))


def test_more_limits():
    batch, logprob = random_batch(6)
    batch = replace(batch, truncated=torch.zeros_like(batch.kept))

    def same(one, two, logprob=logprob, batch=batch):
        for a, b in zip(loss_of(one, batch, logprob), loss_of(two, batch, logprob), strict=True):
            torch.testing.assert_close(a, b)

    same(objectives.dapo(clip_high=0.2), grpo())
    same(objectives.dr_grpo(tokens_per_row=6), grpo(std="none", aggregation=TokensPerRow(tokens_per_row=6)))
    gradients = [loss_of(o, batch, batch.old_logprob)[1] for o in (objectives.cispo(), grpo())]
    torch.testing.assert_close(*gradients)
    first = batch.mask.clone()
    first[:, 1:] = False
    one = replace(batch, mask=first, selected=first, weight=first.double())
    gspo = objectives.gspo(clip_low=0.2, clip_high=0.2)
    same(gspo, grpo(aggregation="seq-mean-token-mean"), batch=one)
    for form in ("sequence", "token"):
        same(objectives.gspo(form=form), objectives.gspo())


def test_truncated_rows_are_masked_but_stay_in_the_statistics():
    batch = batch_of([0] * 4, [2] * 4, rewards=[1.0, 0, 0, 1])
    batch = replace(batch, truncated=torch.tensor([1, 0, 0, 0]).bool(), old_logprob=torch.zeros_like(batch.weight))
    credited = assign(objectives.dapo(), batch, no_model)
    assert credited.batch.advantage[:, 0].tolist() == [1, -1, -1, 1]
    assert not credited.terms[0].token_weights.weight[0].any() and credited.terms[0].token_weights.count == 6
    assert oracle.group_norm([1.0, 0, 0, 1]) == [1, -1, -1, 1]


# ---- invariants of all of them, composed ones too


def composed():
    """GFPO x KTAE x D3S x DAPO in one chain."""
    return Objective(
        "composed",
        chain=(
            keep_top(k=3),
            group_advantage(),
            max_variance_rows(rows=2),
            key_tokens(weight=0.5),
            mask_truncated(),
            top_tokens(share=0.6),
        ),
        losses=(clipped_surrogate(clip_high=0.28, denominator="selected"),),
    )


def gspo_of_tokens():
    """D3S on GSPO: the ratio is of the whole response, the loss of the chosen tokens."""
    base = objectives.gspo(form="token", denominator="selected")
    return replace(base, chain=(*base.chain, max_variance_rows(rows=2), top_tokens(share=0.4)))


FAMILY = {
    "ktae": objectives.ktae,
    "d3s": lambda: objectives.d3s(rows=2, share=0.5),
    "d3s_group_response": lambda: objectives.d3s(rows=2, share=0.5, row_scope="group", token_scope="response"),
    "dapo": lambda: objectives.dapo(dual_clip=1.2),
    "dr_grpo": lambda: objectives.dr_grpo(tokens_per_row=6),
    "gspo": objectives.gspo,
    "gspo_token": lambda: objectives.gspo(form="token"),
    "gspo_d3s": lambda: gspo_of_tokens(),
    "cispo": objectives.cispo,
    "rloo": objectives.rloo,
    "reinforce": objectives.reinforce,
    "nsr": objectives.nsr,
    "psr": objectives.psr,
    "w_reinforce": objectives.w_reinforce,
    "grpo_n": objectives.grpo_n,
    "composed": composed,
}
every_one = pytest.mark.parametrize("name", FAMILY)
few = settings(max_examples=10)


def family_batch(seed):
    """Rewards without ties, so that the order of rows decides nothing."""
    batch, logprob = random_batch(seed)
    generator = torch.Generator().manual_seed(seed)
    reward = torch.rand(12, generator=generator, dtype=torch.float64)
    lengths_differ = torch.arange(12) * 1e-3  # nor does a tie in length
    return (
        replace(
            batch,
            reward=reward + lengths_differ,
            correct=reward > 0.5,
            truncated=torch.rand(12, generator=generator) > 0.8,
            entropy=torch.rand(batch.mask.shape, generator=generator, dtype=torch.float64),
            response_ids=torch.randint(3, 9, batch.mask.shape, generator=generator),
        ),
        logprob,
    )


@every_one
@few
@given(seed=st.integers(0, 10_000))
def test_padding_and_masked_slots_change_nothing(name, seed):
    batch, logprob = family_batch(seed)
    loss, gradient = loss_of(FAMILY[name](), batch, logprob)
    wide = widened(batch, 3, math.nan)
    wide_loss, wide_gradient = loss_of(FAMILY[name](), wide, widen(logprob, batch.mask, 3, math.nan))
    torch.testing.assert_close(wide_loss, loss)
    torch.testing.assert_close(wide_gradient[:, : logprob.shape[1]], gradient)
    assert not wide_gradient[~wide.mask].any()


@pytest.mark.parametrize("name", [name for name in FAMILY if name != "composed"])  # shortest-k has ties in length
@few
@given(seed=st.integers(0, 10_000), order=st.permutations(range(12)))
def test_the_order_of_rows_changes_nothing(name, seed, order):
    batch, logprob = family_batch(seed)
    loss, gradient = loss_of(FAMILY[name](), batch, logprob)
    index = torch.tensor(order)
    moved_loss, moved = loss_of(FAMILY[name](), batch.rows(index), logprob[index])
    torch.testing.assert_close(moved_loss, loss)
    torch.testing.assert_close(moved, gradient[index])


@every_one
@few
@given(seed=st.integers(0, 10_000), cut=st.integers(1, 11))
def test_micro_batches_add_up(name, seed, cut):
    batch, logprob = family_batch(seed)
    loss, gradient = loss_of(FAMILY[name](), batch, logprob)
    credited = assign(FAMILY[name](), batch, no_model)
    parts, slopes = [], []
    for rows in (torch.arange(cut), torch.arange(cut, 12)):
        part = logprob[rows].clone().requires_grad_()
        share = sum(term.contribution(Current(part), credited.batch.rows(rows), rows) for term in credited.terms)
        parts.append(share.detach())
        slopes.append(torch.autograd.grad(share, part)[0])
    torch.testing.assert_close(sum(parts), loss)
    torch.testing.assert_close(torch.cat(slopes), gradient)


@every_one
@few
@given(seed=st.integers(0, 10_000))
def test_tokens_that_are_not_live_need_no_log_probability(name, seed):
    """The learner computes live tokens only and leaves 0 elsewhere."""
    batch, logprob = family_batch(seed)
    trained = assign(FAMILY[name](), batch, no_model).trained
    for a, b in zip(
        loss_of(FAMILY[name](), batch, logprob),
        loss_of(FAMILY[name](), batch, torch.where(trained, logprob, 0.0)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@every_one
@pytest.mark.parametrize("rewards", [[1.0] * 4, [0.0] * 4, [1.0, 0, 0, 0]])
@pytest.mark.parametrize("lengths", [[0, 0, 0, 0], [1, 1, 1, 1], [3, 0, 1, 2]])
def test_degenerate_groups_are_finite(name, rewards, lengths):
    batch = batch_of([0] * 4, lengths, rewards=rewards)
    shape = batch.mask.shape
    batch = replace(
        batch,
        correct=batch.reward > 0,
        truncated=torch.zeros(4, dtype=torch.bool),
        entropy=torch.zeros(shape, dtype=torch.float64),
        old_logprob=torch.full(shape, -1.0, dtype=torch.float64),
    )
    loss, gradient = loss_of(FAMILY[name](), batch, torch.full(shape, -0.5, dtype=torch.float64))
    assert loss.isfinite() and gradient.isfinite().all()


@few
@given(seed=st.integers(0, 10_000))
def test_composition_keeps_the_parts(seed):
    """No credit on rejected rows; rows chosen by the row's own advantage; tokens by all of their credit."""
    batch, _ = family_batch(seed)
    credited = assign(composed(), batch, no_model).batch
    first = assign(Objective("f", composed().chain[:3], composed().losses), batch, no_model).batch
    assert torch.equal(credited.kept, first.kept) and credited.kept.sum() == 6
    assert not credited.advantage[~keep_top(k=3).apply(batch).kept].any()
    assert not (credited.selected & batch.truncated[:, None]).any() and credited.active.any() != batch.truncated.all()


def test_the_composed_chain_in_yaml(tmp_path):

    text = """
model: {policy: some/model}
data: {prompts: prompts.jsonl}
rewards: {"rewards.length:length_penalty": 1.0}
run: {steps: 2, out: runs/test}
objective:
  chain:
    - keep_top: {k: 3}
    - group_advantage: {}
    - max_variance_rows: {rows: 2}
    - key_tokens: {weight: 0.5}
    - mask_truncated: {}
    - top_tokens: {share: 0.6}
  loss: {clipped_surrogate: {clip_high: 0.28, denominator: selected}}
"""
    (tmp_path / "recipe.yaml").write_text(text)
    (built,) = load_experiment(tmp_path / "recipe.yaml").objectives
    batch, logprob = family_batch(1)
    for a, b in zip(loss_of(built, batch, logprob), loss_of(composed(), batch, logprob), strict=True):
        assert torch.equal(a, b)
    rows, keep, share = "    - max_variance_rows: {rows: 2}\n", "    - keep_top: {k: 3}\n", "{share: 0.6}"
    wrongs = {
        text.replace("    - group_advantage: {}\n", ""): "max_variance_rows reads advantage, which no link before it",
        text.replace(keep, "").replace(
            share, f"{share}\n{keep}"
        ): r"keep_top \(filter\) cannot stand behind top_tokens",
        text.replace(rows, "").replace("    - mask", f"{rows}    - mask"): r"max_variance_rows \(rows\) cannot stand",
    }
    for wrong, why in wrongs.items():
        (tmp_path / "wrong.yaml").write_text(wrong)
        with pytest.raises(ConfigError, match=why):
            load_experiment(tmp_path / "wrong.yaml")
