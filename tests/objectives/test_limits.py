"""Objectives at the limits where they are others, bit for bit or up to rounding: what concerns several papers."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batches import loss_of, random_batch, random_pairs, result_of
from support.compare import same
from support.draws import few, seeds
from support.pair_goldens import LN2, MASKS

from align import objectives
from align.objectives import bonbon, dpo, grpo, mapo, sparsepo, tdpo1, tdpo2, tgdpo


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
    torch.testing.assert_close(found(zero), found(objectives.nsr(denominator="full")))
    both = found(objectives.nsr(denominator="full")) + found(objectives.psr(denominator="full"))
    torch.testing.assert_close(both, found(one))


def test_more_limits():
    batch, logprob = random_batch(6)
    batch = replace(batch, truncated=torch.zeros_like(batch.kept))

    def same(one, two, logprob=logprob, batch=batch):
        for a, b in zip(loss_of(one, batch, logprob), loss_of(two, batch, logprob), strict=True):
            torch.testing.assert_close(a, b)

    same(objectives.dapo(clip_high=0.2), grpo())
    gradients = [loss_of(o, batch, batch.old_logprob)[1] for o in (objectives.cispo(), grpo())]
    torch.testing.assert_close(*gradients)
    first = batch.mask.clone()
    first[:, 1:] = False
    one = replace(batch, mask=first, selected=first, weight=first.double())
    gspo = objectives.gspo(clip_low=0.2, clip_high=0.2)
    same(gspo, grpo(aggregation="seq-mean-token-mean"), batch=one)
    for form in ("sequence", "token"):
        same(objectives.gspo(form=form), objectives.gspo())


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
