"""Losses of pairs: golden values, the limits where one is another, and what must hold for all of them."""

import math
from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
from helpers import batch_of, no_model, random_pairs, result_of, widen, widened
from hypothesis import given, settings
from hypothesis import strategies as st

from align.batch import MissingQuantity
from align.credit import assign
from align.losses import Current, PairError, pair_logistic
from align.objectives import Objective, bonbon, dpo, ipo, mapo, sft, simpo, sparsepo, tdpo1, tdpo2, tgdpo
from align.objectives.bonbon import best_of_n_beta
from align.objectives.sparsepo import mask_l1

LN2 = 0.6931471805599453


def exactly(value):
    return pytest.approx(value, abs=5e-10)


def matrix(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def allclose(found, golden):
    np.testing.assert_allclose(found, golden, rtol=0, atol=5e-10)


def same(a, b):
    """Bit for bit, but for the sign of a zero."""
    assert torch.equal(a, b), (a, b)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


# ---- fixture A: the third rejected token is padding and holds garbage

POLICY = matrix([-0.9, -1.6, -0.4], [-1.3, -0.8, -7.3])
REF = matrix([-1.1, -1.5, -0.7], [-1.0, -1.2, -9.9])
GUIDE = matrix([-0.6, -2.0, -0.3], [-1.8, -1.0, -5.5])


def fixture_a(**changed):
    batch = replace(batch_of([0, 0], [3, 2]), chosen=torch.tensor([True, False]))
    return replace(batch, **{"ref_logprob": REF, "guide_logprob": GUIDE, **changed})


def on_a(objective, policy=POLICY, **changed):
    """(loss, gradient of the log-probabilities, metrics)"""
    loss, gradients, metrics = result_of(objective, fixture_a(**changed), logprob=policy)
    return float(loss), gradients["logprob"], metrics


@pytest.mark.parametrize(
    "objective, golden",
    [
        (dpo(beta=0.1), 0.6782596763),
        (dpo(beta=1), 0.5543552445),
        (ipo(beta=0.1), 24.1736111111),
        (ipo(beta=0.1, form="mean"), 24.1736111111),
        (ipo(beta=0.1, form="sum"), 22.09),
        (simpo(beta=2, gamma_beta_ratio=0.5), 1.1942181493),
        (simpo(), 1.1942181493),
        (sft(form="sum"), 2.9),
        (sft(), 2.9 / 3),
        (tgdpo(beta=0.1, alpha=0.5, guide_beta=0.01), 0.6781143996),
    ],
)
def test_golden_losses_of_fixture_a(objective, golden):
    assert on_a(objective)[0] == exactly(golden)


@pytest.mark.parametrize(
    "beta, alpha, z, loss, good, bad",
    [
        (0.1, 0, 0.03, 0.6782596763, [-0.0492500562] * 3, [0.0492500562, 0.0492500562, 0]),
        (
            0.1,
            0.5,
            0.03295,
            0.6768078872,
            [-0.0504057326, -0.0479469164, -0.0501598510],
            [0.0511433775, 0.0486845613, 0],
        ),
        (0.1, 2, 0.0418, 0.6724655697, [-0.0538506673, -0.0440596369, -0.0528715643], [0.0567879765, 0.0469969460, 0]),
        (1, 1, 0.89, 0.3440546692, [-0.4366647412, -0.1455549137, -0.4075537584], [0.5239976894, 0.2328878619, 0]),
        (1, 2, 1.48, 0.2050917442, [-0.3708548386, 0, -0.3337693547], [0.4821112902, 0.1112564516, 0]),
    ],
)
def test_golden_tgdpo(beta, alpha, z, loss, good, bad):
    found, gradient, metrics = on_a(tgdpo(beta=beta, alpha=alpha))
    assert (found, metrics["logit"]) == (exactly(loss), exactly(z))
    allclose(gradient, [good, bad])


def test_the_guide_has_its_own_beta():
    assert on_a(tgdpo(beta=0.1, alpha=0.5, guide_beta=0.01))[2]["logit"] == exactly(0.030295)
    assert on_a(tgdpo(beta=0.1, alpha=0.5, guide_beta=0.1))[2]["logit"] == exactly(0.03295)


# ---- fixture B: logits of three tokens; the third rejected row is padding

P = [[[1, 0, -1], [0.5, 0.5, 0], [0, 0, 0]], [[0, 1, 0], [2, 0, 0], [9, 9, 9]]]
R = [[[0.5, 0, -0.5], [0, 1, 0], [0, 0, 0]], [[0, 0.5, 0.5], [1, 0, 0], [1, 2, 3]]]
Y = torch.tensor([[0, 1, 0], [2, 0, 0]])
MASKS = {  # the last ones are of padding
    "reward_mask": matrix([0.5, 0, 5], [1.2, 0.3, 5]),
    "kl_mask": matrix([0, 0.7, 5], [0.4, 0, 5]),
}
COMMON = dict.fromkeys(MASKS, MASKS["reward_mask"])


def read_b(logits=P):
    """{logprob, ref_logprob, ref_kl} of logits, by their definitions."""
    policy, ref = torch.as_tensor(logits, dtype=torch.float64).log_softmax(-1), matrix(*R).log_softmax(-1)
    picked = [x.gather(-1, Y[..., None])[..., 0] for x in (policy, ref)]
    return {"logprob": picked[0], "ref_logprob": picked[1], "ref_kl": (ref.exp() * (ref - policy)).sum(-1)}


def fixture_b(**changed):
    batch = replace(batch_of([0, 0], [2, 2]), chosen=torch.tensor([True, False]))
    batch = widened(batch, 1, 7.7)
    return replace(batch, ref_logprob=read_b()["ref_logprob"], **changed)


def on_b(objective, batch_masks=False, **current):
    """result_of fixture B, with the masks where they belong."""
    masks = {name: current.pop(name) for name in MASKS if name in current}
    fields = {name: value for name, value in read_b().items() if name != "ref_logprob"} | current
    if batch_masks:
        return result_of(objective, fixture_b(**masks), **fields)
    return result_of(objective, fixture_b(), **fields, **masks)


def test_fixture_b_is_that_of_the_specification():
    found = read_b()
    ratio = (found["logprob"] - found["ref_logprob"])[:, :2]
    allclose(ratio, [[0.2726637062, -0.4065753740], [-0.5934246260, 0.3118999477]])
    allclose(found["ref_kl"][:, :2], [[0.0672579599, 0.0886630376], [0.0934246260, 0.1119831675]])


@pytest.mark.parametrize(
    "objective, golden",
    [
        (dpo(beta=0.8), 0.6358441325),
        (tdpo1(beta=0.1), 0.6882529057),
        (tdpo1(beta=0.8), 0.6546667974),
        (tdpo2(beta=0.1), 0.6870225710),
        (tdpo2(beta=0.1, alpha=0.5), 0.6870225710),
        (tdpo2(beta=0.8, alpha=0.5), 0.6452066050),
    ],
)
def test_golden_losses_of_fixture_b(objective, golden):
    assert float(on_b(objective)[0]) == exactly(golden)


def test_golden_divergences_are_logged_by_side():
    metrics = on_b(tdpo1(beta=0.8))[2]
    assert metrics["kl_ref_policy/chosen"] == exactly(0.1559209975)
    assert metrics["kl_ref_policy/rejected"] == exactly(0.2054077935)


ONES, ZEROS = torch.ones(2, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)


@pytest.mark.parametrize(
    "arguments, reward_mask, kl_mask, golden",
    [
        ({}, ONES, ZEROS, 0.6358441325),
        ({}, ONES, ONES, 0.6546667974),
        ({}, ZEROS, ZEROS, 0.6931471806),
        ({}, *MASKS.values(), 0.4291706640),
        ({"l1_reward": 0.001, "l1_kl": 0.001}, *MASKS.values(), 0.4322706640),
        ({"l1_reward": 0.001, "l1_kl": 0.001, "masks": "common"}, *COMMON.values(), 0.4707258318),
    ],
)
def test_golden_sparsepo(arguments, reward_mask, kl_mask, golden):
    objective = sparsepo(**{"beta": 0.8, "masks": "independent", **arguments})
    assert float(on_b(objective, reward_mask=reward_mask, kl_mask=kl_mask)[0]) == exactly(golden)


def test_golden_gradients_of_the_masks():
    _, gradients, metrics = on_b(sparsepo(beta=0.8, masks="independent"), **MASKS)
    allclose(gradients["reward_mask"], [[-0.0761170600, 0.1134999688, 0], [-0.1656609840, 0.0870702866, 0]])
    allclose(gradients["kl_mask"], [[-0.0187757962, -0.0247512580, 0], [0.0260805076, 0.0312613277, 0]])
    assert metrics["logit"] == exactly(0.6236525567)  # the official code logs 0.5841417152


def test_mapo_reads_the_masks_of_the_batch_and_has_no_head():
    """Its golden is SparsePO's, whose masks come from the policy's side."""
    loss, gradients, metrics = on_b(mapo(beta=0.8), batch_masks=True, **MASKS)
    assert float(loss) == exactly(0.4291706640) and metrics["logit"] == exactly(0.6236525567)
    assert gradients["logprob"].any() and gradients["ref_kl"].any()
    assert not mapo().losses[0].heads and sparsepo().losses[0].heads


def test_common_masks_cost_half_of_each_coefficient():
    fields = {"l1_reward": 0.3, "l1_kl": 0.1}
    plain = on_b(sparsepo(), **COMMON)[0]
    norm = float(COMMON["reward_mask"][:, :2].sum())
    assert float(on_b(sparsepo(**fields), **COMMON)[0] - plain) == exactly(0.2 * norm)
    assert float(on_b(sparsepo(masks="independent", **fields), **COMMON)[0] - plain) == exactly(0.4 * norm)


# ---- BoNBoN


def on_bonbon(objective, policy=(-42.0, -55.0), ref=(-45.0, -50.0)):
    """The golden's sums, spread over two and three tokens: averages would be others."""

    def spread(best, worst):
        return matrix([0.25 * best, 0.75 * best, 1e6], [0.5 * worst, 0.2 * worst, 0.3 * worst])

    batch = replace(batch_of([0, 0], [2, 3]), chosen=torch.tensor([True, False]), ref_logprob=spread(*ref))
    loss, gradients, metrics = result_of(objective, batch, logprob=spread(*policy))
    return float(loss), gradients["logprob"], metrics


def test_golden_bonbon():
    loss, gradient, metrics = on_bonbon(bonbon(n=8))
    assert (loss, metrics["logit"]) == (exactly(102.7173875), exactly(8))
    allclose(gradient, [[-20.2035, -20.2035, 0], [20.1985] * 3])
    assert on_bonbon(bonbon(n=8, alpha=0))[0] == exactly(103.0225)
    assert on_bonbon(bonbon(n=8, alpha=1))[0] == exactly(42)
    assert on_bonbon(bonbon(n=8), policy=(-45, -50))[0] == exactly(328.0003875)


def test_golden_bonbon_as_the_code_computes_it():
    assert on_bonbon(bonbon(n=8, variant="code"))[0] == pytest.approx(0.7960682602, abs=1e-8)
    assert on_bonbon(bonbon(n=8, variant="code", alpha=0))[0] == pytest.approx(0.5890133268, abs=1e-8)


@pytest.mark.parametrize(
    "n, margin, beta",
    [
        (2, 1, 0.5),
        (3, 3, 0.1666667),
        (4, 5.5, 0.0909091),
        (6, 11.416667, 0.0437956),
        (8, 18.15, 0.0275482094),
        (16, 49.773435, 0.0100455),
        (32, 124.844601, 0.0040050),
    ],
)
def test_golden_margins_of_best_of_n(n, margin, beta):
    assert best_of_n_beta(n) == pytest.approx(beta, abs=5e-8)
    assert 1 / (2 * best_of_n_beta(n)) == pytest.approx(margin, abs=5e-7)
    _, gradient, _ = on_bonbon(bonbon(n=n, alpha=0), policy=(-45 + 1 / (2 * best_of_n_beta(n)), -50))
    assert gradient.abs().max() < 1e-9  # the loss is least where the difference is the margin


def test_best_of_one_has_no_beta():
    with pytest.raises(ValueError, match="n must be at least 2"):
        best_of_n_beta(1)


def test_bonbon_pushes_back_what_is_beyond_its_margin_and_dpo_does_not():
    beyond = {"policy": (-20.0, -50.0)}  # a difference of 25 where 18.15 is wanted
    back, on = (on_bonbon(objective, **beyond)[1] for objective in (bonbon(n=8, alpha=0), dpo(beta=0.0275)))
    assert (back[0, :2] > 0).all() and (back[1] < 0).all() and (on[0, :2] < 0).all() and (on[1] > 0).all()


# ---- what a slip would compute


@pytest.mark.parametrize(
    "found, mutant",
    [
        (lambda: on_a(tgdpo(beta=1, alpha=1))[0], 0.0000594705),  # a padded token counts
        (lambda: on_a(tgdpo(beta=1, alpha=1))[0], 0.5759394199),  # f of the rejected response has a plus
        (lambda: on_a(dpo(beta=0.1))[0], 0.6883929908),  # tokens are paired
        (lambda: float(on_b(sparsepo(beta=0.8, masks="independent"), **MASKS)[0]), 0.4431360457),  # D_w - D_l
        (lambda: on_bonbon(bonbon(n=8))[0], 0.7960682602),  # the flag is ignored
        (lambda: on_bonbon(bonbon(n=8, variant="code"))[0], 102.7173875),
    ],
)
def test_mutants_of_the_specification_are_far(found, mutant):
    assert abs(found() - mutant) > 1e-3


def test_the_mutants_are_reached_by_the_slip_and_by_nothing_less():
    """Their inputs, given on purpose: the third token counted, the guide or the KL turned round."""
    turned = torch.stack([GUIDE[0], 2 * REF[1] - GUIDE[1]])
    assert on_a(tgdpo(beta=1, alpha=1), guide_logprob=turned)[0] == exactly(0.5759394199)
    whole = torch.ones(2, 3, dtype=torch.bool)
    assert on_a(tgdpo(beta=1, alpha=1), mask=whole, selected=whole)[0] == exactly(0.0000594705)
    negative = on_b(sparsepo(beta=0.8, masks="independent"), **MASKS, ref_kl=-read_b()["ref_kl"])
    assert float(negative[0]) == exactly(0.4431360457)


# ---- every loss, and as a loop

FIELDS = ("logprob", "ref_kl", "reward_mask", "kl_mask")
L1 = {"l1_reward": 0.03, "l1_kl": 0.01}


EVERY = {  # name: (objective, oracle of a pair)
    "dpo": (dpo(beta=0.7), lambda w, x: oracle.dpo(w, x, 0.7)),
    "dpo conservative": (dpo(beta=0.7, label_smoothing=0.2), lambda w, x: oracle.dpo(w, x, 0.7, 0.2)),
    "dpo robust": (
        dpo(beta=0.7, label_smoothing=0.2, smoothing="robust"),
        lambda w, x: oracle.dpo(w, x, 0.7, 0.2, True),
    ),
    "ipo mean": (ipo(beta=0.3), lambda w, x: oracle.ipo(w, x, 0.3)),
    "ipo sum": (ipo(beta=0.3, form="sum"), lambda w, x: oracle.ipo(w, x, 0.3, sum)),
    "simpo": (simpo(), lambda w, x: oracle.simpo(w, x, 2.0, 0.5)),
    "simpo smoothed": (
        simpo(beta=1.5, gamma_beta_ratio=0.2, label_smoothing=0.1),
        lambda w, x: oracle.simpo(w, x, 1.5, 0.2, 0.1),
    ),
    "tdpo1": (tdpo1(beta=0.7), lambda w, x: oracle.tdpo(w, x, 0.7)),
    "tdpo2": (tdpo2(beta=0.7, alpha=0.4), lambda w, x: oracle.tdpo(w, x, 0.7, 0.4)),
    "tgdpo": (tgdpo(beta=0.7, alpha=2, guide_beta=0.9), lambda w, x: oracle.tgdpo(w, x, 0.7, 2, 0.9)),
    "tgdpo floor": (tgdpo(beta=0.7, alpha=2, floor=0.6), lambda w, x: oracle.tgdpo(w, x, 0.7, 2, 0.7, 0.6)),
    "sparsepo common": (sparsepo(beta=0.7, **L1), lambda w, x: oracle.sparsepo(w, x, 0.7, 0.015, 0.005)),
    "sparsepo independent": (
        sparsepo(beta=0.7, masks="independent", **L1),
        lambda w, x: oracle.sparsepo(w, x, 0.7, 0.03, 0.01),
    ),
    "mapo": (mapo(beta=0.7), lambda w, x: oracle.sparsepo(w, x, 0.7)),
    "bonbon": (bonbon(n=3, alpha=0.1), lambda w, x: oracle.bonbon(w, x, 3, 0.1)),
    "bonbon code": (
        bonbon(n=3, alpha=0.1, variant="code"),
        lambda w, x: 0.9 * oracle.dpo(w, x, best_of_n_beta(3)) - 0.1 * sum(w["logprob"]),
    ),
    "sft sum": (sft(form="sum"), lambda w, x: -sum(w["logprob"])),
    "sft mean": (sft(), lambda w, x: -oracle.mean(w["logprob"])),
    "half of dpo": (replace(dpo(beta=0.7), weight=0.5), lambda w, x: oracle.dpo(w, x, 0.7) / 2),
}
every_loss = pytest.mark.parametrize("name", EVERY)
seeds = st.integers(0, 10_000)
few = settings(max_examples=5)


def sides(batch, current):
    """[(chosen, rejected)] of the pairs as dictionaries of lists, from rows in any order."""
    quantities = {name: getattr(batch, name) for name in ("ref_logprob", "guide_logprob", "reward_mask", "kl_mask")}
    quantities |= current
    found = {}
    for i, group in enumerate(batch.group.tolist()):
        length = int(batch.length[i])
        row = {name: value[i, :length].tolist() for name, value in quantities.items()}
        found.setdefault(group, {})[bool(batch.chosen[i])] = row
    return [(pair[True], pair[False]) for pair in found.values()]


def drawn(name, seed, **sizes):
    """(objective, batch, fields of `Current` that it reads)"""
    objective, _ = EVERY[name]
    batch, current = random_pairs(seed, **sizes)
    reads = {"logprob"} | {field for loss in objective.losses for field in loss.reads_current}
    if name == "sparsepo common":
        current["kl_mask"] = current["reward_mask"]
    return objective, batch, {field: current[field] for field in FIELDS if field in reads}


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


# ---- limits


@few
@given(seed=seeds, beta=st.sampled_from([0.05, 0.1, 0.8]))
def test_tgdpo_without_alpha_or_with_the_reference_as_guide_is_dpo_bit_for_bit(seed, beta):
    batch, current = random_pairs(seed)
    loss, gradients, metrics = result_of(dpo(beta=beta), batch, logprob=current["logprob"])
    unguided = replace(batch, guide_logprob=batch.ref_logprob)
    for objective, given_batch in ((tgdpo(beta=beta, alpha=0), batch), (tgdpo(beta=beta, alpha=2.0), unguided)):
        found = result_of(objective, given_batch, logprob=current["logprob"])
        same(found[0], loss)
        same(found[1]["logprob"], gradients["logprob"])
        assert {name: found[2][name] for name in metrics} == metrics


@few
@given(seed=seeds, kl=st.sampled_from([0.0, 1.0]))
def test_masks_of_1_and_0_are_dpo_and_of_1_and_1_are_tdpo1_bit_for_bit(seed, kl):
    batch, current = random_pairs(seed)
    fields = {"logprob": current["logprob"], "ref_kl": current["ref_kl"]}
    loss, gradients, _ = result_of(tdpo1(beta=0.8) if kl else dpo(beta=0.8), batch, **fields)
    masks = {"reward_mask": torch.ones_like(fields["logprob"]), "kl_mask": torch.full_like(fields["logprob"], kl)}
    for kind in ("common", "independent"):
        found = result_of(sparsepo(beta=0.8, masks=kind), batch, **fields, **masks)
        same(found[0], loss)
        for field in fields:
            same(found[1][field], gradients[field])
    found = result_of(mapo(beta=0.8), replace(batch, **masks), **fields)
    same(found[0], loss)
    for field in fields:
        same(found[1][field], gradients[field])


@few
@given(seed=seeds)
def test_tdpo2_is_tdpo1_in_value_at_alpha_1_and_dpo_at_alpha_0(seed):
    batch, current = random_pairs(seed)
    fields = {"logprob": current["logprob"], "ref_kl": current["ref_kl"]}
    one, two, none, plain = (
        result_of(objective, batch, **fields)
        for objective in (tdpo1(beta=0.8), tdpo2(beta=0.8, alpha=1), tdpo2(beta=0.8, alpha=0), dpo(beta=0.8))
    )
    same(two[0], one[0])
    same(two[1]["logprob"], one[1]["logprob"])
    rejected = ~batch.chosen
    same(two[1]["ref_kl"][rejected], one[1]["ref_kl"][rejected])
    assert not two[1]["ref_kl"][batch.chosen].any()
    assert (one[1]["ref_kl"][batch.chosen[:, None] & batch.mask] < 0).all()
    same(none[0], plain[0])
    same(none[1]["logprob"], plain[1]["logprob"])
    assert not none[1]["ref_kl"].any()


@few
@given(seed=seeds, n=st.integers(2, 16))
def test_bonbon_is_sft_at_alpha_1_and_ipo_at_alpha_0(seed, n):
    batch, current = random_pairs(seed)
    limits = {1: sft(form="sum"), 0: ipo(form="sum", beta=best_of_n_beta(n))}
    for alpha, limit in limits.items():
        loss, gradients, _ = result_of(limit, batch, logprob=current["logprob"])
        found = result_of(bonbon(n=n, alpha=alpha), batch, logprob=current["logprob"])
        same(found[0], loss)
        same(found[1]["logprob"], gradients["logprob"])


@few
@given(seed=seeds, smoothing=st.sampled_from(["conservative", "robust"]))
def test_no_label_smoothing_is_the_plain_loss(seed, smoothing):
    batch, current = random_pairs(seed)
    loss, gradients, _ = result_of(dpo(beta=0.8), batch, logprob=current["logprob"])
    found = result_of(dpo(beta=0.8, smoothing=smoothing, label_smoothing=0), batch, logprob=current["logprob"])
    same(found[0], loss)
    same(found[1]["logprob"], gradients["logprob"])


@few
@given(seed=seeds, wrong=st.floats(0.01, 0.4))
def test_robust_smoothing_is_unbiased_under_swapped_labels(seed, wrong):
    """Its mean over right and wrong labels is the loss of the right ones (arXiv 2403.00409)."""
    batch, current = random_pairs(seed)
    swapped = replace(batch, chosen=~batch.chosen)
    robust = dpo(beta=0.8, label_smoothing=wrong, smoothing="robust")
    right, turned = (float(result_of(robust, b, logprob=current["logprob"])[0]) for b in (batch, swapped))
    plain = float(result_of(dpo(beta=0.8), batch, logprob=current["logprob"])[0])
    assert (1 - wrong) * right + wrong * turned == pytest.approx(plain, rel=1e-9)


@few
@given(seed=seeds, length=st.integers(1, 5))
def test_simpo_without_a_margin_is_dpo_with_a_uniform_reference(seed, length):
    batch, current = random_pairs(seed)
    batch = replace(batch_of(batch.group.tolist(), [length] * 6), chosen=batch.chosen)
    batch = replace(batch, ref_logprob=torch.full_like(batch.weight, -3.0))
    logprob = widen(current["logprob"], torch.ones(6, current["logprob"].shape[1]).bool(), 5, -1.0)[:, :length]
    loss, gradients, _ = result_of(simpo(beta=2, gamma_beta_ratio=0), batch, logprob=logprob)
    expected = result_of(dpo(beta=2 / length), batch, logprob=logprob)
    close(loss, expected[0])
    close(gradients["logprob"], expected[1]["logprob"])


# ---- policy = reference


@pytest.mark.parametrize(
    "objective, value",
    [
        (dpo(), LN2),
        (dpo(label_smoothing=0.3), LN2),
        (dpo(label_smoothing=0.3, smoothing="robust"), LN2),
        (tdpo1(), LN2),
        (tdpo2(), LN2),
        (tgdpo(beta=0.8, alpha=2), LN2),
        (sparsepo(), LN2),
        (mapo(), LN2),
        (ipo(beta=0.1), 25.0),
        (ipo(beta=0.1, form="sum"), 25.0),
        (ipo(beta=0.4), 1 / (4 * 0.4**2)),
        (bonbon(n=8, alpha=0), 18.15**2),
        (bonbon(n=8, alpha=0, variant="code"), LN2),
    ],
)
@few
@given(seed=seeds)
def test_the_reference_itself_has_a_known_loss(objective, value, seed):
    batch, current = random_pairs(seed)
    fields = {"logprob": batch.ref_logprob, "ref_kl": torch.zeros_like(batch.ref_logprob)}
    reads = {name for loss in objective.losses for name in loss.reads_current}
    masks = {name: current[name] for name in MASKS if name in reads}
    loss, gradients, metrics = result_of(objective, batch, **fields, **masks)
    assert float(loss) == pytest.approx(value, rel=1e-15)
    assert metrics["margin"] == 0 and metrics["accuracy"] == 0
    assert gradients["logprob"].any()
    assert not any(gradients[name].any() for name in masks)  # masks start to move behind the policy


def test_the_reference_itself_pays_for_its_masks():
    batch, current = random_pairs(5)
    fields = {"logprob": batch.ref_logprob, "ref_kl": torch.zeros_like(batch.ref_logprob)}
    masks = {name: current[name] for name in MASKS}
    loss, gradients, _ = result_of(sparsepo(masks="independent", l1_reward=0.5, l1_kl=0.25), batch, **fields, **masks)
    norms = [float(mask[batch.mask].sum()) / 3 for mask in masks.values()]
    assert float(loss) == pytest.approx(LN2 + 0.5 * norms[0] + 0.25 * norms[1], rel=1e-12)
    close(gradients["kl_mask"], batch.mask.double() * 0.25 / 3)


# ---- TGDPO's identities


def logits_of(objective, batch, **fields):
    """[P] the margin of each pair, in the order of their groups."""
    credited = assign(objective, batch, no_model)
    term = credited.terms[0]
    return term.loss.measure(Current(**fields), credited.batch, term.token_weights)["logit"]


@few
@given(seed=seeds, alpha=st.floats(0, 3))
def test_both_orders_of_a_pair_sum_to_what_the_label_does_not_decide(seed, alpha):
    batch, current = random_pairs(seed)
    objective, logprob = tgdpo(beta=0.8, alpha=alpha, guide_beta=0.5), current["logprob"]
    both = logits_of(objective, batch, logprob=logprob)
    both = both + logits_of(objective, replace(batch, chosen=~batch.chosen), logprob=logprob)
    product = (batch.guide_logprob - batch.ref_logprob) * (logprob - batch.ref_logprob) * batch.mask
    np.testing.assert_allclose(both, 2 * alpha * 0.8 * 0.5 * product.sum(1).view(3, 2).sum(1), atol=1e-12)


def test_both_orders_of_fixture_a_sum_to_its_golden():
    turned = fixture_a(chosen=torch.tensor([False, True]))
    z = [float(logits_of(tgdpo(beta=1, alpha=1), batch, logprob=POLICY)) for batch in (fixture_a(), turned)]
    assert z == [exactly(0.89), exactly(0.29)]


@few
@given(seed=seeds)
def test_tgdpo_s_margin_is_affine_in_alpha(seed):
    batch, current = random_pairs(seed)
    z = [logits_of(tgdpo(beta=0.8, alpha=alpha), batch, logprob=current["logprob"]) for alpha in (0, 1, 3)]
    np.testing.assert_allclose(z[2] - z[0], 3 * (z[1] - z[0]), atol=1e-12)


@few
@given(seed=seeds, h=st.floats(-2, 2), alpha=st.sampled_from([0.5, 2.0]))
def test_a_constant_guide_scales_the_log_ratio_of_its_side(seed, h, alpha):
    batch, current = random_pairs(seed)
    constant = torch.where(batch.chosen[:, None], batch.ref_logprob + h, batch.ref_logprob)
    found = logits_of(tgdpo(beta=0.8, alpha=alpha), replace(batch, guide_logprob=constant), logprob=current["logprob"])
    scale = 1 + batch.chosen[:, None].double() * (alpha * 0.8 * h)
    scaled = batch.ref_logprob + scale * (current["logprob"] - batch.ref_logprob)
    np.testing.assert_allclose(found, logits_of(dpo(beta=0.8), batch, logprob=scaled), atol=1e-12)


def test_the_guide_amplifies_where_it_agrees_and_damps_where_it_does_not():
    """Good and bad tokens of the chosen and of the rejected response: four regimes of the gradient."""
    plain, guided = on_a(dpo(beta=0.1))[1].abs(), on_a(tgdpo(beta=0.1, alpha=0.5))[1].abs()
    share = guided / plain * (plain[0, 0] / guided[0, 0])  # of the first token; sigmoid(-z) is common to all
    f = torch.tensor([[1.025, 0.975, 1.02], [1.04, 0.99, 1.0]]).double()
    np.testing.assert_allclose(share[:, :2], f[:, :2] / 1.025, rtol=1e-6)


# ---- masks


@few
@given(seed=seeds, c=st.floats(0.1, 5))
def test_masks_of_c_are_c_times_beta(seed, c):
    batch, current = random_pairs(seed)
    scaled = {**current, **{name: c * current[name] for name in MASKS}}
    close(
        result_of(sparsepo(beta=0.3, masks="independent"), batch, **scaled)[0],
        result_of(sparsepo(beta=0.3 * c, masks="independent"), batch, **current)[0],
    )


@few
@given(seed=seeds)
def test_a_common_mask_is_two_equal_ones(seed):
    batch, current = random_pairs(seed)
    current["kl_mask"] = current["reward_mask"]
    common, apart = (
        result_of(objective, batch, **current)
        for objective in (sparsepo(**L1), sparsepo(masks="independent", l1_reward=0.015, l1_kl=0.005))
    )
    same(common[0], apart[0])
    for field in FIELDS:
        same(common[1][field], apart[1][field])


@few
@given(seed=seeds)
def test_the_kl_mask_rises_on_chosen_and_falls_on_rejected_tokens(seed):
    """Whatever they say: the divergence is never negative. Gradients point uphill."""
    batch, current = random_pairs(seed)
    gradient = result_of(sparsepo(masks="independent"), batch, **current)[1]["kl_mask"]
    assert (gradient[batch.chosen[:, None] & batch.mask] < 0).all()
    assert (gradient[~batch.chosen[:, None] & batch.mask] > 0).all()


def test_masks_of_0_stop_all_learning():
    batch, current = random_pairs(1)
    none = {name: torch.zeros_like(current[name]) for name in MASKS}
    loss, gradients, _ = result_of(sparsepo(), batch, **{**current, **none})
    assert float(loss) == LN2 and not gradients["logprob"].any() and not gradients["ref_kl"].any()


# ---- what is logged


def test_margin_and_accuracy_are_dpo_s_whatever_the_loss():
    for objective in (dpo(beta=0.1), tgdpo(beta=0.1, alpha=2), ipo(beta=0.1), ipo(beta=0.1, form="sum")):
        metrics = on_a(objective)[2]
        assert metrics["margin"] == exactly(0.03) and metrics["accuracy"] == 1
        assert metrics["reward/chosen"] == exactly(0.04) and metrics["reward/rejected"] == exactly(0.01)
    assert on_a(ipo(beta=0.1, form="sum"))[2]["logit"] == exactly(0.3)
    assert on_a(ipo(beta=0.1))[2]["logit"] == exactly(0.4 / 3 - 0.05)
    assert on_b(sparsepo(beta=0.8), **MASKS)[2]["margin"] == exactly(0.8 * (-0.1339116678 + 0.2815246783))
    assert "margin" not in on_a(simpo(), ref_logprob=None)[2]


def test_accuracy_counts_pairs():
    batch = replace(
        batch_of([0, 0, 1, 1, 2, 2, 3, 3], [1] * 8),
        chosen=torch.tensor([True, False] * 4),
        ref_logprob=torch.zeros(8, 1),
    )
    logprob = matrix([-1], [-2], [-2], [-1], [-1], [-3], [-1], [-1])
    _, _, metrics = result_of(dpo(beta=0.5), batch, logprob=logprob)
    assert metrics["accuracy"] == metrics["logit_accuracy"] == 0.5  # a tie is not right
    assert metrics["margin"] == exactly(0.5 * (1 - 1 + 2) / 4)


def test_a_loss_that_falls_may_prefer_the_wrong_response():
    """Following the guide on both sides: TGDPO's margin is above 0, DPO's below."""
    moved = REF + 2 * (GUIDE - REF)
    turned = {"chosen": torch.tensor([False, True])}
    _, _, metrics = on_a(tgdpo(beta=1, alpha=3), policy=moved, **turned)
    assert metrics["logit_accuracy"] == 1 and metrics["logit"] > 0
    assert metrics["accuracy"] == 0 and metrics["margin"] < 0


@pytest.mark.parametrize(
    "alpha, floor, low, high, negative, mean",
    [
        (1, -math.inf, 0.5, 1.8, 0, 6 / 5),
        (2, -math.inf, 0, 2.6, 0, 7 / 5),
        (3, -math.inf, -0.5, 3.4, 1 / 5, 8 / 5),
        (3, 0.1, -0.5, 3.4, 1 / 5, 8 / 5),  # before the floor
    ],
)
def test_factors_are_logged_over_the_tokens_of_both_responses(alpha, floor, low, high, negative, mean):
    metrics = on_a(tgdpo(beta=1, alpha=alpha, floor=floor))[2]
    names = ("factor_min", "factor_max", "factor_negative", "factor")
    assert [metrics[name] for name in names] == [exactly(value) for value in (low, high, negative, mean)]


def test_a_negative_factor_turns_the_gradient_round_and_the_floor_does_not():
    assert on_a(tgdpo(beta=1, alpha=3))[1][0, 1] > 0
    assert on_a(tgdpo(beta=1, alpha=3, floor=0))[1][0, 1] == 0
    assert on_a(tgdpo(beta=1, alpha=3, floor=0.1))[1][0, 1] < 0


def test_sparsity_counts_tokens_that_are_exactly_0_by_side():
    metrics = on_b(sparsepo(masks="independent"), **MASKS)[2]
    sparsity = {name: metrics[f"sparsity/{name}"] for name in ("reward/chosen", "reward/rejected", "kl/chosen")}
    assert sparsity == {"reward/chosen": 0.5, "reward/rejected": 0, "kl/chosen": 0.5}
    assert metrics["sparsity/kl/rejected"] == 0.5
    assert (metrics["mask/reward"], metrics["mask/reward_max"]) == (exactly(0.5), exactly(1.2))
    assert (metrics["mask/kl"], metrics["mask/kl_max"]) == (exactly(0.275), exactly(0.7))
    assert metrics["mask_dead"] == 0


@pytest.mark.parametrize("dead", [[], [0], [2], [0, 1], [0, 1, 2]])
@pytest.mark.parametrize("alive", [None, "reward_mask", "kl_mask"])
def test_a_pair_is_dead_where_both_masks_are_0_on_all_of_it(dead, alive):
    objective, batch, current = drawn("sparsepo independent", 4)
    for pair in dead:
        for name in MASKS:
            current[name] = torch.where((batch.group == pair)[:, None], 0.0, current[name])
            if name == alive:
                current[name][2 * pair, 0] = 0.1  # one token of one mask is enough
    metrics = result_of(objective, batch, **current)[2]
    assert metrics["mask_dead"] == pytest.approx(0.0 if alive else len(dead) / 3)
    warning = objective.losses[0].warn(metrics)
    assert (warning is not None) == (alive is None and len(dead) == 3)
    assert warning is None or "init: one" in warning


def test_mapo_s_dead_masks_are_seen_too():
    batch, current = random_pairs(4)
    nothing = dict.fromkeys(MASKS, torch.zeros_like(batch.weight))
    metrics = result_of(mapo(), replace(batch, **nothing), logprob=current["logprob"], ref_kl=current["ref_kl"])[2]
    assert metrics["mask_dead"] == 1


# ---- what is no pair


@pytest.mark.parametrize(
    "groups, chosen",
    [
        ([0, 0], [True, True]),
        ([0, 0], [False, False]),
        ([0], [True]),
        ([0], [False]),
        ([0, 1], [True, False]),
        ([0, 0, 0], [True, False, False]),
        ([0, 0, 0], [True, True, False]),
        ([0, 0, 0, 0], [True, False, True, False]),
        ([0, 0, 1, 1], [True, True, False, False]),
        ([0, 0, 1], [True, False, True]),
    ],
)
@pytest.mark.parametrize("loss", [pair_logistic(), mask_l1(reward=1, kl=1)], ids=lambda loss: loss.name)
def test_rows_that_are_no_pairs_are_refused(groups, chosen, loss):
    batch = replace(batch_of(groups, [2] * len(groups)), chosen=torch.tensor(chosen))
    batch = replace(batch, ref_logprob=torch.zeros_like(batch.weight))
    with pytest.raises(PairError, match="exactly one chosen and one rejected"):
        assign(Objective("o", (), (loss,)), batch, no_model)


def test_the_likelihood_of_chosen_responses_needs_no_rejected_ones():
    batch = replace(batch_of([0, 1, 2, 2], [1, 2, 1, 1]), chosen=torch.tensor([True, True, False, True]))
    logprob = matrix([-1, 9], [-2, -4], [-8, 9], [-3, 9])
    for form, expected in (("sum", 10 / 3), ("mean", 7 / 3)):
        loss, gradients, metrics = result_of(sft(form=form), batch, logprob=logprob)
        assert float(loss) == exactly(expected) and metrics["nll"] == exactly(10 / 4)
        assert gradients["logprob"].nonzero()[:, 0].tolist() == [0, 1, 1, 3]


def test_dropped_rows_do_not_make_a_group_too_large():
    batch = replace(batch_of([0, 0, 0], [1, 1, 1], ref_logprob=[[-1.0]] * 3), chosen=torch.tensor([True, False, True]))
    objective, logprob = dpo(beta=1), matrix([-1], [-1], [5])
    batch = replace(batch, kept=torch.tensor([True, True, False]))
    assert float(result_of(objective, batch, logprob=logprob)[0]) == exactly(LN2)


def test_a_batch_that_nobody_labelled_says_so():
    with pytest.raises(MissingQuantity, match="needs 'chosen'"):
        assign(dpo(), batch_of([0, 0], [1, 1]), no_model)


def test_empty_responses_have_a_score_of_0():
    batch = replace(batch_of([0, 0], [0, 2], ref_logprob=[[], [-1.0, -1.0]]), chosen=torch.tensor([True, False]))
    logprob = matrix([9.0, 9.0], [-1.5, -1.0])
    for objective, z in ((dpo(beta=1), 0.5), (simpo(beta=1, gamma_beta_ratio=0), 1.25)):
        loss, gradients, _ = result_of(objective, batch, logprob=logprob)
        assert float(loss) == exactly(oracle.minus_log_sigmoid(z))
        assert gradients["logprob"].isfinite().all() and not gradients["logprob"][0].any()
    for objective in (ipo(), sft(), bonbon(n=2)):
        assert result_of(objective, batch, logprob=logprob)[0].isfinite()


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
