"""What must hold for every objective, whatever its arguments: padding, masked slots, row order, micro-batches."""

import itertools
from dataclasses import replace

import pytest
import torch
from helpers import batch_of, loss_of, no_model, random_batch, widen, widened
from hypothesis import given, settings
from hypothesis import strategies as st

from align.credit import assign
from align.losses import Current, entropy_bonus, kl_policy_ref
from align.losses.loss import Constant, TokensPerRow
from align.objectives import Objective, gfpo, grpo
from align.objectives.gfpo import AdaptiveK
from align.transforms import importance_weight

AGGREGATIONS = {
    "token-mean": "token-mean",
    "seq-mean-token-mean": "seq-mean-token-mean",
    "seq-mean-token-sum": "seq-mean-token-sum",
    "tokens_per_row": TokensPerRow(tokens_per_row=6),
    "constant": Constant(constant=10),
}
ADAPTIVE = AdaptiveK(very_hard=4, hard=3, medium=3, easy=2, warmup_prompts=1)
NAMED = {
    "grpo": grpo,
    "gfpo_shortest": lambda **args: gfpo(k=3, **args),
    "gfpo_token_efficiency": lambda **args: gfpo(k=3, metric="token_efficiency", **args),
    "gfpo_adaptive": lambda **args: gfpo(k=ADAPTIVE, **args),
}


def with_links(objective, aggregation, rows):
    """The objective with a KL term, an entropy bonus and importance weights."""
    kl = kl_policy_ref(coef=0.3, rows=rows, aggregation=aggregation)
    bonus = entropy_bonus(coef=0.2, rows=rows, aggregation=aggregation)
    return replace(
        objective,
        chain=(*objective.chain, importance_weight(high=1.1, level="token" if rows == "kept" else "sequence")),
        losses=(*objective.losses, kl, bonus),
        weight=0.7,
    )


def plain(name, aggregation, denominator):
    return NAMED[name](aggregation=AGGREGATIONS[aggregation], denominator=denominator)


def make(name, aggregation, denominator, transforms):
    """A fresh objective: adaptive ones remember the prompts they saw."""
    objective = plain(name, aggregation, denominator)
    return objective if transforms is None else with_links(objective, AGGREGATIONS[aggregation], transforms)


EVERY = list(itertools.product(NAMED, AGGREGATIONS, ["full", "selected"], [None, "kept", "all"]))
every_objective = pytest.mark.parametrize("case", EVERY, ids=["-".join(map(str, case)) for case in EVERY])
few = settings(max_examples=5, deadline=None)
seeds = st.integers(0, 10_000)


