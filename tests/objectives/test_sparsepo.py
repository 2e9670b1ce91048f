"""SparsePO: golden values, what its masks do to loss and gradients, and what is logged of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.batches import no_model, random_pairs, result_of
from support.compare import allclose, close, exactly, same
from support.draws import few, seeds
from support.hidden_states import config, states
from support.pair_goldens import COMMON, LN2, MASKS, on_b
from support.pair_objectives import FIELDS, L1, drawn

from align.credit import assign
from align.losses import Current
from align.objectives import sparsepo
from align.objectives.sparsepo import MaskNetwork, MaskNetworks, Masks

ONES, ZEROS = torch.ones(2, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)


@pytest.mark.parametrize(
    "arguments, reward_mask, kl_mask, golden",
    [
        ({}, ONES, ZEROS, 0.6358441325),
        ({}, ONES, ONES, 0.6546667974),
        ({}, ZEROS, ZEROS, 0.6931471806),
        ({}, *MASKS.values(), 0.4291706640),
        ({"l1_reward": 0.001, "l1_kl": 0.001}, *MASKS.values(), 0.4322706640),
        ({"l1_reward": 0.001, "l1_kl": 0.001, "masks": "common"}, *COMMON.values(), 0.4707258318),
    ],
)
def test_golden_sparsepo(arguments, reward_mask, kl_mask, golden):
    objective = sparsepo(**{"beta": 0.8, "masks": "independent", **arguments})
    assert float(on_b(objective, reward_mask=reward_mask, kl_mask=kl_mask)[0]) == exactly(golden)


def test_golden_gradients_of_the_masks():
    _, gradients, metrics = on_b(sparsepo(beta=0.8, masks="independent"), **MASKS)
    allclose(gradients["reward_mask"], [[-0.0761170600, 0.1134999688, 0], [-0.1656609840, 0.0870702866, 0]])
    allclose(gradients["kl_mask"], [[-0.0187757962, -0.0247512580, 0], [0.0260805076, 0.0312613277, 0]])
    assert metrics["logit"] == exactly(0.6236525567)  # the official code logs 0.5841417152


def test_common_masks_cost_half_of_each_coefficient():
    fields = {"l1_reward": 0.3, "l1_kl": 0.1}
    plain = on_b(sparsepo(), **COMMON)[0]
    norm = float(COMMON["reward_mask"][:, :2].sum())
    assert float(on_b(sparsepo(**fields), **COMMON)[0] - plain) == exactly(0.2 * norm)
    assert float(on_b(sparsepo(masks="independent", **fields), **COMMON)[0] - plain) == exactly(0.4 * norm)


def test_the_reference_itself_pays_for_its_masks():
    batch, current = random_pairs(5)
    fields = {"logprob": batch.ref_logprob, "ref_kl": torch.zeros_like(batch.ref_logprob)}
    masks = {name: current[name] for name in MASKS}
    loss, gradients, _ = result_of(sparsepo(masks="independent", l1_reward=0.5, l1_kl=0.25), batch, **fields, **masks)
    norms = [float(mask[batch.mask].sum()) / 3 for mask in masks.values()]
    assert float(loss) == pytest.approx(LN2 + 0.5 * norms[0] + 0.25 * norms[1], rel=1e-12)
    close(gradients["kl_mask"], batch.mask.double() * 0.25 / 3)


@few
@given(seed=seeds, c=st.floats(0.1, 5))
def test_masks_of_c_are_c_times_beta(seed, c):
    batch, current = random_pairs(seed)
    scaled = {**current, **{name: c * current[name] for name in MASKS}}
    close(
        result_of(sparsepo(beta=0.3, masks="independent"), batch, **scaled)[0],
        result_of(sparsepo(beta=0.3 * c, masks="independent"), batch, **current)[0],
    )


@few
@given(seed=seeds)
def test_a_common_mask_is_two_equal_ones(seed):
    batch, current = random_pairs(seed)
    current["kl_mask"] = current["reward_mask"]
    common, apart = (
        result_of(objective, batch, **current)
        for objective in (sparsepo(**L1), sparsepo(masks="independent", l1_reward=0.015, l1_kl=0.005))
    )
    same(common[0], apart[0])
    for field in FIELDS:
        same(common[1][field], apart[1][field])


@few
@given(seed=seeds)
def test_the_kl_mask_rises_on_chosen_and_falls_on_rejected_tokens(seed):
    """Whatever they say: the divergence is never negative. Gradients point uphill."""
    batch, current = random_pairs(seed)
    gradient = result_of(sparsepo(masks="independent"), batch, **current)[1]["kl_mask"]
    assert (gradient[batch.chosen[:, None] & batch.mask] < 0).all()
    assert (gradient[~batch.chosen[:, None] & batch.mask] > 0).all()


def test_masks_of_0_stop_all_learning():
    batch, current = random_pairs(1)
    none = {name: torch.zeros_like(current[name]) for name in MASKS}
    loss, gradients, _ = result_of(sparsepo(), batch, **{**current, **none})
    assert float(loss) == LN2 and not gradients["logprob"].any() and not gradients["ref_kl"].any()


def test_sparsity_counts_tokens_that_are_exactly_0_by_side():
    metrics = on_b(sparsepo(masks="independent"), **MASKS)[2]
    sparsity = {name: metrics[f"sparsity/{name}"] for name in ("reward/chosen", "reward/rejected", "kl/chosen")}
    assert sparsity == {"reward/chosen": 0.5, "reward/rejected": 0, "kl/chosen": 0.5}
    assert metrics["sparsity/kl/rejected"] == 0.5
    assert (metrics["mask/reward"], metrics["mask/reward_max"]) == (exactly(0.5), exactly(1.2))
    assert (metrics["mask/kl"], metrics["mask/kl_max"]) == (exactly(0.275), exactly(0.7))
    assert metrics["mask_dead"] == 0


@pytest.mark.parametrize("dead", [[], [0], [2], [0, 1], [0, 1, 2]])
@pytest.mark.parametrize("alive", [None, "reward_mask", "kl_mask"])
def test_a_pair_is_dead_where_both_masks_are_0_on_all_of_it(dead, alive):
    objective, batch, current = drawn("sparsepo independent", 4)
    for pair in dead:
        for name in MASKS:
            current[name] = torch.where((batch.group == pair)[:, None], 0.0, current[name])
            if name == alive:
                current[name][2 * pair, 0] = 0.1  # one token of one mask is enough
    metrics = result_of(objective, batch, **current)[2]
    assert metrics["mask_dead"] == pytest.approx(0.0 if alive else len(dead) / 3)
    warning = objective.losses[0].warn(metrics)
    assert (warning is not None) == (alive is None and len(dead) == 3)
    assert warning is None or "init: one" in warning


# golden of specs/preference.md 4.5: three tokens in two layers of width 2
HIDDEN = torch.tensor([[[[1, 3], [2, -2], [0, 4]]], [[[-1, 1], [5, 1], [3, 3]]]], dtype=torch.float64)
WEIGHT, BIAS = [[0.5, -0.25], [-1, 0.5]], [0.1, -0.2]


def network(mix=(0.6, 0.4)):
    made = MaskNetwork(2, 2, "one").double()
    given = {"layers.weight": WEIGHT, "layers.bias": BIAS, "mix.weight": [mix]}
    doubles = {name: torch.tensor(value, dtype=torch.float64) for name, value in given.items()}
    made.load_state_dict({**made.state_dict(), **doubles})
    return made.requires_grad_(False)


@pytest.mark.parametrize(
    "mix, golden",
    [
        ((0.6, 0.4), [0.519997, 0.5099994375, 0]),
        ((-0.6, 0.4), [0.519997, 0, 0]),
        ((1, 0), [0, 0.8499990625, 0]),  # the layers one by one
        ((0, 1), [1.2999925, 0, 0]),
        ((-1, -1), [0, 0, 0]),
    ],
)
def test_golden_masks(mix, golden):
    mask = network(mix)(HIDDEN)
    np.testing.assert_allclose(mask, [golden], rtol=0, atol=1e-8)
    if mix == (0.6, 0.4):
        assert float((mask == 0).double().mean()) == pytest.approx(1 / 3)


def test_rows_and_tokens_do_not_see_each_other():
    """Nor where a token stands: the mask is a function of the states at its prefix."""
    made, hidden = network(), HIDDEN.expand(2, 4, 3, 2).clone()
    hidden[:, 1] = hidden[:, 1].flip(1)
    hidden[:, 2, 0] = 100.0
    found, alone = made(hidden), made(HIDDEN)[0]
    np.testing.assert_array_equal(found[0], alone)
    np.testing.assert_array_equal(found[1], alone.flip(0))
    np.testing.assert_array_equal(found[2, 1:], alone[1:])


@pytest.mark.parametrize("width", [16, 64, 256])
def test_masks_that_start_at_one_are_near_it_and_nowhere_dead(width):
    torch.manual_seed(0)
    mask = Masks("common", "one", 0.01).build(config(8, width))(states(8, width))["reward_mask"].detach()
    assert float(mask.mean()) == pytest.approx(1, abs=0.1) and mask.min() > 0.5 and mask.max() < 1.5


def test_masks_that_start_as_in_the_official_code_are_small_or_dead():
    torch.manual_seed(0)
    masks = [Masks("common", "official", 0.01).build(config())(states(seed=i))["reward_mask"] for i in range(20)]
    assert max(float(mask.detach().max()) for mask in masks) < 0.1
    dead = [not mask.any() for mask in masks]
    assert any(dead) and not all(dead)


@pytest.mark.parametrize("init", ["one", "official"])
def test_the_norm_starts_without_effect_and_one_is_shared_by_all_layers(init):
    made = MaskNetwork(5, 7, init)
    assert (made.norm.weight == 1).all() and not made.norm.bias.any() and made.norm.eps == 1e-5
    shapes = {name: tuple(p.shape) for name, p in made.named_parameters()}
    assert shapes == {
        "norm.weight": (7,),
        "norm.bias": (7,),
        "layers.weight": (5, 7),
        "layers.bias": (5,),
        "mix.weight": (1, 5),
    }


def test_a_common_mask_is_one_tensor_and_independent_ones_are_two_networks():
    torch.manual_seed(0)
    common, apart = (MaskNetworks(4, 64, kind, "one") for kind in ("common", "independent"))
    count = [sum(p.numel() for p in made.parameters()) for made in (common, apart)]
    assert count[1] == 2 * count[0]
    found = common(states())
    assert found["reward_mask"] is found["kl_mask"]
    found = apart(states())
    assert torch.equal(found["reward_mask"], found["kl_mask"])  # both start at 1
    torch.nn.init.normal_(apart.networks[0].layers.weight)
    found = apart(states())
    assert not torch.equal(found["reward_mask"], found["kl_mask"])
    apart.networks[1].load_state_dict(apart.networks[0].state_dict())
    found = apart(states())
    assert torch.equal(found["reward_mask"], found["kl_mask"])


def trained(kind, l1=0.0, **changed):
    """Gradients of a pair's loss: ({parameter of the networks: gradient}, those of the hidden states)."""
    torch.manual_seed(1)
    batch, fields = random_pairs(2)
    hidden = [h.requires_grad_() for h in states(3, 8, *batch.mask.shape)]
    made = MaskNetworks(3, 8, kind, "one")
    for network in made.networks:  # past the start, where the norm has nothing to say yet
        torch.nn.init.normal_(network.layers.weight, std=0.02)
    current = Current(**{**fields, **made(hidden), **changed})
    credited = assign(sparsepo(masks=kind, l1_reward=l1, l1_kl=0.0), batch, no_model)
    sum(term.contribution(current, credited.batch) for term in credited.terms).backward()
    return {name: p.grad for name, p in made.named_parameters()}, [h.grad for h in hidden]


