"""The step: its order, what the learner gets, and its metrics; with stubs in place of models and engines."""

from types import SimpleNamespace

import pytest
import torch
from support.counting_learner import CountingLearner
from support.rollouts import WORDS, rollout

from align.data.prompts import Answer, Pair
from align.loop import Loop
from align.objectives import dpo, grpo, rloo
from align.rollout import tensors
from align.rollout.sources import Collected


class Learner(CountingLearner):
    """Records its updates among the events; `skipped` is what each of them tells."""

    def __init__(self, events, skipped=(0,)):
        super().__init__()
        self.events, self.skipped, self.updates, self.told = events, list(skipped), [], []

    def plan(self, sources):
        self.events.append("plan")
        return sources

    def update(self, sources, step, tell=None):
        self.told.append(tell is not None)
        if tell:
            tell(f"outputs of update {len(self.updates) + 1}")
        self.events.append("update")
        self.updates.append((sources, step))
        number = len(self.updates)
        return {"loss": float(number), "skipped": self.skipped[number - 1]}


class Source:
    """Gives the same batch at each step, and records when it is asked."""

    def __init__(self, name, objectives, collected, events):
        self.name, self.objectives, self.collected, self.events = name, objectives, collected, events

    def collect(self, step, clock):
        self.events.append((self.name, step))
        with clock("generate"):
            return self.collected


def sampled():
    found = [rollout(0, 0, 1.0, 2, correct=True), rollout(0, 1, 0.0, 3)]
    return Collected(tensors.to_batch(found, WORDS), found, found)


def pairs():
    pair = Pair([1], "q", "q", {}, Answer([5, 6], "a", False), Answer([7], "b", False), 0)
    return Collected(tensors.pairs_to_batch([pair], WORDS))


@pytest.fixture
def events():
    return []


@pytest.fixture
def sampler(events):
    def sync(learner, clock):
        events.append("sync")
        with clock("sync"):
            return {"sync/gap": 0.25}

    def agree(update):
        events.append(("agree", update["loss"]))
        return {"sync/rollout_gap": update["loss"] / 100}

    return SimpleNamespace(sync=sync, agree=agree, sleep=lambda: events.append("sleep"))


def loop_of(learner, sampler, *objectives_of_rollouts, updates=1, old_logprob="sampler"):
    sources = [
        Source("prompts", objectives_of_rollouts or (grpo(),), sampled(), learner.events),
        Source("pairs", (dpo(),), pairs(), learner.events),
    ]
    return Loop(sources, learner, sampler, updates, old_logprob)


def test_sources_come_in_their_order_then_the_update_then_the_sync(events, sampler):
    loop_of(Learner(events), sampler).step(3)
    assert events == [("prompts", 3), ("pairs", 3), "sleep", "plan", "update", ("agree", 1.0), "sync"]


def test_the_update_gets_the_credited_batches_of_all_sources(events, sampler):
    learner = Learner(events)
    record = loop_of(learner, sampler, grpo(), rloo()).step(3)
    [(sources, step)] = learner.updates
    assert step == 3
    assert [[credited.objective.name for credited in credits] for credits in sources] == [["grpo", "rloo"], ["dpo"]]
    assert all(found is batch.credited for found, batch in zip(sources, record.batches, strict=True))
    assert sources[0][0].batch.advantage.tolist() == [[1.0, 1.0, 0.0], [-1.0, -1.0, -1.0]]
    assert torch.equal(sources[1][0].batch.ref_logprob, torch.full((2, 2), -1.0).double())


def test_the_record_has_a_batch_of_each_source(events, sampler):
    loop = loop_of(Learner(events), sampler)
    record = loop.step(0)
    assert [batch.collected for batch in record.batches] == [source.collected for source in loop.sources]


def test_what_updates_skipped_is_summed_and_all_else_is_of_the_last(events, sampler):
    learner = Learner(events, skipped=(1, 0, 2))
    metrics = loop_of(learner, sampler, updates=3).step(0).metrics
    assert (metrics["loss"], metrics["skipped"]) == (3.0, 3)
    assert events[2:] == ["sleep", "plan"] + ["update"] * 3 + [("agree", 1.0), "sync"]  # one plan and one sync a step
    assert metrics["sync/rollout_gap"] == 0.01  # of the first update: before it the policy was the one that sampled
    assert all(sources[0][0] is learner.updates[0][0][0][0] for sources, _ in learner.updates)  # credited once


def test_the_record_has_the_outputs_of_the_first_update(events, sampler):
    learner = Learner(events, skipped=(0, 0))
    record = loop_of(learner, sampler, updates=2).step(0)
    assert record.outputs == ["outputs of update 1"] and learner.told == [True, False]


def test_nothing_is_synced_without_a_sampler(events):
    metrics = loop_of(Learner(events), None).step(0).metrics
    assert events[-1] == "update" and not any("sync" in name for name in metrics)


@pytest.mark.parametrize("updates, passes", [(1, ["reference"]), (2, ["policy", "reference"])])
def test_the_trainer_s_old_log_probabilities_need_a_pass_only_before_several_updates(events, updates, passes):
    learner = Learner(events, skipped=(0, 0))
    loop_of(learner, None, updates=updates, old_logprob="trainer").step(0)
    assert [who for who, _ in learner.asked] == passes


def test_the_metrics_of_all_parts_stand_in_one_dictionary(events, sampler):
    metrics = loop_of(Learner(events), sampler).step(0).metrics
    of_rollouts = {"reward/mean": 0.5, "tokens/generated": 5}
    of_signal = {"signal/grpo/carrying": 5, "signal/dpo/carrying": 3}
    of_passes = {"pass/ref_logprob/rows": 2, "pass/ref_logprob/tokens": 3}
    others = {"loss": 1.0, "skipped": 0, "sync/gap": 0.25}
    assert (of_rollouts | of_signal | of_passes | others).items() <= metrics.items()
    assert {f"seconds/{phase}" for phase in ("generate", "credit", "update", "sync")} <= metrics.keys()
    assert metrics["memory/peak_gib"] > 0
