"""An environment of skyrl-gym as a text environment; skipped where it is not installed."""

import pytest

from align.environments.contract import Environment, Limits, Reply, Start
from align.environments.nursery import Nursery
from align.system.failure import Failure

pytest.importorskip("skyrl_gym")

ROW = {"prompt": [{"role": "user", "content": "2 + 2?"}], "reward_spec": {"ground_truth": "4"}, "max_turns": 3}


@pytest.fixture(scope="module")
def one():
    """A nursery of an environment of several turns."""
    args = {"id": "gsm8k_multi_turn"}
    made = Nursery(Environment("gsm8k", "align.environments.skyrl_gym:SkyRLGym", args), Limits(seconds=20.0))
    yield made
    made.close()


def test_an_episode_and_the_next_in_the_same_instance(one, talk):
    for _ in range(2):
        opening, wrong, right = talk(one.instance(0), Start(ROW, 0), Reply("#### 5"), Reply("#### 4"))
        assert opening.text == "" and wrong.ended is None
        assert wrong.messages[0].content.startswith("Please provide your step-by-step reasoning")
        assert wrong.reward == pytest.approx(0.2 / 3) and wrong.success is None
        assert (right.ended, right.reward, right.messages[0].content) == ("terminated", 1.0, "")


def test_a_row_that_does_not_fit_fails_its_episode(one, talk):
    found, again = talk(one.instance(0), Start({"prompt": []}, 0), Start(ROW, 0))
    assert isinstance(found, Failure) and "reward_spec.ground_truth is required" in found.why
    assert again.text == ""
