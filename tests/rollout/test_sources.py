"""Sources of rollouts: dynamic sampling, steps without a reward."""

import inspect
from dataclasses import replace
from types import SimpleNamespace

import torch

from align.credit import assign
from align.metrics.step import rollout_metrics, signal_metrics
from align.registry import OBJECTIVES
from align.rollout.sources import SourceBatch
from align.system.clock import Clock


def outcome(found):
    return sorted((rollout.prompt.ids[0], rollout.index, rollout.correct) for rollout in found)


def test_dynamic_sampling_goes_on_until_the_batch_is_full_of_mixed_groups(one_process, source):
    constant, both = (True, True), (True, False)
    plan = [constant] * 6
    made, _ = source(plan, 3)
    order = [prompt.ids[0] for position in range(3) for prompt in made.prompts.step(position, 2, 0)]
    plan = dict.fromkeys(order, constant) | {order[1]: both, order[3]: both}
    made, engine = source([plan[n] for n in range(6)], 3)
    everything, taken = made._rollouts(0, Clock())
    assert engine.asked == [order[0:2], order[2:4]]  # the third round was not needed
    assert {rollout.prompt.ids[0] for rollout in taken} == {order[1], order[3]}
    assert len(everything) == 8 and len({rollout.group for rollout in taken}) == 2


def test_dynamic_sampling_stops_at_its_limit_with_what_there_is(one_process, source):
    constant, both = (False, False), (True, False)
    made, _ = source([constant] * 8, 3)
    order = [prompt.ids[0] for position in range(3) for prompt in made.prompts.step(position, 2, 0)]
    made, engine = source([both if n == order[0] else constant for n in range(8)], 3)
    _, taken = made._rollouts(0, Clock())
    assert len(engine.asked) == 3 and {rollout.prompt.ids[0] for rollout in taken} == {order[0]}
    made, _ = source([constant] * 8, 2)
    everything, taken = made._rollouts(0, Clock())
    assert len(everything) == 8 and outcome(taken) == outcome(everything[4:])  # nothing to learn from: the last round


def test_without_it_every_group_is_taken(one_process, source):
    made, engine = source([(False, False), (True, True), (True, False)], None)
    everything, taken = made._rollouts(0, Clock())
    assert len(engine.asked) == 1 and taken == everything and len(taken) == 4


def test_a_step_without_any_reward_is_one_without_signal(one_process, source):
    """Every objective finds a batch of which no token takes part."""
    made, _ = source([(True, False)] * 4, None)

    def score(sampled, total):
        return [replace(r, reward=None, rewards={"right": None}) for r in made.scorer.score(sampled, total)]

    scorer = SimpleNamespace(score=score, announce=lambda found: found, rewards=made.scorer.rewards)
    found = replace(made, scorer=scorer).collect(0, Clock())
    assert not found.batch.active.any() and not found.batch.kept.any() and len(found.sampled) == 4
    metrics = rollout_metrics([found], 0)
    assert metrics["response/unrated"] == 4 and "reward/mean" not in metrics
    for name, factory in OBJECTIVES.items():
        arguments = {key: value for key, value in ARGUMENTS.items() if key in inspect.signature(factory).parameters}
        credited = assign(factory(**arguments), found.batch, annotate)
        assert not credited.trained.any(), name
        signal = signal_metrics([SourceBatch(found, [credited])], {})
        assert signal["signal/carrying"] == 0 and signal["signal/generated"] == signal["signal/taken/unrated"] == 4, (
            name
        )


ARGUMENTS = {"k": 1, "rows": 1, "share": 0.5, "tokens_per_row": 4, "n": 2}


def annotate(batch, names, rows, reader):
    missing = {name: torch.zeros(batch.mask.shape) for name in names if getattr(batch, name) is None}
    return replace(batch, **missing | ({"chosen": batch.kept} if "chosen" in missing else {}))
