"""A few tokens tell whether a model can be packed."""

import deepspeed.runtime.sequence_parallel.parallel_state_sp as groups
import pytest
import torch
from deepspeed.runtime.sequence_parallel import ulysses_sp
from support.networks import model
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from align.learner.support import check_attention, packs
from align.model.locate import ModelError
from align.model.policy import Policy


@pytest.mark.parametrize("kind, changes", [("nemotron", {}), ("gemma2", {"head_dim": 8}), ("recurrent_gemma", {})])
def test_a_few_tokens_tell_what_a_configuration_does_not(kind, changes):
    assert not packs(Policy(model(kind, **changes), 1.0))


def test_the_probe_takes_rounding_for_what_it_is():
    """bfloat16 and large logits, as trained models have them: the gap is rounding, which grows with the logits."""
    assert packs(Policy(model("llama", initializer_range=0.5).bfloat16(), 0.1))


def test_sequence_parallelism_in_the_place_of_attention_is_refused(monkeypatch):
    """As accelerate switches it on, but for its group of processes."""
    check_attention()
    group = {"initialize_sequence_parallel": None, "get_sequence_parallel_group": None}
    for name, value in group.items():
        monkeypatch.setattr(groups, name, lambda *_, value=value, **__: value)
    monkeypatch.setattr(ulysses_sp, "UlyssesSPAttentionHF", FakeUlysses)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", ALL_ATTENTION_FUNCTIONS["sdpa"])
    REGISTER(FakeUlysses, model("llama"), "sdpa", sequence_parallel_size=2, micro_batch_size=1)
    with pytest.raises(ModelError, match="replaced transformers' attention sdpa.*do not register it"):
        check_attention()


REGISTER = ulysses_sp.UlyssesSPAttentionHF.register_with_transformers.__func__


class FakeUlysses(torch.nn.Module):
    """Takes the arguments of Ulysses's attention."""

    def __init__(self, **_):
        super().__init__()
