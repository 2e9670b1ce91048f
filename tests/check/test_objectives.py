"""Own transforms and losses are run once before a run."""

import pytest
import torch
from support.broken.corpus import AT

from align.check.objectives import try_objectives
from align.config.experiment import load_experiment
from align.registry import OBJECTIVES

OWN = """
import sys
from dataclasses import replace

import torch

from align.losses import Loss
from align.losses.loss import TokenWeights
from align.objectives import Objective, grpo
from align.transforms import Transform

calls = []

def changed(apply, **rest):
    return replace(grpo(), chain=(*grpo().chain, Transform("mine", apply, **rest)))

def fine() -> Objective:
    return changed(lambda batch: replace(batch, advantage=batch.advantage.clamp(min=0)), needs=("advantage",))

def crashes() -> Objective:
    def apply(batch):
        return batch.advantage.no_such_thing()
    return changed(apply)

def sums() -> Objective:
    return changed(lambda batch: replace(batch, advantage=batch.advantage.sum(1)))

def forgets() -> Objective:
    return changed(lambda batch: replace(batch, kept=batch.kept.tolist()))

def returns_nothing() -> Objective:
    return changed(lambda batch: None)

def undeclared() -> Objective:
    return changed(lambda batch: replace(batch, weight=batch.need("ref_logprob", "mine").exp()))

def unknown() -> Objective:
    return changed(lambda batch: batch, needs=("no_such_quantity",))

def counts() -> Objective:
    def apply(batch):
        calls.append(torch.rand(1))
        return batch
    return changed(apply)

def loss(values, **rest) -> Objective:
    weigh = lambda batch: TokenWeights(batch.active.float(), batch.active, 1.0)
    return Objective("own", grpo().chain, (*grpo().losses, Loss("bad", "token", weigh, values, **rest)))

def loss_that_crashes() -> Objective:
    return loss(lambda current, batch: current.logprob / batch.nothing)

def loss_of_no_number() -> Objective:
    return loss(lambda current, batch: (current.logprob - current.logprob).log() - (current.logprob * 0).log())

def loss_of_another_shape() -> Objective:
    return loss(lambda current, batch: current.logprob[:, :2])

def measure_that_crashes() -> Objective:
    return loss(lambda current, batch: current.logprob, measure=lambda *a: {"x": [1]})

def reads_entropy() -> Objective:
    return loss(lambda current, batch: current.entropy, reads_current=("entropy",))
"""

BAD = [
    ("crashes", r"mine failed: AttributeError: .*no_such_thing.* \(own_pieces\.py, line \d+\)"),
    ("sums", r"mine gives advantage as \[12\] where the batch has \[12, 6\]"),
    ("forgets", r"mine gives kept as list where the batch has \[12\]"),
    ("returns_nothing", "mine returned NoneType; return the batch"),
    ("undeclared", "mine failed: MissingQuantity: mine needs 'ref_logprob'"),
    ("unknown", "no_such_quantity"),
    ("loss_that_crashes", "bad failed: AttributeError"),
    ("loss_of_no_number", "bad gives a loss of nan"),
    ("loss_of_another_shape", "bad failed: RuntimeError"),
    ("measure_that_crashes", "bad failed: AttributeError"),
]


@pytest.fixture
def own(bench, monkeypatch):
    """A function: the problems of the healthy recipe with an own objective."""
    bench.write("own_pieces.py", OWN)

    def check(spec):
        bench.put("objective", spec)
        return bench.checked()["problems"]

    yield check
    __import__("sys").modules.pop("own_pieces", None)


@pytest.mark.parametrize("name, message", BAD)
def test_a_piece_that_crashes_is_a_problem_by_name(own, name, message):
    (problem,) = own({f"own_pieces:{name}": {}})
    assert __import__("re").match(f"{AT}objective: .*{message}.*; tried on rows that are made up", problem), problem


@pytest.mark.parametrize("name", ["fine", "counts", "reads_entropy"])
def test_a_piece_that_runs_is_none(own, name):
    assert own({f"own_pieces:{name}": {}}) == []


def test_random_numbers_are_as_before(own, bench):
    assert own({"own_pieces:counts": {}}) == []
    experiment = load_experiment("recipe.yaml")
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert try_objectives(experiment) == [] and torch.equal(torch.rand(1), expected)
    assert __import__("own_pieces").calls


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_of_the_library_runs_on_the_rows_that_are_made_up(own, bench, name, monkeypatch):
    """So that a problem behind an own transform is never one of the rows."""
    monkeypatch.setattr("align.check.objectives.is_own", lambda piece: True)
    arguments = {
        "gfpo": {"k": 2},
        "dr_grpo": {"tokens_per_row": 8},
        "bonbon": {"n": 4},
        "d3s": {"rows": 2, "share": 0.5},
    }
    bench.put("objective", {name: arguments.get(name, {})})
    bench.put("model.guide", "guide")
    own({name: arguments.get(name, {})})  # writes the recipe
    for data in ("data={prompts: p.jsonl}", "data={pairs: p.jsonl}"):
        words = [data] if "prompts" not in data or name not in PAIRS else [data, "objective.add=[{best_and_worst: {}}]"]
        experiment = load_experiment("recipe.yaml", words, ())
        assert try_objectives(experiment) == []


PAIRS = ("dpo", "ipo", "simpo", "tdpo1", "tdpo2", "tgdpo", "sparsepo", "mapo", "bonbon", "sft")
