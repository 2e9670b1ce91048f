"""The clipped surrogate: golden values of its clips."""

import inspect
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from support.batches import batch_of, loss_of, no_model
from support.compare import close
from support.draws import few, seeds
from support.goldens import a1
from support.policy_family import family_batch

from align import objectives
from align.credit import assign
from align.losses import Current, clipped_surrogate
from align.objectives import Objective, grpo


def test_clip_higher():
    assert a1(clipped_surrogate(clip_high=0.28)) == pytest.approx(-0.04402130240, abs=1e-10)
    higher = clipped_surrogate(clip_high=0.28, aggregation="seq-mean-token-mean")
    assert a1(higher) == pytest.approx(0.17758737848, abs=1e-10)
    swapped = clipped_surrogate(clip_low=0.28, clip_high=0.2)
    assert a1(swapped) != pytest.approx(-0.04402130240, abs=1e-6)


def test_dual_clip_golden():
    batch = batch_of([0, 0], [1, 1], rewards=[1.0, -1.0], old_logprob=[[0.0], [-math.log(5)]])
    new = torch.zeros(2, 1, dtype=torch.float64)
    plain = Objective("p", grpo().chain, (clipped_surrogate(aggregation="seq-mean-token-sum"),))
    dual = Objective("d", grpo().chain, (clipped_surrogate(dual_clip=3, aggregation="seq-mean-token-sum"),))
    assert float(loss_of(plain, batch, new)[0]) == pytest.approx((-1 + 5) / 2)
    loss, gradient = loss_of(dual, batch, new)
    assert float(loss) == pytest.approx((-1 + 3) / 2) and gradient[1, 0] == 0 and gradient[0, 0] != 0


DUAL = {
    "grpo": objectives.grpo,
    "gfpo": lambda **args: objectives.gfpo(k=3, **args),
    "ktae": objectives.ktae,
    "d3s": lambda **args: objectives.d3s(rows=3, share=0.7, **args),
    "dapo": objectives.dapo,
    "dr_grpo": lambda **args: objectives.dr_grpo(tokens_per_row=6, **args),
    "grpo_n": objectives.grpo_n,
    "nsr": objectives.nsr,
    "w_reinforce": objectives.w_reinforce,
    "reinforce": objectives.reinforce,
    "ppo": objectives.ppo,
}


def policy_loss(objective):
    """The objective with its policy-gradient loss alone."""
    return replace(objective, losses=objective.losses[:1])


@pytest.mark.parametrize("name", DUAL)
@few
@given(seed=seeds)
def test_dual_clip_bounds_negative_advantages_alone_in_the_whole_family(name, seed):
    """The value is that without, but where the advantage is negative and the ratio above c: c times |A| there."""
    batch, logprob = family_batch(seed)
    batch = replace(batch, reward=batch.reward - 0.5, value=torch.zeros_like(batch.weight))
    logprob = batch.old_logprob + 6 * (logprob - batch.old_logprob)
    plain, dual = (policy_loss(DUAL[name](dual_clip=c)) for c in (math.inf, 1.3))
    credited = assign(plain, batch, no_model)
    (term,) = credited.terms
    (bounded,) = assign(dual, batch, no_model).terms
    ratio = (logprob - batch.old_logprob).exp()
    far = (ratio > 1.3) & (credited.batch.advantage < 0) & term.token_weights.trained
    current = Current(logprob.clone().requires_grad_())
    value = bounded.loss.values(current, credited.batch)
    expected = torch.where(far, -1.3 * credited.batch.advantage, term.loss.values(current, credited.batch))
    close(value[term.token_weights.trained], expected[term.token_weights.trained])
    _, gradient = loss_of(dual, batch, logprob)
    _, whole = loss_of(plain, batch, logprob)
    assert torch.equal(gradient, torch.where(far, 0.0, whole))


def test_dual_clip_is_off_but_in_ktae():
    for name, factory in {**DUAL, "psr": objectives.psr}.items():
        given = inspect.signature(getattr(objectives, name)).parameters.get("dual_clip")
        assert given is None or given.default == (3.0 if name == "ktae" else math.inf)
        assert factory()
