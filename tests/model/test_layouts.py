"""Packed behind a shared prompt or padded side by side: the same log-probabilities, entropies and gradients."""

import random
from dataclasses import replace
from functools import reduce

import pytest
import torch
from support.networks import SIZES, model
from transformers import AutoConfig

from align import ops
from align.batch import Batch
from align.learner.support import packs
from align.model import flex, layouts
from align.model.attention import Packing
from align.model.policy import Policy


def ragged():
    generator = torch.Generator().manual_seed(1)

    def ids(n):
        return torch.randint(3, 50, (n,), generator=generator).tolist()

    prompts = {0: ids(5), 1: ids(11)}
    groups = [0, 1, 0, 1, 0]  # groups are not neighbours
    return Batch.of(groups, [ids(n) for n in (4, 7, 1, 9, 0)], prompt_ids=[prompts[g] for g in groups])


def read(policy, layout, batch, wanted):
    inputs = layout.inputs(batch, wanted)
    values = policy(inputs, ("logprob", "entropy"))
    return {name: inputs.scatter(value, batch.mask.shape) for name, value in values.items()}


def one_by_one(network, batch, temperature):
    """[B,T] of unpadded rows, each on its own."""
    out = torch.zeros(batch.mask.shape)
    for i, prompt in enumerate(batch.prompt_ids):
        ids = batch.response_ids[i, : int(batch.size[i])]
        logits = network(torch.tensor([[*prompt, *ids.tolist()]])).logits[0] / temperature
        steps = logits.log_softmax(-1)[len(prompt) - 1 : len(prompt) - 1 + len(ids)]
        out[i, : len(ids)] = steps.gather(-1, ids[:, None])[:, 0]
    return out


# what decoders differ in: norms, biases, fused projections, a rotary part, learned positions, experts, scalings
PACKED = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "olmo2", "smollm3", "granite", "phi", "cohere"), {}),
    **dict.fromkeys(("mistral", "phi3", "starcoder2"), {"sliding_window": None}),
    **dict.fromkeys(("gemma", "glm"), {"head_dim": 8}),
    **dict.fromkeys(("gpt2", "gpt_neox", "opt"), {}),
    "mixtral": {"sliding_window": None, "num_local_experts": 2},
}


@pytest.mark.parametrize("kind", PACKED)
def test_both_layouts_are_each_row_on_its_own(kind):
    network, batch = model(kind, **PACKED[kind]), ragged()
    assert layouts.choose(None, network.config) == "shared_prefix" and packs(Policy(network, 1.0))
    policy = Policy(network, 0.8)
    expected = one_by_one(network, batch, 0.8)
    for layout in (layouts.padded, layouts.shared_prefix):
        got = read(policy, layout, batch, batch.mask)["logprob"]
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)


def test_gradients_are_the_same_and_only_wanted_tokens_are_computed():
    network, batch = model("llama"), ragged()
    wanted = batch.mask.clone()
    wanted[1, 2:5] = False
    wanted[3] = False
    found = []
    for layout in (layouts.padded, layouts.shared_prefix):
        values = read(Policy(network, 1.0), layout, batch, wanted)
        assert not values["logprob"][~wanted].any()
        total = (values["logprob"] * torch.arange(1, 46).view(5, 9)).sum() + values["entropy"].sum()
        found.append(torch.autograd.grad(total, list(network.parameters())))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
    assert layouts.shared_prefix.inputs(batch, wanted).predict_at.shape[0] == wanted.sum()


