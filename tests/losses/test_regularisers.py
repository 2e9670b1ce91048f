"""The KL term and the entropy bonus: golden values."""

import pytest
import torch
from support.batches import batch_of, loss_of
from support.goldens import NEW, OLD, a1

from align.losses import clipped_surrogate, entropy_bonus, kl_policy_ref
from align.objectives import Objective, grpo


def test_the_kl_term_adds_the_golden_k3():
    plain = a1(clipped_surrogate())
    assert a1(clipped_surrogate(), [kl_policy_ref(coef=0.5)]) - plain == pytest.approx(0.5 * 0.01843154635, abs=1e-10)


def test_entropy_bonus_lowers_the_loss_by_the_mean_entropy():
    batch = batch_of([0, 0], [3, 2], rewards=[1.0, -1.0], old_logprob=OLD)
    entropy = torch.tensor([[1.0, 2, 3], [4, 5, 100]], dtype=torch.float64)
    plain = loss_of(grpo(), batch, NEW)[0]
    bonus = Objective("g", grpo().chain, (*grpo().losses, entropy_bonus(coef=0.1)))
    assert plain - loss_of(bonus, batch, NEW, entropy)[0] == pytest.approx(0.1 * 3.0)
