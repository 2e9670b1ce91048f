"""What several tests of this folder build on."""

from contextlib import closing
from functools import partial

import pytest
from support.sources import make_source

from align.config.recipe import RewardFunction, RewardLimits
from align.rollout import rollouts
from align.scoring.worker import Worker


@pytest.fixture
def source(tmp_path):
    """Makes a source of rollouts and its engine."""
    right = RewardFunction("right", "support.reward_functions:first_id", 1.0)
    with closing(Worker(right, RewardLimits())) as worker:
        yield partial(make_source, right, worker, tmp_path)


@pytest.fixture
def one_process(monkeypatch):
    monkeypatch.setattr(rollouts, "gather_object", lambda found: found)
