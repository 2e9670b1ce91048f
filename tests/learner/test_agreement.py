"""How far sampler and policy are apart on the rows of a step."""

import pytest
import torch

from align.learner.agreement import of_rows, summary


def test_the_mean_is_over_tokens_and_chance_over_responses():
    sampler, policy = torch.tensor([[1.0, 2.0], [3.0, 9.0]]), torch.tensor([[0.0, 0.0], [5.0, 0.0]])
    counted = torch.tensor([[True, True], [True, False]])
    measured = {**of_rows(sampler, policy, counted), "loss": torch.ones(1)}
    found = summary(measured)
    assert found["sync/rollout_gap"] == pytest.approx((1 + 2 - 2) / 3)
    assert found["sync/rollout_gap_error"] == pytest.approx((3**2 + 2**2) ** 0.5 / 3)
    assert list(measured) == ["loss"] and summary(measured) == {}


def test_few_responses_never_tell():
    """However alike: the gap is at most the root of their number times what chance makes of it."""
    found = summary(of_rows(torch.ones(4, 3), torch.zeros(4, 3), torch.ones(4, 3, dtype=torch.bool)))
    assert found["sync/rollout_gap"] == pytest.approx(4**0.5 * found["sync/rollout_gap_error"])
