"""Rollouts of all ranks: when too many failed."""

import pytest

from align.config.recipe import RewardLimits
from align.data.prompts import Prompt, Response
from align.rollout import rollouts
from align.rollout.rollouts import Rollout
from align.scoring.worker import RewardError


def test_too_many_failures_of_all_ranks_stop_a_run_and_one_rank_s_own_do_not():
    rolls = [
        Rollout(
            0,
            i,
            Prompt([1], "1", "1", {}),
            Response([i], [-1.0], False),
            "x",
            {"a": None},
            None,
            False,
            {"a": "ValueError: bad"} if i < 3 else {},
        )
        for i in range(6)
    ]
    rollouts.check_failed(rolls, RewardLimits())
    rollouts.check_failed([], RewardLimits(max_failed=0.0))
    with pytest.raises(
        RewardError, match="reward 'a' failed on 3 of 6 rows, .*max_failed is 0.4; .*'x': ValueError: bad"
    ):
        rollouts.check_failed(rolls, RewardLimits(max_failed=0.4))