@pytest.mark.parametrize("kind", ["common", "independent"])
def test_the_gradient_reaches_every_parameter_of_the_masks_and_stops_there(kind):
    parameters, hidden = trained(kind)
    assert all(gradient is not None and gradient.any() for gradient in parameters.values())
    assert hidden == [None] * 3  # the reference's


def test_each_independent_network_learns_from_its_own_part():
    zeros = torch.zeros_like(random_pairs(2)[1]["ref_kl"])
    parameters, _ = trained("independent", ref_kl=zeros)
    for name, gradient in parameters.items():
        assert gradient.any() == name.startswith("networks.0."), name
    batch = random_pairs(2)[0]
    parameters, _ = trained("independent", logprob=batch.ref_logprob)
    for name, gradient in parameters.items():
        assert gradient.any() == name.startswith("networks.1."), name


def test_at_the_reference_only_the_l1_term_moves_masks():
    batch = random_pairs(2)[0]
    still = {"logprob": batch.ref_logprob, "ref_kl": torch.zeros_like(batch.ref_logprob)}
    for l1, moves in ((0.0, False), (0.1, True)):
        parameters, _ = trained("common", l1, **still)
        assert any(gradient.any() for gradient in parameters.values()) == moves


# ---- a mask on one of the two


@pytest.mark.parametrize(
    "kind, learned, other", [("reward", "reward_mask", "kl_mask"), ("kl", "kl_mask", "reward_mask")]
)
def test_a_mask_on_one_alone_leaves_the_other_at_1(kind, learned, other):
    torch.manual_seed(0)
    alone, common = MaskNetworks(4, 64, kind, "official"), MaskNetworks(4, 64, "common", "official")
    alone.load_state_dict(common.state_dict())
    found = alone(states())
    assert torch.equal(found[learned], common(states())[learned]) and (found[other] == 1).all()
    assert found[other].dtype == torch.float32 and not found[other].requires_grad
    assert Masks(kind, "one", 0.01).build(config()).kind == kind


