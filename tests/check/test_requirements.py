"""What must hold before a model is loaded."""

from types import SimpleNamespace

import pytest

from align.check.requirements import needed_context
from align.config.data_keys import Data
from align.data.prompts import DataError, Prompt, Prompts


def test_a_prompt_and_response_longer_than_the_context():
    prompts = Prompts([Prompt([1] * 9, "short", "short", {})], [Prompt([1] * 30, "the long one", "x", {})])
    source = Data(prompts="x", max_prompt_tokens=40)
    sampling = SimpleNamespace(max_response_tokens=35)
    recipe = SimpleNamespace(sampling=sampling, environment=None, sources=lambda: {"data": source})
    assert needed_context({"data": prompts}, recipe, None) == needed_context({"data": prompts}, recipe, 65) == 65
    with pytest.raises(DataError, match=r"30 tokens.*\(35\) need 65 tokens.*context has 64.*the long one"):
        needed_context({"data": prompts}, recipe, 64)


@pytest.mark.parametrize(
    ("data", "needed"),
    [
        (Data(prompts="x", max_prompt_tokens=40), 75),
        (Data(episodes=2, max_prompt_tokens=40), 75),
        (Data(pairs="x", eval_prompts="y", max_prompt_tokens=40), 75),  # whose answers are played
        (Data(pairs="x", max_prompt_tokens=40), 65),
    ],
)
def test_an_environment_may_fill_the_prompt(data, needed):
    prompts = Prompts([Prompt([1] * 30, "", "", {})], [])
    sampling = SimpleNamespace(max_response_tokens=35)
    recipe = SimpleNamespace(sampling=sampling, environment=object(), sources=lambda: {"data": data})
    assert needed_context({"data": prompts}, recipe, None) == needed
    with pytest.raises(DataError, match=rf"need {needed} tokens, and the model's context has 50"):
        needed_context({"data": prompts}, recipe, 50)
