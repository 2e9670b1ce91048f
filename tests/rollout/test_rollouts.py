"""Rollouts of all ranks: who samples which, and when too many failed."""

import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest
from support.hostile_text import ESCAPES, acting
from support.rollouts import WORDS, failing, rollout

from align.config.recipe import RewardFunction, RewardLimits
from align.data.prompts import Episode, Prompt, Response
from align.rollout import rollouts
from align.rollout.rollouts import Process, Rollout, Scorer
from align.rollout.seeds import Draw
from align.run.terminal import say
from align.scoring.worker import RewardError


def sampled_by(process, asked):
    """What one process keeps of five prompts; appends (prompts, seeds) that its engine was asked for to `asked`."""

    def generate(prompts, *, n, max_tokens, seeds):
        asked.append(([prompt[0] for prompt in prompts], seeds))
        return [[Response([prompt[0]], [-1.0], False)] * n for prompt in prompts]

    prompts = [Prompt([i], str(i), str(i), {}) for i in range(5)]
    found = rollouts.sample(prompts, generate, process, n=2, max_tokens=1, draw=Draw(0, 0, 0))
    assert all(response.ids == prompt.ids == [group] for group, _, prompt, response in found)
    return [(group, index) for group, index, *_ in found]


def test_processes_that_share_an_engine_ask_the_same_and_keep_what_each_would_have_alone():
    shared, alone = [], []
    kept = [sampled_by(Process(i, 4, tensor_parallel=2), shared) for i in range(4)]
    assert kept == [sampled_by(Process(i, 4), alone) for i in range(4)]
    assert shared[0] == shared[1] and shared[2] == shared[3]  # prompts and seeds
    assert [prompts for prompts, _ in shared[::2]] == [[0, 1, 4], [2, 3]]
    assert [prompts for prompts, _ in alone] == [[0, 4], [1], [2], [3]]
    assert shared[0][1].requests[2] == alone[0][1].requests[1]  # of prompt 4


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


def test_a_reward_that_fails_is_told_once_by_name_with_its_share(monkeypatch, tmp_path):
    monkeypatch.setattr(rollouts, "gather_object", lambda found: found)
    told, limits = [], RewardLimits(max_failed=1.0)
    workers = [
        SimpleNamespace(reward=RewardFunction(name, "", 1.0), log=tmp_path / f"{name}.log" if name == "r" else None)
        for name in ("r", "s")
    ]
    experiment = SimpleNamespace(
        recipe=SimpleNamespace(reward_limits=limits), rewards=[worker.reward for worker in workers]
    )
    scorer = Scorer(workers, experiment, None, told.append)
    scorer.gather([rollout(0, 0, 1.0)])
    assert told == []
    for _ in range(2):
        scorer.gather([rollout(0, 0, 1.0), failing(0, 1), failing(0, 2)])
    (line,) = told
    assert line.startswith("reward 'r' failed on 2 of 3 responses, first: took too long; they take no part")
    assert line.endswith(f"what it prints is in {tmp_path / 'r.log'}")


def test_a_reason_is_told_on_one_line_and_acts_on_nothing(monkeypatch, capsys):
    """Else a reward could write lines of a log that look like the run's own."""
    monkeypatch.setenv("RANK", "0")
    why = "\n".join(["E: x", "step 5/5  reward 1.00", *ESCAPES.values()])
    worker = SimpleNamespace(reward=RewardFunction("r", "", 1.0), log=None)
    limits = SimpleNamespace(reward_limits=RewardLimits(max_failed=1.0))
    experiment = SimpleNamespace(recipe=limits, rewards=[worker.reward])
    row = replace(rollout(0, 0, 1.0), reward=None, failed={"r": why})
    Scorer([worker], experiment, None, say).gather([row])
    told = capsys.readouterr().out
    assert told.count("\n") == 1 and told.startswith("reward 'r' failed on 1 of 1") and not acting(told)