@pytest.mark.parametrize("kind, learned", [("reward", "reward_mask"), ("kl", "kl_mask")])
def test_a_mask_on_one_alone_has_the_loss_and_the_l1_of_that_one(kind, learned):
    """The official code halves the coefficients of a common mask only."""
    masks = {name: MASKS[name] if name == learned else ONES for name in MASKS}
    name = {"reward": "l1_reward", "kl": "l1_kl"}[kind]
    plain = on_b(sparsepo(masks="independent", beta=0.8), **masks)
    found = on_b(sparsepo(masks=kind, beta=0.8), **masks)
    assert float(found[0]) == float(plain[0])
    norm = float(MASKS[learned][torch.tensor([[True, True, False]] * 2)].sum())
    assert float(on_b(sparsepo(masks=kind, beta=0.8, **{name: 0.1}), **masks)[0] - found[0]) == exactly(0.1 * norm)


@pytest.mark.parametrize("kind, name", [("reward", "l1_kl"), ("kl", "l1_reward")])
def test_an_l1_without_its_mask_is_refused(kind, name):
    with pytest.raises(ValueError, match=f"{name}: there is no such mask where masks is {kind}; leave {name} out"):
        sparsepo(masks=kind, **{name: 0.1})


def test_the_gradient_reaches_the_one_network_there_is():
    for kind in ("reward", "kl"):
        parameters, _ = trained(kind)
        assert all(gradient is not None and gradient.any() for gradient in parameters.values())
