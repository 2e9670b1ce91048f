"""The gradient of every objective on ragged rows, packed against padded."""

from dataclasses import replace

import pytest
import torch
from support import ragged_batches

from align.check.requirements import head_specs
from align.config.model_keys import Adapter
from align.credit import assign
from align.learner.losses import contribution, micro_batch
from align.learner.micro_batches import divide
from align.losses import Current
from align.model import layouts
from align.model.adapters import add_adapter
from align.model.load import load_model
from align.model.policy import Policy, Reference
from align.model.recompute import recompute_layers
from align.objectives import nsr
from align.registry import PAIRS

OBJECTIVES = {
    **{objective.name: objective for objective in ragged_batches.policy_side()},
    "nsr": nsr(),
    "nsr_with_entropy_bonus": ragged_batches.policy_side()[-1],
    "gfpo_with_kl": ragged_batches.gfpo_with_kl(),
    **{
        make.__name__: ragged_batches.from_rollouts(make(**ragged_batches.GIVEN.get(make.__name__, {})))
        for make in PAIRS
    },
    **{objective.name: objective for family in ragged_batches.FAMILIES["value"]() for objective in family},
}


@torch.no_grad()
def with_quantities(policy):
    """The ragged rollouts as this policy would have sampled them; what else models say is made up."""
    batch, noise = ragged_batches.batch(), torch.Generator().manual_seed(3)
    inputs = layouts.padded.inputs(batch, batch.mask)
    own = inputs.scatter(policy(inputs)["logprob"], batch.mask.shape)
    names = ("ref_logprob", "guide_logprob")
    said = {name: own + 0.3 * torch.rand(own.shape, generator=noise) for name in names}
    rest = ("entropy", "value", "reward_mask", "kl_mask")
    said |= {name: torch.rand(own.shape, generator=noise) for name in rest}
    return replace(batch, sampler_logprob=own, old_logprob=own, **said)


def gradient(policy, base, credited, layout, tokens):
    """Flat gradient of all that is trained, summed over micro-batches of one rank."""
    rows = credited.trained.any(1) | credited.coupled
    [plan] = divide(
        *(credited.batch, credited.trained, rows, credited.coupled),
        ranks=1,
        tokens=tokens,
        layout=layout,
        quadratic=policy.quadratic,
    )
    quantities = ("logprob", *sorted(credited.reads_current))
    policy.zero_grad()
    for micro in plan:
        index = torch.tensor(micro)
        part = credited.batch.rows(index)
        inputs = layout.inputs(part, credited.trained[index])
        what = policy.asks_reference(quantities)
        with torch.no_grad():
            reference = Reference(base(inputs, (what,))[what], base.logits) if what else None
        said = policy(inputs, quantities, reference, 2)
        current = Current(**{name: inputs.scatter(value, part.mask.shape) for name, value in said.items()})
        contribution([credited], [micro_batch(credited.batch, index, current)], current, index).backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


def made(folder, kind, objective):
    """(policy, its base), as a run has them after some steps."""
    model = load_model(str(folder), "float32")
    base = Policy(load_model(str(folder), "float32"), 0.7)
    torch.manual_seed(0)
    if kind == "lora":
        model = add_adapter(model, Adapter(rank=4, alpha=8), str(folder))
        for parameter in (p for n, p in model.named_parameters() if "lora_B" in n):
            torch.nn.init.normal_(parameter, std=0.1)  # they start at 0, and with them the slope of the others
    return Policy(model, 0.7, head_specs([objective])), base


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_packed_is_padded(kind, name, folder):
    """In float32 up to rounding: the padded rows of RLOO differ by 1.1e-5 from themselves in other micro-batches."""
    objective = OBJECTIVES[name]
    for dtype, close in ((torch.float32, 2e-5), (torch.float64, 1e-6)):  # logits are float32 in both
        policy, base = (module.to(dtype) for module in made(folder, kind, objective))
        credited = assign(objective, with_quantities(policy), lambda batch, names, rows, reader: batch)
        padded = gradient(policy, base, credited, layouts.padded, 10_000)
        for tokens in (10_000, 60):
            packed = gradient(policy, base, credited, layouts.shared_prefix, tokens)
            assert (packed - padded).norm() < close * padded.norm()


@pytest.mark.parametrize("name", ["grpo", "gspo", "cispo", "d3s", "gfpo"])
def test_the_update_gives_the_old_log_probabilities_that_a_pass_before_it_would(folder, name):
    policy, base = made(folder, "lora", OBJECTIVES[name])
    credited = assign(OBJECTIVES[name], with_quantities(policy), lambda batch, *_: batch)
    without = replace(credited, batch=replace(credited.batch, old_logprob=None))
    one, two = (gradient(policy, base, what, layouts.shared_prefix, 400) for what in (credited, without))
    assert one.norm() > 0
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5 * float(one.norm()))


@pytest.mark.parametrize("name", ["gfpo_with_kl", "sparsepo", "ppo", "tdpo2"])
@pytest.mark.parametrize("layout", [layouts.padded, layouts.shared_prefix], ids=lambda layout: layout.name)
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_layers_computed_again_give_the_same_gradient_to_the_last_bit(kind, layout, name, folder):
    found = []
    for again in (False, True):
        policy, base = made(folder, kind, OBJECTIVES[name])
        if again:
            recompute_layers(policy.causal)
        credited = assign(OBJECTIVES[name], with_quantities(policy), lambda batch, names, rows, reader: batch)
        found.append(gradient(policy, base, credited, layout, 60))
    kept, computed_again = found
    assert kept.norm() > 0 and torch.equal(kept, computed_again)