def test_what_others_put_in_is_read():
    """A response with tokens of a tool: the log-probabilities are those of one pass over all of it."""
    network, batch = model("llama"), ragged()
    expected = one_by_one(network, batch, 1.0)
    turn = torch.where(torch.arange(9) % 5 > 2, -1, torch.arange(9) // 5)
    turn = torch.where(batch.present, turn, -1)
    several = replace(batch, turn=turn, mask=turn >= 0)
    for layout in (layouts.padded, layouts.shared_prefix):
        got = read(Policy(network, 1.0), layout, several, several.mask)["logprob"]
        torch.testing.assert_close(got, torch.where(several.mask, expected, 0.0), atol=2e-5, rtol=1e-5)
    assert (~several.mask & several.present).sum() == 6


def test_entropy_is_that_of_the_distribution_at_the_temperature():
    network, batch = model("llama"), ragged()
    row = batch.rows(torch.tensor([0]))
    logits = network(torch.tensor([[*row.prompt_ids[0], *row.response_ids[0].tolist()]])).logits[0, 4:8] / 0.5
    expected = torch.distributions.Categorical(logits=logits).entropy()
    got = read(Policy(network, 0.5), layouts.shared_prefix, row, row.mask)["entropy"][0, :4]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_padding_goes_to_the_longest_of_these_rows():
    batch = ragged()  # the longest of all has 9 tokens
    rows = batch.rows(torch.tensor([0, 2]))
    assert layouts.padded.inputs(rows, rows.mask).input_ids.shape == (2, 5 + 4)
    network = model("llama")
    expected = one_by_one(network, rows, 1.0)
    for layout in (layouts.padded, layouts.shared_prefix):
        torch.testing.assert_close(read(Policy(network, 1.0), layout, rows, rows.mask)["logprob"], expected)


def test_nothing_wanted_still_gives_a_graph():
    batch = ragged().rows(torch.tensor([0]))
    for layout in (layouts.padded, layouts.shared_prefix):
        network = model("llama")
        values = read(Policy(network, 1.0), layout, batch, torch.zeros_like(batch.mask))
        values["logprob"].sum().backward()
        assert all(p.grad is not None and not p.grad.any() for p in network.parameters())


def test_a_response_does_not_see_its_neighbours():
    network, batch = model("llama"), ragged()
    policy = Policy(network, 1.0)
    one = read(policy, layouts.shared_prefix, batch, batch.mask)["logprob"]
    for changed in (slice(2, None), slice(0, 2)):  # those behind it and those before it
        other = batch.response_ids.clone()
        other[changed] = 49 - other[changed]
        two = read(policy, layouts.shared_prefix, replace(batch, response_ids=other), batch.mask)["logprob"]
        same = torch.ones(5, dtype=torch.bool)
        same[changed] = False
        torch.testing.assert_close(one[same], two[same], atol=1e-6, rtol=1e-6)
        assert not torch.allclose(one[~same], two[~same])


@pytest.mark.parametrize(
    "kind, changes, why",
    [
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "sliding_attention"),
        ("mistral", {"sliding_window": 8}, "window of 8"),
        ("gemma2", {"head_dim": 8}, "sliding_attention"),
        ("qwen3_next", {}, "linear_attention"),
        ("mamba", {}, "linear_attention"),
        ("bloom", {}, "cannot be exchanged"),  # positions by distance, not asked for
    ],
)
def test_models_that_cannot_be_packed_are_recognised(kind, changes, why):
    sizes = {} if kind in ("mamba", "bloom") else SIZES
    config = AutoConfig.for_model(kind, **{**sizes, **changes})
    assert layouts.choose(None, config) == "padded" == layouts.choose("padded", config)
    with pytest.raises(ValueError, match=f"{why}.*write padded"):
        layouts.choose("shared_prefix", config)


ALL = {
    "padded": layouts.padded,
    **{f"packed on {kind}": layouts.layout_on(kind, "shared_prefix") for kind in ("cpu", "cuda")},
}


@pytest.mark.parametrize("layout", ALL.values(), ids=ALL)
def test_a_load_is_what_the_inputs_take(layout):
    batch = ragged().rows(torch.tensor([0, 2, 4, 1, 3]))  # groups together, as a plan has them
    wanted = batch.mask & (torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(0)) > 0.4)
    load = reduce(layout.add, layouts.rows(batch, wanted), layouts.Load())
    inputs = layout.inputs(batch, wanted)
    assert load.positions == inputs.input_ids.numel() == inputs.position_ids.numel()
    if layout is layouts.padded:
        assert load.attended == 5 * inputs.input_ids.shape[1] ** 2
    elif layout is layouts.shared_prefix:  # each prompt's triangle, and of each response its own square and its prompt
        reach = dict(enumerate(ops.up_to_last(wanted).tolist()))
        own = sum(reach[i] * (len(batch.prompt_ids[i]) + reach[i]) for i in reach)
        assert load.attended == own + sum(n**2 // 2 for n in {len(prompt) for prompt in batch.prompt_ids})
    else:
        assert load.positions == 256 and load.filling == inputs.attention.groups[-1][0]


@pytest.mark.parametrize("prompt, response, size, groups", [(200, 100, 8, 4), (100, 1000, 8, 2), (1000, 300, 16, 1)])
def test_pairs_on_a_gpu_are_about_those_of_its_blocks(prompt, response, size, groups):
    draw, rows, parts = random.Random(0), [], []
    for group in range(groups):
        own, lengths = draw.randint(prompt // 2, prompt), [draw.randint(2, response) for _ in range(size)]
        rows += [layouts.Row(0, group, own, length) for length in lengths]
        parts.append((own, tuple(length - 1 for length in lengths)))
    load = reduce(layouts.shared_prefix_in_blocks.add, rows, layouts.Load())
    packing = Packing((*parts, (load.filling, ())))
    found = flex.blocks(packing.lengths, packing.prompts, torch.device("cpu"))
    computed = int(found.pairs[0].sum() + found.pairs[2].sum()) * flex.BLOCK**2
    assert load.attended == pytest.approx(computed, rel=0.15)


def test_what_is_behind_the_last_wanted_token_is_not_computed():
    batch = ragged()
    wanted = torch.zeros_like(batch.mask)
    wanted[3, 2] = True  # the third of 9 tokens
    inputs = layouts.shared_prefix.inputs(batch.rows(torch.tensor([3])), wanted[3:4])
    assert inputs.input_ids.shape == (1, 11 + 2)
