"""What must hold for GRPO and GFPO, whatever their arguments: padding, masked slots, row order, micro-batches."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.batches import batch_of, loss_of, no_model, random_batch, widen, widened
from support.compare import close
from support.draws import few, seeds

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


def with_terms(objective, aggregation, rows):
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
    return objective if transforms is None else with_terms(objective, AGGREGATIONS[aggregation], transforms)


EVERY = list(itertools.product(NAMED, AGGREGATIONS, ["full", "selected"], [None, "kept", "all"]))

every_objective = pytest.mark.parametrize("case", EVERY, ids=["-".join(map(str, case)) for case in EVERY])


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


@pytest.mark.parametrize("objective", [grpo(), gfpo(k=2)], ids=["grpo", "gfpo"])
def test_a_group_of_one_earns_nothing(objective):
    batch = batch_of([0, 1, 1], [2, 2, 2], rewards=[1.0, 0.0, 1.0])
    credited = assign(objective, replace(batch, old_logprob=batch.weight), no_model)
    assert credited.batch.advantage[:, 0].tolist() == [0.0, -1.0, 1.0]


@given(seed=seeds)
def test_terms_over_kept_rows_see_nothing_of_dropped_ones(seed):
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
def test_terms_over_all_rows_pull_on_dropped_ones(seed):
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
