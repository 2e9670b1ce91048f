"""Modules beside the policy: what they give, and which objectives bring one."""

import pytest
import torch
from support.hidden_states import config, states

from align.losses.value import Value
from align.objectives import mapo, ppo, rto, sparsepo
from align.objectives.sparsepo import Masks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_what_heads_give_is_float32_whatever_the_model_computes_in(dtype):
    hidden = [h.to(dtype) for h in states()]
    for head in (Masks("independent", "one", 0.01), Value("shared", None)):
        given = head.build(config())(hidden)
        assert set(given) == set(head.gives)
        assert all(value.dtype == torch.float32 and value.shape == (3, 5) for value in given.values())


# ---- what objectives ask for


def heads_of(objective):
    return [head for loss in objective.losses for head in loss.heads]


def test_objectives_bring_their_heads():
    assert heads_of(ppo()) == [Value("detached", None)]
    assert heads_of(rto(value_hidden="shared", value_lr=9e-6)) == [Value("shared", 9e-6)]
    assert heads_of(sparsepo()) == [Masks("common", "one", 0.01)]
    own = sparsepo(masks="independent", init="official", mask_weight_decay=0.3)
    assert heads_of(own) == [Masks("independent", "official", 0.3)]
    assert heads_of(mapo()) == []


@pytest.mark.parametrize("objective", [ppo(), rto(), sparsepo()], ids=lambda objective: objective.name)
def test_heads_give_what_their_losses_differentiate(objective):
    given = {name for head in heads_of(objective) for name in head.gives}
    wanted = {name for loss in objective.losses for name in loss.reads_current}
    assert wanted - given <= {"ref_kl"} and given <= wanted
