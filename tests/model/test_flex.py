"""Flex attention over packed rows: the GPU's way, which a CPU can trace but not compile with a gradient."""

import random
from functools import partial

import pytest
import torch
from support.networks import model
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils.checkpoint import checkpoint

from align.batch import Batch
from align.learner.support import packs
from align.model import attention, flex, layouts, policy
from align.model.attention import Packing, packed_attention
from align.model.locate import ModelError

CPU = torch.device("cpu")

PACKINGS = {
    "uneven lengths": ((5, (3, 1, 40)), (102, (77, 2)), (1, (4,))),
    "one response each": ((17, (60,)), (64, (30,)), (3, (2,))),
    "empty responses": ((50, ()), (20, (9,)), (33, ())),
    "a prompt longer than a block": ((300, (1, 130, 5)),),
}


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """Traced by dynamo and differentiated, but run by torch's own operations; torch refuses gradients on a CPU for want
    of a kernel alone."""
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(flex._attend, fullgraph=True, backend="aot_eager")
    monkeypatch.setattr(flex, "_compiled", lambda: compiled)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    yield
    torch._dynamo.reset()


def whole(groups):
    """A packing of whole blocks."""
    packing = Packing(tuple(groups))
    taken = sum(packing.lengths)
    return Packing((*packing.groups, (flex.filled(taken) - taken, ())))


def heads(packing, count=4, of_keys=2, dtype=torch.float32):
    """[query, key, value], each as a projection lays them out."""
    positions = sum(packing.lengths)
    made = [torch.randn(1, positions, n, 16, dtype=dtype).transpose(1, 2) for n in (count, of_keys, of_keys)]
    return [tensor.requires_grad_() for tensor in made]


def fused(packing, q, k, v, scale=None):
    return packed_attention(None, q, k, v, None, scale, packing=flex.blocks(packing.lengths, packing.prompts, CPU))[0]


