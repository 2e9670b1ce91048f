"""Groups of parameters: which learning rate and weight decay each of them has."""

import pytest

from align.check.requirements import head_specs
from align.config.optim_keys import Optim
from align.learner.optimizer import make_optimizer
from align.model.load import load_model
from align.model.policy import Policy
from align.objectives import dpo, ppo, sparsepo


def groups(folder, objective, **optim):
    """[({parameters by name}, lr, weight decay)]"""
    policy = Policy(load_model(folder, "float32"), 1.0, head_specs([objective]))
    names = {id(p): name for name, p in policy.named_parameters()}
    made, _ = make_optimizer(policy, Optim(schedule_steps=1, **{"lr": 0.1, **optim}))
    return [({names[id(p)] for p in g["params"]}, g["lr"], g["weight_decay"]) for g in made.param_groups]


def head(*names):
    return {f"heads.{name}" for name in names}


def test_the_masks_biases_and_norms_are_not_decayed(folder):
    model, weights, spared = groups(folder, sparsepo(), weight_decay=0.3)
    assert len(model[0]) == 20 and model[1:] == (0.1, 0.3)
    one = "masks.networks.0."
    assert weights == (head(one + "layers.weight", one + "mix.weight"), 0.1, 0.01)
    assert spared == (head(one + "layers.bias", one + "norm.weight", one + "norm.bias"), 0.1, 0.0)
    assert len(groups(folder, sparsepo(masks="independent"))[2][0]) == 6


def test_nor_is_the_value_head_s_bias(folder):
    _, weight, bias = groups(folder, ppo(value_lr=0.02), weight_decay=0.3)
    assert weight == (head("value.linear.weight"), 0.02, 0.3) and bias == (head("value.linear.bias"), 0.02, 0.0)


@pytest.mark.parametrize("objective, count", [(dpo(), 1), (ppo(), 2), (sparsepo(mask_weight_decay=0.0), 2)])
def test_without_decay_a_head_is_one_group(folder, objective, count):
    assert len(groups(folder, objective)) == count
