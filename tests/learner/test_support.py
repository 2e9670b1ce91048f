"""A few tokens tell whether a model can be packed."""

import pytest
from support.networks import model

from align.learner.support import packs
from align.model.policy import Policy


@pytest.mark.parametrize("kind, changes", [("nemotron", {}), ("gemma2", {"head_dim": 8}), ("recurrent_gemma", {})])
def test_a_few_tokens_tell_what_a_configuration_does_not(kind, changes):
    assert not packs(Policy(model(kind, **changes), 1.0))


def test_the_probe_takes_rounding_for_what_it_is():
    """bfloat16 and large logits, as trained models have them: the gap is rounding, which grows with the logits."""
    assert packs(Policy(model("llama", initializer_range=0.5).bfloat16(), 0.1))
