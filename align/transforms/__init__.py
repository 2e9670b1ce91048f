"""Transforms that papers share, or that any chain may use by name; `transform.py` is their type."""

from align.transforms.advantage import (
    group_advantage,
    leave_one_out_advantage,
    outcome_advantage,
    reward_advantage,
    sign_filter,
)
from align.transforms.importance import importance_weight
from align.transforms.keep import keep_outcome, mask_truncated
from align.transforms.pairs import best_and_worst
from align.transforms.token_reward import gae, token_reward
from align.transforms.transform import Stage, State, Transform
from align.transforms.turns import anchor_advantage, turn_returns
