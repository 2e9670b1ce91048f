"""Modules beside the policy: SparsePO's mask network with its golden value, and the value head."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import no_model, random_pairs

from align.credit import assign
from align.losses import Current
from align.losses.value import Value, ValueHead
from align.objectives import mapo, ppo, rto, sparsepo
from align.objectives.sparsepo import MaskNetwork, MaskNetworks, Masks

# golden of specs/preference.md 4.5: three tokens in two layers of width 2
HIDDEN = torch.tensor([[[[1, 3], [2, -2], [0, 4]]], [[[-1, 1], [5, 1], [3, 3]]]], dtype=torch.float64)
WEIGHT, BIAS = [[0.5, -0.25], [-1, 0.5]], [0.1, -0.2]


def network(mix=(0.6, 0.4)):
    made = MaskNetwork(2, 2, "one").double()
    given = {"layers.weight": WEIGHT, "layers.bias": BIAS, "mix.weight": [mix]}
    doubles = {name: torch.tensor(value, dtype=torch.float64) for name, value in given.items()}
    made.load_state_dict({**made.state_dict(), **doubles})
    return made.requires_grad_(False)


def config(layers=4, width=64):
    text = SimpleNamespace(num_hidden_layers=layers, hidden_size=width)
    return SimpleNamespace(get_text_config=lambda: text)


def states(layers=4, width=64, rows=3, tokens=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(layers, rows, tokens, width, generator=generator))


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_what_heads_give_is_float32_whatever_the_model_computes_in(dtype):
    hidden = [h.to(dtype) for h in states()]
    for head in (Masks("independent", "one", 0.01), Value("shared", None)):
        given = head.build(config())(hidden)
        assert set(given) == set(head.gives)
        assert all(value.dtype == torch.float32 and value.shape == (3, 5) for value in given.values())


# ---- the value head


def test_the_value_starts_at_0_and_reads_the_last_layer():
    head = Value("shared", None).build(config())
    hidden = states()
    assert not head(hidden)["value"].any()
    with torch.no_grad():
        head.linear.weight.fill_(1.0)
        head.linear.bias.fill_(2.0)
    torch.testing.assert_close(head(hidden)["value"], hidden[-1].sum(-1) + 2)


@pytest.mark.parametrize("kind", ["shared", "detached"])
def test_the_gradient_of_the_value_reaches_the_policy_where_it_is_shared(kind):
    head = Value(kind, None).build(config())
    torch.nn.init.ones_(head.linear.weight)
    hidden = [h.requires_grad_() for h in states()]
    head(hidden)["value"].sum().backward()
    assert head.linear.weight.grad.any() and head.linear.bias.grad.any()
    assert (hidden[-1].grad is not None) == (kind == "shared")
    assert all(h.grad is None for h in hidden[:-1])


def test_a_head_that_starts_at_0_can_learn():
    head = ValueHead(64, detached=True)
    hidden, target = states(), torch.randn(3, 5, generator=torch.Generator().manual_seed(9))
    optimizer = torch.optim.SGD(head.parameters(), lr=0.05)
    losses = []
    for _ in range(50):
        loss = ((head(hidden)["value"] - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


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
