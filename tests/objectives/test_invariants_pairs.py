"""What must hold for every preference objective: its oracle, finite differences, padding, order, micro-batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import oracle
from support.batches import no_model, result_of, widen, widened
from support.compare import close, matrix
from support.draws import few, seeds
from support.pair_goldens import MASKS, P, fixture_b, read_b
from support.pair_objectives import EVERY, drawn, sides

from align.credit import assign
from align.losses import Current
from align.objectives import sparsepo, tdpo1

every_loss = pytest.mark.parametrize("name", EVERY)


@every_loss
@few
@given(seed=seeds)
def test_every_loss_is_the_oracle_s(name, seed):
    objective, batch, current = drawn(name, seed)
    expected = oracle.mean([EVERY[name][1](*pair) for pair in sides(batch, current)])
    assert float(result_of(objective, batch, **current)[0]) == pytest.approx(expected, rel=1e-12, abs=1e-13)


@every_loss
@settings(max_examples=3)
@given(seed=seeds)
def test_gradients_are_finite_differences(name, seed):
    objective, batch, current = drawn(name, seed, pairs=2, longest=3)
    _, gradients, _ = result_of(objective, batch, **current)
    step = 1e-5
    for field, value in current.items():
        expected = torch.zeros_like(value)
        for place in batch.mask.nonzero().tolist():
            at = torch.zeros_like(value).index_put(tuple(torch.tensor(place)), torch.tensor(step).double())
            up, down = (
                float(result_of(objective, batch, **{**current, field: x})[0]) for x in (value + at, value - at)
            )
            expected[tuple(place)] = (up - down) / (2 * step)
        if name == "tdpo2" and field == "ref_kl":
            assert (expected[batch.chosen[:, None] & batch.mask] < 0).all()
            expected[batch.chosen] = 0.0  # stopped
        np.testing.assert_allclose(gradients[field], expected, rtol=1e-6, atol=1e-8)
        assert gradients[field].any()


def test_gradients_of_logits_are_finite_differences():
    """Through the log-probabilities and the divergence of fixture B at once."""

    def loss_at(logits, objective):
        read = read_b(logits)
        current = Current(read["logprob"], ref_kl=read["ref_kl"], **MASKS)
        credited = assign(objective, fixture_b(), no_model)
        return sum(term.contribution(current, credited.batch) for term in credited.terms)

    for objective in (tdpo1(beta=0.8), sparsepo(beta=0.8, masks="independent")):
        logits = matrix(*P).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, o=objective: loss_at(x, o), logits)
        (gradient,) = torch.autograd.grad(loss_at(logits, objective), logits)
        assert gradient[:, :2].any() and not gradient[:, 2].any()


@every_loss
@few
@given(seed=seeds, by=st.integers(0, 3), fill=st.sampled_from([0.0, 1e4, -1e4, 1e30, torch.inf, -torch.inf, torch.nan]))
def test_padding_and_what_stands_in_masked_slots_change_nothing(name, seed, by, fill):
    objective, batch, current = drawn(name, seed)
    loss, gradients, metrics = result_of(objective, batch, **current)
    wide = {field: widen(value, batch.mask, by, fill) for field, value in current.items()}
    wide_loss, wide_gradients, wide_metrics = result_of(objective, widened(batch, by, fill), **wide)
    close(wide_loss, loss)
    assert wide_metrics == pytest.approx(metrics, rel=1e-12)
    for field, gradient in gradients.items():
        found, T = wide_gradients[field], gradient.shape[1]
        close(found[:, :T], gradient)
        assert not found[:, T:].any() and not found[:, :T][~batch.mask].any()


@every_loss
@few
@given(seed=seeds, fill=st.sampled_from([1e30, -torch.inf, torch.nan]))
def test_rows_and_tokens_taken_out_change_nothing(name, seed, fill):
    """The batch without its last pair, and without some tokens, whatever the model says about them."""
    objective, batch, current = drawn(name, seed)
    out = torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    out[:, 0] = False  # some token of each response is left
    taking_part = replace(batch, selected=batch.mask & ~out, kept=batch.group < 2)
    alone = replace(batch, mask=batch.mask & ~out, selected=batch.mask & ~out).rows((batch.group < 2).nonzero()[:, 0])
    rows = slice(0, 4)
    expected = result_of(objective, alone, **{field: value[rows] for field, value in current.items()})

    def garbage(value):
        return torch.where(taking_part.active, value, fill)

    given_garbage = {field: garbage(getattr(batch, field)) for field in ("ref_logprob", "guide_logprob", *MASKS)}
    found = result_of(
        objective, replace(taking_part, **given_garbage), **{field: garbage(value) for field, value in current.items()}
    )
    close(found[0], expected[0])
    assert found[2] == pytest.approx(expected[2], rel=1e-12)
    for field, gradient in found[1].items():
        close(gradient[rows], expected[1][field])
        assert not gradient[~taking_part.active].any()


@every_loss
@few
@given(seed=seeds, rng=st.randoms(use_true_random=False))
def test_the_order_of_rows_and_the_numbers_of_groups_do_not_matter(name, seed, rng):
    objective, batch, current = drawn(name, seed)
    loss, gradients, metrics = result_of(objective, batch, **current)
    order = torch.tensor(rng.sample(range(6), 6))
    renamed = replace(batch, group=torch.tensor(rng.sample([-5, 0, 3, 10**12], 3))[batch.group]).rows(order)
    found = result_of(objective, renamed, **{field: value[order] for field, value in current.items()})
    close(found[0], loss)
    assert found[2] == pytest.approx(metrics, rel=1e-12)
    for field, gradient in gradients.items():
        close(found[1][field], gradient[order])


@every_loss
@few
@given(seed=seeds, rng=st.randoms(use_true_random=False))
def test_the_order_of_tokens_does_not_matter(name, seed, rng):
    objective, batch, current = drawn(name, seed)
    loss, gradients, _ = result_of(objective, batch, **current)
    T = batch.mask.shape[1]
    order = torch.tensor([[*rng.sample(range(n), n), *range(n, T)] for n in batch.length.tolist()])
    fields = {name: getattr(batch, name).gather(1, order) for name in ("ref_logprob", "guide_logprob", *MASKS)}
    found = result_of(
        objective, replace(batch, **fields), **{field: value.gather(1, order) for field, value in current.items()}
    )
    close(found[0], loss)
    for field, gradient in gradients.items():
        close(found[1][field], gradient.gather(1, order))


@every_loss
@few
@given(seed=seeds)
def test_a_batch_is_the_mean_over_its_pairs(name, seed):
    """Of unequal lengths: neither a mean over tokens nor a broadcast over responses."""
    objective, batch, current = drawn(name, seed)
    loss, gradients, _ = result_of(objective, batch, **current)
    apart = []
    for pair in range(3):
        rows = torch.tensor([2 * pair, 2 * pair + 1])
        alone, longest = batch.rows(rows), int(batch.length[rows].max())
        cut = {f: v[:, :longest] for f, v in vars(alone).items() if isinstance(v, torch.Tensor) and v.dim() == 2}
        apart.append(
            result_of(objective, replace(alone, **cut), **{f: v[rows][:, :longest] for f, v in current.items()})
        )
        for field, gradient in apart[-1][1].items():
            close(3 * gradients[field][rows][:, :longest], gradient)
    close(loss, torch.stack([one[0] for one in apart]).mean())


@every_loss
@few
@given(seed=seeds, rng=st.randoms(use_true_random=False))
def test_micro_batches_of_whole_pairs_sum_to_the_batch(name, seed, rng):
    objective, batch, current = drawn(name, seed, pairs=4)
    loss, gradients, _ = result_of(objective, batch, **current)
    credited = assign(objective, batch, no_model)
    pairs, cut, total = rng.sample(range(4), 4), rng.randint(1, 3), 0.0
    for part in (pairs[:cut], pairs[cut:]):
        rows = torch.tensor(rng.sample([row for pair in part for row in (2 * pair, 2 * pair + 1)], 2 * len(part)))
        leaves = {field: value[rows].requires_grad_() for field, value in current.items()}
        shares = [term.contribution(Current(**leaves), credited.batch.rows(rows), rows) for term in credited.terms]
        found = torch.autograd.grad(sum(shares), list(leaves.values()), allow_unused=True, materialize_grads=True)
        for field, gradient in zip(leaves, found, strict=True):
            close(gradient, gradients[field][rows])
        total += float(sum(shares).detach())
    assert total == pytest.approx(float(loss), rel=1e-12)


@every_loss
def test_a_batch_without_pairs_has_a_loss_of_0_and_nothing_is_live(name):
    objective, batch, current = drawn(name, 3)
    nobody = replace(batch, kept=torch.zeros(6, dtype=torch.bool))
    loss, gradients, _ = result_of(objective, nobody, **current)
    assert loss == 0 and not any(gradient.any() for gradient in gradients.values())
    assert not assign(objective, nobody, no_model).trained.any()


@every_loss
def test_pairs_stay_together_and_what_is_live_can_have_a_gradient(name):
    objective, batch, current = drawn(name, 3)
    credited = assign(objective, batch, no_model)
    assert objective.pairs == (not name.startswith("sft")) and credited.coupled.all() == objective.pairs
    assert all(term.token_weights.count == 3 for term in credited.terms)
    _, gradients, _ = result_of(objective, batch, **current)
    assert torch.equal(gradients["logprob"] != 0, credited.trained)


@every_loss
@pytest.mark.parametrize("scale", [1e3, 1e-8])
def test_extreme_log_ratios_stay_finite(name, scale):
    objective, batch, current = drawn(name, 2)
    current["logprob"] = scale * current["logprob"]
    for batch_now in (batch, replace(batch, chosen=~batch.chosen)):
        loss, gradients, _ = result_of(objective, batch_now, **current)
        assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients.values())


@every_loss
def test_float32_is_within_a_part_in_a_million(name):
    objective, batch, current = drawn(name, 6)
    loss = float(result_of(objective, batch, **current)[0])
    small = {f: v.float() for f, v in vars(batch).items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    found, gradients, _ = result_of(objective, replace(batch, **small), **{f: v.float() for f, v in current.items()})
    assert float(found) == pytest.approx(loss, rel=1e-6)
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