class Asked:
    """Instead of processes: notes what a reward function is asked about."""

    def __init__(self, monkeypatch):
        self.rows = []
        monkeypatch.setattr(rollouts, "score_rows", self)

    def __call__(self, workers, prompts, responses, texts, total_rows):
        self.rows += [response.ids for response in responses]
        return {"f": [0.5] * len(responses)}


def test_an_episode_earns_what_its_environment_gave_and_one_that_broke_off_nothing(monkeypatch):
    asked = Asked(monkeypatch)
    given = [RewardFunction(name, "m:e", 2.0, given_by="environment") for name in ("e", "other")]
    rewards = [*given, RewardFunction("f", "m:f", 1.0)]
    recipe = SimpleNamespace(reward_limits=RewardLimits(), correct=None)
    file = SimpleNamespace(data={})
    correct = SimpleNamespace(reward="e", at_least=1.0)
    experiment = SimpleNamespace(
        rewards=rewards, reward_functions=rewards[2:], correct=correct, recipe=recipe, file=file
    )
    episodes = [
        Episode("e", "terminated", reward=1.0),
        Episode("e", "terminated", reward=1.0, success=False),
        Episode("e", "max_turns", reward=0.5, success=True),
        Episode("e", "terminated"),
        Episode("other", "terminated", reward=7.0),
        Episode("e", "failed", why="step: took too long", success=True),
    ]
    prompt = Prompt([1], "p", "p", {})
    sampled = [(0, i, prompt, Response([i], [-1.0], False, (), one)) for i, one in enumerate(episodes)]
    scored = Scorer([], experiment, WORDS).score(sampled, len(sampled))
    assert [one.reward for one in scored] == [2.5, 2.5, 1.5, 0.5, 14.5, None]
    assert [one.correct for one in scored] == [True, False, True, False, True, False]  # each by its own environment
    assert scored[5].failed == {"e": "step: took too long"} and set(scored[5].rewards.values()) == {None}
    experiment.correct, recipe.correct = SimpleNamespace(reward="f", at_least=0.5), object()
    assert [one.correct for one in Scorer([], experiment, WORDS).score(sampled, 6)][3:] == [True, True, False]
    assert asked.rows[:5] == [[i] for i in range(5)]  # no function is asked about the one that broke off


def test_an_environment_that_fails_is_told_with_where_it_prints(monkeypatch):
    monkeypatch.setattr(rollouts, "gather_object", lambda found: found)
    reward, told = RewardFunction("e", "m:E", 1.0, given_by="environment"), []
    recipe = SimpleNamespace(reward_limits=RewardLimits(max_failed=1.0), run=SimpleNamespace(out="runs/x"))
    row = replace(rollout(0, 0, 1.0), reward=None, failed={"e": "step: took too long"})
    Scorer([], SimpleNamespace(recipe=recipe, rewards=[reward]), None, told.append).gather([row])
    (line,) = told
    assert line.startswith("environment 'e' failed on 1 of 1 responses, first: step: took too long")
    assert line.endswith("what it prints is in runs/x/environments")


def test_rollouts_travel_as_blocks_of_numbers():
    """Eight bytes a token, and they come back as they were."""
    found = [rollout(i // 4, i % 4, 1.0, length=500 + i) for i in range(8)]
    found[3] = replace(found[3], response=Response([], [], False))
    packed = rollouts.pack_tokens(found)
    again = rollouts.unpack_tokens(*packed)
    assert [(list(r.response.ids), list(r.response.logprobs)) for r in again] == [
        (r.response.ids, r.response.logprobs) for r in found
    ]
    bare = [replace(r, response=replace(r.response, ids=[], logprobs=[])) for r in again]
    assert bare == packed[0]
    _, sizes, ids, logprobs = packed
    assert len(pickle.dumps((sizes, ids, logprobs))) < 8.1 * sum(sizes)
    assert not any(one.response.ids or one.response.logprobs for one in bare)
