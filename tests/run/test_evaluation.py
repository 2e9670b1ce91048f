"""The held-out evaluation: which prompts it samples for, and the names of what it measures on pairs."""

from types import SimpleNamespace

import pytest
import torch
from support.counting_learner import CountingLearner
from support.rollouts import WORDS

from align.config.data_keys import Data
from align.data.bank import Bank
from align.data.prompts import Answer, Pair, Prompt, Prompts
from align.objectives import dpo, sft
from align.rollout.sources import PairSource
from align.run.evaluation import Evaluation, eval_prompts, has_rollouts

PROMPT = Prompt([1], "q", "q", {})
PAIR = Pair([2], "p", "p", {}, Answer([5, 6], "a", False), Answer([7], "b", False), 0)
OF_PROMPTS, OF_PAIRS = Data(prompts="prompts.jsonl"), Data(pairs="pairs.jsonl")


def experiment_of(*sources):
    return SimpleNamespace(recipe=SimpleNamespace(sources=lambda: {str(i): data for i, data in enumerate(sources)}))


def held_out(*sources):
    return {str(i): Prompts([], list(prompts)) for i, prompts in enumerate(sources)}


@pytest.mark.parametrize(
    "sources, found",
    [([OF_PROMPTS], True), ([OF_PAIRS], False), ([OF_PAIRS, OF_PROMPTS], True), ([OF_PAIRS] * 2, False)],
)
def test_rollouts_are_there_where_a_source_has_prompts(sources, found):
    assert has_rollouts(experiment_of(*sources)) == found


@pytest.mark.parametrize(
    "sources, prompts, found",
    [
        ([OF_PROMPTS], [[PROMPT]], [PROMPT]),
        ([OF_PROMPTS, OF_PAIRS], [[PROMPT], [PAIR]], [PROMPT]),
        ([OF_PAIRS], [[PAIR]], [PAIR]),
        ([OF_PAIRS], [[PAIR, PROMPT]], [PROMPT]),  # a source of evaluation prompts of its own
        ([OF_PROMPTS, OF_PAIRS], [[], [PAIR]], []),  # training samples, and only pairs are held out
        ([OF_PROMPTS], [[]], []),
    ],
)
def test_responses_are_to_held_out_prompts_and_to_those_of_pairs_where_nothing_else_is_sampled(sources, prompts, found):
    assert eval_prompts(experiment_of(*sources), held_out(*prompts)) == found


class Learner(CountingLearner):
    """Measures the same on all pairs."""

    def __init__(self):
        super().__init__()
        self.measured = []

    def measure(self, sources):
        self.measured.append([credited.objective.name for credits in sources for credited in credits])
        return 0.5, {"margin": torch.tensor([1.0, 3.0]), "nll": torch.tensor([2.0]), "factor_max": torch.tensor([9.0])}


def pairs_of(name, *objectives):
    return PairSource(name, Prompts([], [PAIR, PROMPT]), objectives or (dpo(),), None, WORDS, Bank({}, ()))


def evaluation_of(*sources, responses=None):
    return Evaluation(responses, sources, Learner(), "sampler")


def test_there_is_an_evaluation_where_anything_is_held_out():
    responses = SimpleNamespace(run=lambda: ({}, []))
    assert not evaluation_of().has_eval
    assert evaluation_of(pairs_of("a")).has_eval and evaluation_of(responses=responses).has_eval


MEASURES = ("loss", "margin", "margin_low", "margin_high", "nll")


def test_measures_of_one_source_of_pairs_bear_no_name_of_a_source():
    evaluation = evaluation_of(pairs_of("a", dpo(), sft()))
    metrics, greedy = evaluation.run()
    assert set(metrics) == {f"eval/pairs/{name}" for name in MEASURES} and greedy == []
    assert (metrics["eval/pairs/loss"], metrics["eval/pairs/margin"]) == (0.5, 2.0)
    assert evaluation.learner.measured == [["dpo", "sft"]]
    assert evaluation.learner.asked == [("reference", [0, 1])]  # the pair's rows, and not the prompt's


def test_measures_of_several_sources_of_pairs_are_told_apart():
    metrics, _ = evaluation_of(pairs_of("a"), pairs_of("b")).run()
    assert set(metrics) == {f"eval/pairs/{source}/{name}" for source in "ab" for name in MEASURES}


def test_responses_and_pairs_are_evaluated_together():
    responses = SimpleNamespace(run=lambda: ({"eval/reward": 1.0}, ["greedy"]))
    metrics, greedy = evaluation_of(pairs_of("a"), responses=responses).run()
    assert set(metrics) == {"eval/reward", *(f"eval/pairs/{name}" for name in MEASURES)} and greedy == ["greedy"]
