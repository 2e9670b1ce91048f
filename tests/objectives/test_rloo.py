"""RLOO: a golden value, and its ratio to Dr. GRPO."""

import numpy as np
import torch
from support.batches import batch_of

from align.transforms import group_advantage, leave_one_out_advantage


def test_rloo_golden_and_its_ratio_to_dr_grpo():
    reward, group = torch.tensor([1.0, 0, 0, 1], dtype=torch.float64), [0] * 4
    batch = batch_of(group, [1] * 4, rewards=reward.tolist())
    advantage = leave_one_out_advantage().apply(batch).advantage[:, 0]
    np.testing.assert_allclose(advantage, [2 / 3, -2 / 3, -2 / 3, 2 / 3])
    np.testing.assert_allclose(advantage, group_advantage(std="none").apply(batch).advantage[:, 0] * 4 / 3)
