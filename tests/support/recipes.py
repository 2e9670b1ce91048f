"""A recipe to change, and code that recipes name by dotted path."""

import pytest
import torch

from align.config.recipe_file import ConfigError
from support.batches import loss_of, random_batch

BASE = """\
model:
  policy: some/model
data:
  prompts: prompts.jsonl
sampling:
  group_size: 8
rewards:
  rewards.length:length_penalty: 1.0
objective: {name: gfpo, k: 4}
run:
  steps: 2
  out: runs/test
"""

# Python code that recipes of these tests name by dotted path
CODE = """\
from align.transforms import Transform, group_advantage
from align.losses import clipped_surrogate
from align.objectives import Objective

number = 3

def correct(prompts, completions, **columns):
    return [1.0] * len(prompts)

correct_2 = correct

def biggest(prompts, completions, *, floor, **columns):
    return [float(floor)] * len(prompts)

def own_transform(*, strength: int = 1) -> Transform:
    return Transform("own_transform", lambda batch: batch)

def early(**args) -> Transform:
    return Transform("early", lambda batch: batch, needs=("advantage",))

def own_objective(*, eps: float = 0.0) -> Objective:
    return Objective("own", (group_advantage(eps=eps),), (clipped_surrogate(),))

def lies() -> Objective:
    return 3

def misspelt() -> 'Objektive':
    return 3

def breaks() -> Objective:
    raise KeyError("inside")

def moody(*, x: int = 0) -> Objective:
    raise ValueError(f"x = {x} is odd")
"""


def problems_of(action, *args, **kwargs) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        action(*args, **kwargs)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def objective(text):
    return "{name: gfpo, k: 4}", text


def model(text):
    return "policy: some/model", f"policy: some/model\n  {text}"


def sampling(text):
    return "group_size: 8", f"group_size: 8\n  {text}"


def run(text):
    return "steps: 2", f"steps: 2\n  {text}"


def rewards(text):
    return "rewards:\n  rewards.length:length_penalty: 1.0\n", f"rewards: {text}\n"


def alike(objective, other, groups=3):
    """Whether two objectives credit, weigh and differentiate 24 random responses alike."""
    for seed in range(3):
        batch, logprob = random_batch(seed, groups=groups, size=8)
        entropy = torch.rand(logprob.shape, dtype=logprob.dtype)
        pair = [loss_of(o, batch, logprob, entropy) for o in (objective, other)]
        if not all(torch.equal(a, b) for a, b in zip(*pair, strict=True)):
            return False
    return True
