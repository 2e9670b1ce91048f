"""Losses of pairs: what is logged whatever the objective, which rows are no pairs, empty responses."""

from dataclasses import replace

import pytest
import torch
from support import oracle
from support.batches import batch_of, no_model, result_of
from support.compare import exactly, matrix
from support.pair_goldens import LN2, MASKS, on_a, on_b

from align.batch import MissingQuantity
from align.credit import assign
from align.losses import PairError, pair_logistic
from align.objectives import Objective, bonbon, dpo, ipo, sft, simpo, sparsepo, tgdpo
from align.objectives.sparsepo import mask_l1


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