@pytest.mark.parametrize("groups", PACKINGS.values(), ids=PACKINGS)
@pytest.mark.parametrize("of_keys", [4, 2, 1])
def test_values_and_gradients_are_those_of_attention_on_the_parts(groups, of_keys):
    torch.manual_seed(0)
    packing = whole(groups)
    inputs = heads(packing, 4, of_keys)
    ours, parts = fused(packing, *inputs, 0.3), packed_attention(None, *inputs, None, 0.3, packing=packing)[0]
    torch.testing.assert_close(ours, parts)
    weight = torch.randn_like(ours)
    one, two = (torch.autograd.grad((out * weight).sum(), inputs) for out in (ours, parts))
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("seed", range(5))
def test_the_blocks_are_those_that_torch_finds_in_the_dense_mask(seed):
    draw = random.Random(seed)
    groups = [(draw.randint(1, 300), tuple(draw.choices(range(1, 200), k=draw.randint(0, 5)))) for _ in range(4)]
    packing = whole(groups)
    found, positions = flex.blocks(packing.lengths, packing.prompts, CPU), sum(packing.lengths)
    part = torch.arange(len(packing.lengths)).repeat_interleave(torch.tensor(packing.lengths))
    prompt = torch.tensor(packing.prompts)[part]

    def sees(b, h, query, key):
        return (query >= key) & ((part[key] == part[query]) | (part[key] == prompt[query]))

    mask = create_block_mask(sees, None, None, positions, positions, device="cpu")
    pairs = (mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices)
    pairs += (mask.q_num_blocks, mask.q_indices, mask.full_q_num_blocks, mask.full_q_indices)
    for ours, theirs in zip(found.pairs, pairs, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_forty_packings_are_compiled_once():
    draw = random.Random(0)
    groups = [[(100, ())], [(1, (1,))]]  # the shortest sequences among them
    for _ in range(38):
        sizes = [(draw.randint(1, 150), draw.choices(range(1, 60), k=draw.randint(0, 4))) for _ in range(3)]
        groups.append([(prompt, tuple(responses)) for prompt, responses in sizes])
    packings = [whole(each) for each in groups]
    assert len({sum(packing.lengths) for packing in packings}) >= 4
    for packing in packings:
        fused(packing, *heads(packing), 0.3).sum().backward()
    assert counters["stats"]["unique_graphs"] == 1
    with torch.no_grad():
        for packing in packings[:5]:
            fused(packing, *heads(packing), 0.3)
    assert counters["stats"]["unique_graphs"] == 2  # one with a gradient, one without


def test_layers_that_are_computed_again_take_the_same_kernel():
    packing = whole(PACKINGS["uneven lengths"])
    inputs, seen = heads(packing), flex.blocks(packing.lengths, packing.prompts, CPU)
    run = partial(packed_attention, None, packing=seen)
    again = checkpoint(run, *inputs, None, use_reentrant=False)[0]
    one, two = (torch.autograd.grad(out.square().sum(), inputs) for out in (again, run(*inputs, None)[0]))
    torch.testing.assert_close(one, two, atol=0, rtol=0)
    assert counters["stats"]["unique_graphs"] == 1


def test_each_scale_has_its_kernel():
    """A kernel has its scale as a constant, which torch would otherwise turn into an input at the second one."""
    packing = whole(PACKINGS["uneven lengths"])
    inputs = heads(packing)
    for scale in (0.3, 0.4, 0.5):
        ours, parts = fused(packing, *inputs, scale), packed_attention(None, *inputs, None, scale, packing=packing)[0]
        torch.testing.assert_close(ours, parts)
    assert counters["stats"]["unique_graphs"] == 3


def test_a_kernel_that_was_not_compiled_is_an_error_with_its_fix():
    packing = whole(PACKINGS["uneven lengths"])
    with (
        torch.compiler.set_stance("force_eager"),
        pytest.raises(ModelError, match="all pairs; write optim.layout: pad"),
    ):
        fused(packing, *heads(packing))


def test_too_many_kernels_are_an_error_with_its_fix():
    packing = whole(PACKINGS["uneven lengths"])
    fused(packing, *heads(packing))
    with torch._dynamo.config.patch(recompile_limit=1), pytest.raises(ModelError, match="write optim.layout: padded"):
        fused(packing, *heads(packing, dtype=torch.bfloat16))


def test_what_the_kernel_cannot_do_is_refused():
    with pytest.raises(ValueError, match="130 positions are no whole blocks"):
        flex.blocks([100, 30], [0, 0], CPU)
    packing = whole(PACKINGS["uneven lengths"])
    with pytest.raises(NotImplementedError, match="heads of 8"):
        fused(packing, *(tensor[..., :8] for tensor in heads(packing)))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Models take the GPU's attention and its layout, on the CPU."""
    real, gpu, find = policy.attending, torch.device("cuda"), flex.blocks

    def attending(config, given, device):
        return real(config, given, gpu if isinstance(given, Packing) else device)

    monkeypatch.setattr(policy, "attending", attending)
    monkeypatch.setattr(attention.flex, "blocks", lambda lengths, prompts, device: find(lengths, prompts, CPU))
    monkeypatch.setattr("align.learner.support.layout_on", lambda kind, name: layouts.layout_on("cuda", name))


def test_a_model_gives_the_same_log_probabilities_and_gradients_packed_in_blocks(as_on_a_gpu):
    draw = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, 50, (n,), generator=draw).tolist() for n in (150, 11, 4, 130, 1, 9, 0)]
    batch = Batch.of([0, 1, 0, 1, 0], ids[2:], prompt_ids=[ids[0], ids[1], ids[0], ids[1], ids[0]])
    network = model("qwen3", head_dim=16)
    found = []
    for layout in (layouts.padded, layouts.layout_on("cuda", "shared_prefix")):
        inputs = layout.inputs(batch, batch.mask)
        value = inputs.scatter(policy.Policy(network, 0.8)(inputs)["logprob"], batch.mask.shape)
        gradients = torch.autograd.grad((value * torch.arange(1, 131)).mean(), list(network.parameters()))
        found.append((value, *gradients))
    assert inputs.input_ids.shape == (1, 384)  # 150 + 11 and 3 + 129 + 0 + 8 + 0 of the responses, and what fills them
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-4)


def test_whether_a_model_packs_is_found_out_as_it_will_run(as_on_a_gpu):
    assert packs(policy.Policy(model("llama", head_dim=16), 1.0)) and counters["stats"]["unique_graphs"] == 1
    assert not packs(policy.Policy(model("llama", head_dim=8), 1.0))  # the kernel has no such heads
