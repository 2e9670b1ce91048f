"""What must hold before a model is loaded."""

from types import SimpleNamespace

import pytest
from support.recipes import BASE

from align.check.requirements import fill_steps, needed_context
from align.config.experiment import load_experiment
from align.data.prompts import DataError, Prompt, Prompts


def test_a_prompt_and_response_longer_than_the_context():
    prompts = Prompts([Prompt([1] * 9, "short", "short", {})], [Prompt([1] * 30, "the long one", "x", {})])
    recipe = SimpleNamespace(sampling=SimpleNamespace(max_response_tokens=35))
    assert needed_context({"data": prompts}, recipe, None) == needed_context({"data": prompts}, recipe, 65) == 65
    with pytest.raises(DataError, match=r"30 tokens.*\(35\) need 65 tokens.*context has 64.*the long one"):
        needed_context({"data": prompts}, recipe, 64)


@pytest.mark.parametrize(
    "keys, steps, span, warmup",
    [
        ("run.steps=7", 7, 7, 0),
        ("run.steps=null run.epochs=2", 5, 5, 0),  # 2 x 9 prompts, 4 a step
        ("run.steps=null run.epochs=0.1", 1, 1, 0),
        ("run.steps=null run.epochs=4 optim.warmup_share=0.25", 9, 9, 2),
        ("run.steps=10 optim.schedule_steps=40 optim.warmup_share=0.1", 10, 40, 4),
        ("run.steps=10 optim.warmup_steps=3", 10, 10, 3),
    ],
)
def test_epochs_and_shares_become_steps(tmp_path, keys, steps, span, warmup):
    path = tmp_path / "recipe.yaml"
    path.write_text(BASE)
    prompts = Prompts([Prompt([1], "short", "short", {})] * 9, [])
    recipe = fill_steps(load_experiment(path, ["data.prompts_per_step=4", *keys.split()]), {"data": prompts}).recipe
    assert (recipe.run.steps, recipe.optim.schedule_steps, recipe.optim.warmup_steps) == (steps, span, warmup)
    assert recipe.run.epochs is recipe.optim.warmup_share is None  # so the resolved recipe is one that can be read
