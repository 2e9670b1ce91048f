"""The keys that make a recipe fit: each way is tried by estimating anew."""

from dataclasses import replace

import pytest
from support import shapes

from align.check import remedies
from align.check.memory import fits


def adapted(name):
    return lambda: shapes.policy(name, True)


def keys(name, **changes):
    """[[text]] of the ways to make a run fit."""
    setup = shapes.setup(name, **{"lora": False, "zero": 2, "gpus": 8, **changes})
    return [[change.text for change in way] for way in remedies.ways(setup, adapted(name))]


CASES = [
    (name, lora, zero, gpus)
    for name in shapes.MODELS
    for lora in (True, False)
    for zero in (2, 3)
    for gpus in (1, 4, 8)
]


@pytest.mark.parametrize("name, lora, zero, gpus", CASES)
def test_what_is_named_makes_it_fit_and_none_can_be_left_out(name, lora, zero, gpus):
    setup = shapes.setup(name, lora=lora, zero=zero, gpus=gpus)
    if fits(setup):
        assert remedies.problem(setup, adapted(name)) is None
        return
    for way in remedies.ways(setup, adapted(name)):
        assert fits(way[-1].setup) and not any(fits(change.setup) for change in way[:-1])


def test_where_one_key_is_enough_no_way_has_two():
    setup = replace(shapes.setup("Qwen3-8B", lora=True, zero=2, gpus=1), checkpointed=False)
    ways = remedies.ways(setup, adapted("Qwen3-8B"))
    assert ["optim.checkpoint_activations: true"] in [[change.text for change in way] for way in ways]
    assert all(len(way) == 1 for way in ways) and len(ways) <= remedies.SHOWN


def test_the_smallest_change_comes_first():
    base = shapes.setup("Qwen3-8B", lora=True, zero=2, gpus=8)
    large = replace(base, sampler=replace(base.sampler, cache=60.0))
    first = remedies.ways(large, adapted("Qwen3-8B"))[0]
    assert first[0].text.startswith("sampling.cache_gib: ") and fits(first[0].setup)
    assert first[0].setup.sampler.cache > 30  # no smaller than it has to be
    awake = replace(base, sampler=replace(base.sampler, cache=30.0, sleeps=False), row=1024, checkpointed=False)
    awake = replace(awake, micro_batch=4096)
    told = [way[0].text for way in remedies.ways(awake, adapted("Qwen3-8B"))]
    assert told[:2] == ["sampling.cache_gib: 28.2", "sampling.sleep: true"] or "sampling.sleep: true" in told


def test_a_model_too_large_for_one_gpu_gets_its_engine_divided():
    assert keys("Llama-3.1-70B", lora=True, zero=3) == [["sampling.tensor_parallel: 4"]]
    [way] = keys("Llama-3.1-70B", zero=3, gpus=16)
    assert "sampling.tensor_parallel: 4" in way and any("optim.offload_optimizer" in key for key in way)


def test_an_adapter_is_the_last_of_the_ways():
    ways = keys("Qwen3-8B", gpus=1)
    assert ways == [["model.adapter: {rank: 16}"]] or ways[-1] == ["model.adapter: {rank: 16}"]
    assert not any("quantize" in key for way in ways for key in way)  # all weights are trained


def test_where_nothing_helps_it_says_so():
    setup = replace(shapes.setup("Llama-3.1-70B", lora=False, zero=2, gpus=1), gpu_gib=2.0)
    assert remedies.problem(setup, adapted("Llama-3.1-70B")).endswith(
        "no key makes it fit: take a smaller model, or larger GPUs"
    )


def test_the_problem_says_how_sure_it_is():
    told = remedies.problem(shapes.setup("Llama-3.1-70B", lora=True, zero=3, gpus=8), adapted("Llama-3.1-70B"))
    assert "GiB of a GPU's 80, by arithmetic, not measured; it would fit with sampling.tensor_parallel: 4 (" in told
