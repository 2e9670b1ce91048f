"""What must hold before a model is loaded."""

from types import SimpleNamespace

import pytest

from align.check.requirements import needed_context
from align.data.prompts import DataError, Prompt, Prompts


def test_a_prompt_and_response_longer_than_the_context():
    prompts = Prompts([Prompt([1] * 9, "short", "short", {})], [Prompt([1] * 30, "the long one", "x", {})])
    recipe = SimpleNamespace(sampling=SimpleNamespace(max_response_tokens=35))
    assert needed_context({"data": prompts}, recipe, None) == needed_context({"data": prompts}, recipe, 65) == 65
    with pytest.raises(DataError, match=r"30 tokens.*\(35\) need 65 tokens.*context has 64.*the long one"):
        needed_context({"data": prompts}, recipe, 64)
