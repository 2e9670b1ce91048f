"""Replay of what runs recorded: each objective, on rollouts and on pairs, with one update a step and with several."""

import pytest
from support.paths import ROOT
from support.replays import assert_replays, experiment_of, ran

from align.registry import PAIRS, POLICY
from align.result import samples

ROLLOUTS, OF_PAIRS = (ROOT / f"recipes/{name}.yaml" for name in ("gfpo_chain_sum", "dpo_champ"))
UPDATES = [  # how old and new log-probabilities differ
    ["optim.updates_per_step=1", "sampling.old_logprob=trainer"],
    ["optim.updates_per_step=3", "sampling.old_logprob=sampler"],
    ["optim.updates_per_step=3", "sampling.old_logprob=trainer"],
]
NEEDED = {"gfpo": {"k": 4}, "d3s": {"rows": 4, "share": 0.3}, "dr_grpo": {"tokens_per_row": 9}, "bonbon": {"n": 8}}
FORMS = {"sparsepo": [{"masks": "common"}, {"masks": "independent"}]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "samples.jsonl"


def forms_of(objective) -> list[dict]:
    """What a recipe writes of a method."""
    name = objective.__name__
    return [{"name": name, **NEEDED.get(name, {}), **form} for form in FORMS.get(name, [{}])]


def assert_goes_through(path, recipe, *words, count=1):
    steps = ran(path, experiment_of(recipe, *words), count=count)
    assert_replays(experiment_of(recipe, *words), path, steps)
    return steps


@pytest.mark.parametrize("updates", UPDATES, ids=" ".join)
@pytest.mark.parametrize("objective", POLICY)
def test_methods_of_rewards_go_through(objective, updates, path):
    for form in forms_of(objective):
        assert_goes_through(path, ROLLOUTS, f"objective={form}", *updates)


@pytest.mark.parametrize("objective", PAIRS)
def test_methods_of_pairs_go_through_on_pairs_of_the_data_and_of_rollouts(objective, path):
    for form in forms_of(objective):
        assert_goes_through(path, OF_PAIRS, f"objective={form}", "optim.updates_per_step=2")
        for updates in UPDATES:
            assert_goes_through(path, ROLLOUTS, f"objective={form | {'add': [{'best_and_worst': {}}]}}", *updates)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
@pytest.mark.parametrize("updates", [1, 2])
def test_importance_weights_go_through(level, mode, updates, path):
    weighed = f"{{importance_weight: {{level: {level}, mode: {mode}, high: 1.5}}}}"
    words = ("sampling.old_logprob=trainer", f"optim.updates_per_step={updates}")
    assert_goes_through(path, ROLLOUTS, f"objective={{name: grpo, add: [{weighed}]}}", *words)
    weights = {weight for r in samples.read(path).values() for weight in r.decisions[0].weight if weight}
    assert len(weights) > 8  # they are not those of the length alone


EVERYTHING = """objectives=[
  {name: gfpo, k: {very_hard: 6, hard: 5, medium: 4, easy: 2, warmup_prompts: 5}, add: [{kl_policy_ref: {coef: 0.1}}]},
  {name: ppo, weight: 0.5}, {name: gspo},
  {chain: [{keep_top: {k: 6}}, {group_advantage: {}}, {max_variance_rows: {rows: 4, scope: batch}}, {key_tokens: {}},
    {top_tokens: {share: {start: 0.2, end: 1.0}}}], loss: {clipped_surrogate: {denominator: selected}}},
  {name: dpo, add: [{best_and_worst: {}}]}]"""


@pytest.mark.parametrize("updates", UPDATES, ids=" ".join)
def test_several_objectives_with_memories_heads_and_updates(updates, path):
    assert_goes_through(path, ROLLOUTS, "objective=null", EVERYTHING, *updates, count=4)


def test_masks_that_are_learned_and_masks_of_the_reference_are_told_apart(path):
    both = "objectives=[{name: sparsepo}, {name: mapo, weight: 0.5}]"
    assert_goes_through(path, OF_PAIRS, "objective=null", both)
    trained = [r for r in samples.read(path).values() if r.new_kl_mask]
    assert trained and all(r.kl_mask != r.new_kl_mask for r in trained)