def sample(seed, tie_free=False):
    """(batch, logprob, entropy); without ties in length, reward or metric if asked."""
    batch, logprob = random_batch(seed)
    generator = torch.Generator().manual_seed(seed)
    if tie_free:
        lengths = torch.cat([torch.randperm(6, generator=generator)[:4] + 1 for _ in range(3)])
        rewards = torch.rand(12, generator=generator, dtype=torch.float64) * 2 - 1
        wide = batch_of([i // 4 for i in range(12)], [6, *lengths.tolist()[1:]], rewards=rewards.tolist())
        wide = replace(wide, mask=torch.arange(6) < lengths[:, None])
        wide = replace(wide, selected=wide.mask, weight=wide.mask.double())
        noise = {name: -2 * torch.rand(12, 6, generator=generator, dtype=torch.float64) for name in LOGPROBS}
        batch, logprob = (
            replace(wide, **noise),
            noise["old_logprob"] + 0.3 * torch.randn(12, 6, generator=generator, dtype=torch.float64),
        )
    entropy = torch.rand(logprob.shape, generator=generator, dtype=torch.float64) * 3
    return batch, logprob, entropy


LOGPROBS = ("old_logprob", "ref_logprob", "sampler_logprob")


def whole(objective, batch, logprob, entropy):
    """(loss, gradient of the log-probabilities, gradient of the entropy, what was credited)."""
    logprob, entropy = logprob.clone().requires_grad_(), entropy.clone().requires_grad_()
    credited = assign(objective, batch, no_model)
    loss = sum(term.contribution(Current(logprob, entropy), credited.batch) for term in credited.terms)
    gradients = torch.autograd.grad(loss, (logprob, entropy), allow_unused=True, materialize_grads=True)
    return loss.detach(), *gradients, credited


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@every_objective
@few
@given(seed=seeds, by=st.integers(1, 5), fill=st.sampled_from([0.0, 1e30, -1e30, torch.inf, -torch.inf, torch.nan]))
def test_padding_and_what_stands_in_masked_slots_change_nothing(case, seed, by, fill):
    batch, logprob, entropy = sample(seed)
    loss, gradient, slope, credited = whole(make(*case), batch, logprob, entropy)
    wide = widened(batch, by, fill)
    currents = [widen(value, batch.mask, by, fill) for value in (logprob, entropy)]
    wide_loss, wide_gradient, wide_slope, wide_credited = whole(make(*case), wide, *currents)
    length = logprob.shape[1]
    close(wide_loss, loss)
    close(wide_gradient[:, :length], gradient)
    close(wide_slope[:, :length], slope)
    for found in (wide_gradient, wide_slope):
        assert not found[:, length:].any() and not found[:, :length][~batch.mask].any()
    assert wide_credited.signal == credited.signal
    assert [term.token_weights.count for term in wide_credited.terms] == [
        term.token_weights.count for term in credited.terms
    ]


@every_objective
@few
@given(seed=seeds, rng=st.randoms(use_true_random=False))
def test_permuting_rows_permutes_credit_and_gradient(case, seed, rng):
    batch, logprob, entropy = sample(seed, tie_free=True)
    order = torch.tensor(rng.sample(range(12), 12))
    loss, gradient, slope, credited = whole(make(*case), batch, logprob, entropy)
    shuffled = whole(make(*case), batch.rows(order), logprob[order], entropy[order])
    close(shuffled[0], loss)
    close(shuffled[1], gradient[order])
    close(shuffled[2], slope[order])
    close(shuffled[3].batch.advantage, credited.batch.advantage[order])
    assert torch.equal(shuffled[3].batch.kept, credited.batch.kept[order])
    assert shuffled[3].signal == credited.signal


@every_objective
@few
@given(seed=seeds, rng=st.randoms(use_true_random=False))
def test_micro_batches_sum_to_the_whole(case, seed, rng):
    """Each row in one micro-batch, in any order, their width cut to their longest row, as ranks would have them."""
    batch, logprob, entropy = sample(seed)
    loss, gradient, slope, credited = whole(make(*case), batch, logprob, entropy)
    cuts = sorted(rng.sample(range(1, 12), rng.randint(0, 4)))
    order = rng.sample(range(12), 12)
    total = torch.zeros((), dtype=torch.float64)
    for start, end in itertools.pairwise([0, *cuts, 12]):
        rows = torch.tensor(order[start:end])
        part = credited.batch.rows(rows)
        logprob_leaf, entropy_leaf = logprob[rows].requires_grad_(), entropy[rows].requires_grad_()
        share = sum(term.contribution(Current(logprob_leaf, entropy_leaf), part, rows) for term in credited.terms)
        found = torch.autograd.grad(share, (logprob_leaf, entropy_leaf), allow_unused=True, materialize_grads=True)
        close(found[0], gradient[rows])
        close(found[1], slope[rows])
        total += share.detach()
    close(total, loss)
    halves = [slice(0, 5), slice(5, 12)]  # slices as rows
    parts = [
        term.contribution(Current(logprob[rows], entropy[rows]), credited.batch.rows(torch.arange(12)[rows]), rows)
        for rows in halves
        for term in credited.terms
    ]
    close(sum(parts), loss)


@every_objective
@few
@given(seed=seeds)
def test_gradient_goes_to_kept_tokens_and_reaches_the_last_one(case, seed):
    batch, _, entropy = sample(seed)
    on_policy = replace(batch, sampler_logprob=batch.old_logprob)  # ratio and importance weight are 1
    _, gradient, slope, credited = whole(make(*case), on_policy, batch.old_logprob, entropy)
    kept, transforms = credited.batch.kept, case[-1]
    assert not gradient[~batch.mask].any() and not slope[~batch.mask].any()
    if transforms != "all":
        assert not gradient[~kept].any() and not slope[~kept].any()
    assert not gradient[~credited.trained].any()  # what `live` leaves out is never computed
    first = credited.terms[0]
    assert torch.equal(first.token_weights.trained, (credited.batch.advantage != 0) & batch.mask & kept[:, None])
    if transforms is None:
        assert torch.equal(gradient != 0, first.token_weights.trained)
    last = batch.length - 1
    earning = kept & (credited.batch.advantage[:, 0] != 0)
    rows = earning.nonzero()[:, 0]
    assert (gradient[rows, last[rows]] != 0).all()
    if transforms is not None:
        rows = (kept if transforms == "kept" else torch.ones_like(kept)).nonzero()[:, 0]
        assert (slope[rows, last[rows]] < 0).all()  # more entropy lowers the loss, at the end token too


def test_the_end_token_of_some_row_is_trained():
    """The test above would be empty if no row earned anything."""
    batch, logprob, entropy = sample(0)
    _, gradient, _, credited = whole(gfpo(k=3), batch, logprob, entropy)
    assert credited.trained.any() and not credited.batch.kept.all() and (batch.length < 6).any()
    assert gradient[torch.arange(12), batch.length - 1].count_nonzero() >= 4


# ---- degenerate batches

DEGENERATE = {
    "constant group": ([0] * 4, [3, 2, 1, 4], [0.7] * 4),
    "all wrong": ([0] * 4 + [1] * 4, [3, 2, 1, 4] * 2, [0.0] * 8),
    "all wrong and negative": ([0] * 4, [3, 2, 1, 4], [-1.0] * 4),
    "one constant group of two": ([0] * 4 + [1] * 4, [3, 2, 1, 4] * 2, [1.0] * 4 + [0.0, 1, 0, 1]),
    "some empty responses": ([0] * 4, [0, 2, 0, 4], [1.0, 0, 0, 1]),
    "all responses empty": ([0] * 4, [0] * 4, [1.0, 0, 0, 1]),
    "one token each": ([0] * 4, [1] * 4, [1.0, 0, 0, 1]),
    "huge and tiny rewards": ([0] * 4, [3, 2, 1, 4], [1e30, -1e30, 1e-30, 0.0]),
    "nearly constant": ([0] * 4, [3, 2, 1, 4], [0.1 + 0.2, 0.3, 0.3, 0.3]),
}


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_degenerate_batches_stay_finite(name, aggregation):
    for case in EVERY:
        if case[1] == aggregation:
            for dtype in (torch.float32, torch.float64):
                check_degenerate(case, dtype, *DEGENERATE[name])


def check_degenerate(case, dtype, groups, lengths, rewards):
    batch = batch_of(groups, lengths, rewards=rewards, dtype=dtype)
    zeros = torch.zeros_like(batch.weight)
    batch = replace(batch, **dict.fromkeys(LOGPROBS, zeros - 0.5))
    loss, gradient, slope, credited = whole(make(*case), batch, zeros - 0.6, zeros + 1.0)
    assert loss.isfinite() and gradient.isfinite().all() and slope.isfinite().all()
    assert credited.batch.advantage.isfinite().all()
    assert credited.signal.with_gradient == int(credited.terms[0].token_weights.trained.sum())
    if len(set(rewards)) == 1 or not any(lengths):
        assert not credited.terms[0].token_weights.trained.any() and credited.signal.with_gradient == 0
        if case[-1] is None:
            assert loss == 0 and not gradient.any()


@pytest.mark.parametrize("std", ["population", "sample", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_seven_copies_of_a_reward_earn_exactly_nothing(std, dtype):
    """In float32 their mean is 0.6999999, and dividing the rest by itself would give 1 to each."""
    batch = batch_of([0] * 7, [2] * 7, rewards=[0.7] * 7, dtype=dtype)
    assert not assign(grpo(std=std), replace(batch, old_logprob=batch.weight), no_model).batch.advantage.any()


@pytest.mark.parametrize("objective", [grpo(), gfpo(k=2)], ids=["grpo", "gfpo"])
def test_a_group_of_one_earns_nothing(objective):
    batch = batch_of([0, 1, 1], [2, 2, 2], rewards=[1.0, 0.0, 1.0])
    credited = assign(objective, replace(batch, old_logprob=batch.weight), no_model)
    assert credited.batch.advantage[:, 0].tolist() == [0.0, -1.0, 1.0]


# ---- section 1(f) of the specification


@given(seed=seeds, factor=st.integers(2, 5))
def test_longer_responses_in_proportion_keep_the_same_rows(seed, factor):
    batch, _ = random_batch(seed)
    lengths, rewards = batch.length.tolist(), batch.reward.tolist()
    longer = batch_of(batch.group.tolist(), [factor * n for n in lengths], rewards=rewards)
    for metric in ("shortest", "token_efficiency"):
        transform = gfpo(k=3, metric=metric).chain[0]
        assert torch.equal(transform.apply(longer).kept, transform.apply(batch).kept)


@given(seed=seeds, shift=st.integers(-5, 5), scale=st.sampled_from([0.5, 2.0, 4.0]))
def test_shortest_sees_rewards_up_to_shift_and_scale(seed, shift, scale):
    batch, _ = random_batch(seed)
    batch = replace(batch, old_logprob=batch.weight)
    moved = replace(batch, reward=batch.reward * scale + shift)
    advantages = [assign(gfpo(k=3), b, no_model).batch.advantage for b in (batch, moved)]
    torch.testing.assert_close(*advantages, atol=1e-12, rtol=1e-9)


@given(seed=seeds, k=st.integers(2, 4))
def test_the_full_denominator_does_not_depend_on_k(seed, k):
    batch, _ = random_batch(seed)
    batch = replace(batch, old_logprob=batch.weight)
    counts = {}
    for name, aggregation in AGGREGATIONS.items():
        (term,) = assign(gfpo(k=k, aggregation=aggregation), batch, no_model).terms
        counts[name] = term.token_weights.count
    tokens = int(batch.mask.sum())
    assert list(counts.values()) == [tokens, 12, 12, 12, 10]


@given(seed=seeds, k=st.integers(2, 4))
def test_zero_mode_is_drop_mode_with_the_denominator_kept(seed, k):
    """Dropped rows with credit 0 and no dropped rows at all: the same gradient over the same count."""
    batch, logprob = random_batch(seed)
    _, gradient = loss_of(gfpo(k=k), batch, logprob)
    kept = assign(gfpo(k=k), batch, no_model).batch.kept.nonzero()[:, 0]
    alone = batch.rows(kept)
    _, dropped = loss_of(grpo(aggregation=Constant(constant=float(batch.mask.sum()))), alone, logprob[kept])
    expected = torch.zeros_like(gradient)
    expected[kept] = dropped
    close(gradient, expected)


@given(seed=seeds, k=st.integers(2, 4))
def test_counting_the_kept_rows_is_dropping_and_forgetting_the_rest(seed, k):
    batch, logprob = random_batch(seed)
    kept = assign(gfpo(k=k), batch, no_model).batch.kept.nonzero()[:, 0]
    for aggregation in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum"):
        loss, gradient = loss_of(gfpo(k=k, aggregation=aggregation, denominator="selected"), batch, logprob)
        alone, expected = loss_of(grpo(aggregation=aggregation), batch.rows(kept), logprob[kept])
        close(loss, alone)
        close(gradient[kept], expected)


@given(seed=seeds)
def test_links_over_kept_rows_see_nothing_of_dropped_ones(seed):
    """No pass over a model is spent on them: what was never computed is 0 there."""
    batch, logprob, entropy = sample(seed)
    objective = make("gfpo_shortest", "token-mean", "full", "kept")
    loss, gradient, slope, credited = whole(objective, batch, logprob, entropy)
    dropped = ~credited.batch.kept[:, None]
    hidden = replace(batch, ref_logprob=batch.ref_logprob.masked_fill(dropped, 0.0))
    again = whole(objective, hidden, logprob.masked_fill(dropped, 0.0), entropy.masked_fill(dropped, 0.0))
    close(again[0], loss)
    close(again[1], gradient)
    close(again[2], slope)


@given(seed=seeds)
def test_links_over_all_rows_pull_on_dropped_ones(seed):
    """As GFPO's equation 2 has it."""
    batch, logprob, entropy = sample(seed)
    _, gradient, slope, credited = whole(make("gfpo_shortest", "token-mean", "full", "all"), batch, logprob, entropy)
    dropped = batch.mask & ~credited.batch.kept[:, None]
    assert (gradient[dropped] != 0).all() and (slope[dropped] != 0).all()
    assert credited.trained[dropped].all()


def test_empty_responses_count_as_sequences_unless_only_what_is_selected_counts():
    batch = batch_of([0] * 4, [0, 2, 0, 4], rewards=[1.0, 0, 0, 1])
    batch = replace(batch, old_logprob=torch.zeros_like(batch.weight))
    for aggregation in ("seq-mean-token-mean", "seq-mean-token-sum"):
        for denominator, rows in (("full", 4), ("selected", 2)):
            (term,) = assign(grpo(aggregation=aggregation, denominator=denominator), batch, no_model).terms
            assert term.token_weights.count == rows


def test_an_empty_response_is_as_efficient_as_one_token():
    batch = batch_of([0] * 3, [0, 4, 4], rewards=[0.0, -1.0, 1.0])
    transform = gfpo(k=2, metric="token_efficiency").chain[0]
    assert transform.apply(batch).kept.tolist() == [True, False, True]
    batch = batch_of([0] * 3, [0, 1, 4], rewards=[-1.0, -2.0, -8.0])
    assert transform.apply(batch).kept.tolist() == [True, True, False]


def test_a_term_without_a_count_sends_a_gradient_of_zero():
    """All responses empty: 0 tokens over 0 tokens, not NaN."""
    batch = batch_of([0, 0], [0, 0], rewards=[1.0, 0.0])
    batch = replace(batch, old_logprob=torch.zeros_like(batch.weight))
    loss, gradient = loss_of(Objective("o", grpo().chain, grpo().losses), batch, torch.full((2, 1), -1.0))
    assert loss == 0 and not gradient.any()


def test_a_batch_without_a_quantity_says_who_needs_it():
    batch = batch_of([0, 0], [1, 2], rewards=[1.0, 0.0])
    with pytest.raises(LookupError, match="clipped_surrogate needs 'old_logprob'"):
        loss_of(grpo(), batch, torch.zeros(2, 2, dtype=torch.float64))
