"""Packed behind a shared prompt or padded side by side: the same log-probabilities, entropies and gradients."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from align import layouts
from align.batch import Batch
from align.policy import Policy

SIZES = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=50,
    max_position_embeddings=128,
    initializer_range=0.3,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


def model(kind, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **changes})
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


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
        ids = batch.response_ids[i, : int(batch.length[i])]
        logits = network(torch.tensor([[*prompt, *ids.tolist()]])).logits[0] / temperature
        steps = logits.log_softmax(-1)[len(prompt) - 1 : len(prompt) - 1 + len(ids)]
        out[i, : len(ids)] = steps.gather(-1, ids[:, None])[:, 0]
    return out


@pytest.mark.parametrize("kind", sorted(layouts.FULL_ATTENTION))
def test_both_layouts_are_each_row_on_its_own(kind):
    network, batch = model(kind), ragged()
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
    other = batch.response_ids.clone()
    other[2:] = 49 - other[2:]
    policy = Policy(network, 1.0)
    one = read(policy, layouts.shared_prefix, batch, batch.mask)["logprob"][:2]
    two = read(policy, layouts.shared_prefix, replace(batch, response_ids=other), batch.mask)["logprob"][:2]
    torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "kind, changes, capable",
    [
        ("llama", {}, True),
        ("qwen2", {}, True),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, False),
        ("mistral", {"sliding_window": 8}, False),
        ("mistral", {"sliding_window": None}, True),
        ("gemma2", {"head_dim": 8}, False),  # every other layer has a window
        ("mamba", {}, False),
        ("gpt2", {}, False),  # not in the list of those that the tests compare
    ],
)
def test_models_that_cannot_be_packed_are_recognised(kind, changes, capable):
    sizes = {} if kind in ("mamba", "gpt2") else SIZES
    config = AutoConfig.for_model(kind, **{**sizes, **changes})
    assert layouts.choose(None, config) == ("shared_prefix" if capable else "padded")
    assert layouts.choose("padded", config) == "padded"
    if not capable:
        with pytest.raises(ValueError, match="write padded"):
            layouts.choose("shared_prefix", config)
