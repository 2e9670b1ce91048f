"""Links of a chain. To add one, write a function that returns a `Transform` and name it here, or in YAML by path."""

from align.transforms.advantage import (
    group_advantage,
    leave_one_out_advantage,
    outcome_advantage,
    reward_advantage,
    sign_filter,
)
from align.transforms.downsample import max_variance_rows, top_tokens
from align.transforms.importance import importance_weight
from align.transforms.keep import keep_outcome, keep_top, mask_truncated
from align.transforms.key_tokens import key_tokens
from align.transforms.pairs import best_and_worst
from align.transforms.token_reward import gae, guide_reward, token_reward
from align.transforms.transform import Stage, State, Transform

LINKS = (
    keep_top,
    keep_outcome,
    mask_truncated,
    best_and_worst,
    token_reward,
    guide_reward,
    gae,
    group_advantage,
    leave_one_out_advantage,
    reward_advantage,
    outcome_advantage,
    sign_filter,
    max_variance_rows,
    key_tokens,
    top_tokens,
    importance_weight,
)
TRANSFORMS = {link.__name__: link for link in LINKS}

__all__ = ["LINKS", "TRANSFORMS", "Stage", "State", "Transform", *TRANSFORMS]
