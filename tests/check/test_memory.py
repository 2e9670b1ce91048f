"""The arithmetic of the estimate, against sums by hand."""

from dataclasses import replace

import pytest
from support import shapes

from align.check.memory import (
    ASLEEP,
    AWAKE,
    CONTEXT,
    GIB,
    GRAPHS,
    SHARE,
    Sampler,
    Setup,
    Sizes,
    activations,
    fits,
    peak,
    phases,
)

BILLION = 10**9

POLICY = Sizes(
    base=10 * BILLION,
    added=0,
    trained=10 * BILLION,
    linear=8 * BILLION,
    largest=BILLION // 2,
    largest_trained=BILLION // 2,
    head=BILLION // 2,
    layers=40,
    hidden=4096,
    intermediate=16_384,
    vocabulary=100_000,
    heads=8,
    kept=8 * 2**20,
    cached=160 * 1024,
)

LORA = replace(POLICY, added=100_000_000, trained=100_000_000, largest_trained=1_000_000)

GPUS = Setup(
    policy=POLICY,
    gpu_gib=80.0,
    processes=8,
    zero_stage=2,
    width=2,
    moments=2,
    frozen=0,
    reference=0,
    tokens=10**6,
    row=8192,
    micro_batch=4096,
    sampler=Sampler(sequences=64, context=8192, cache=10.0, sleeps=True),
)


def gib(number: float) -> float:
    return pytest.approx(number / GIB, abs=1e-3)


def test_the_update_of_a_model_of_ten_billion():
    found = phases(GPUS)["update"]
    assert found["weights"] == gib(20e9) and found["optimiser"] == gib(12 * 10e9 / 8)
    assert found["gradients"] == gib(4 * 10e9 / 8)
    assert found["activations"] == gib(8192 * 8 * 2**20)  # a row is larger than a micro-batch of several
    assert found["logits"] == gib(4 * 256 * 100_000 * 4)
    assert found["reduction"] == gib(5e8 * 2 + 5e8 * 4 + 5e8 * 2)
    assert found["total"] == pytest.approx(sum(v for k, v in found.items() if k != "total"), abs=0.01)
    assert {"engine weights", "key-value cache"}.isdisjoint(found)  # asleep


def test_sampling_and_the_sync():
    found = phases(GPUS)
    assert found["sampling"]["engine weights"] == gib(20e9) and found["sampling"]["key-value cache"] == 10.0
    assert {"activations", "gradients"}.isdisjoint(found["sampling"])
    assert found["sync"]["weights on their way"] == gib(2 * 5e8 * 2) and "key-value cache" not in found["sync"]
    awake = phases(replace(GPUS, sampler=replace(GPUS.sampler, sleeps=False)))
    assert awake["update"]["key-value cache"] == 10.0 and awake["update"]["engine weights"] == gib(20e9)


def test_an_adapters_base_stays_while_the_cache_sleeps():
    found = phases(replace(GPUS, policy=LORA, sampler=replace(GPUS.sampler, merged=False)))
    assert found["update"]["engine weights"] == gib(20.2e9) and "key-value cache" not in found["update"]
    assert found["sync"]["weights on their way"] == gib(0.2e9)
    assert found["update"]["optimiser"] == gib(12 * 0.1e9 / 8)


def test_zero_3_divides_weights_and_gathers_some():
    two, three = phases(GPUS)["update"], phases(replace(GPUS, zero_stage=3))["update"]
    assert three["weights"] == pytest.approx(two["weights"] / 8, abs=1e-3)
    assert three["gathered layers"] == gib((1e9 + 5e8) * 2)
    assert phases(replace(GPUS, zero_stage=3))["sampling"]["gradients"] == three["gradients"]


def test_checkpoints_keep_the_input_of_each_layer_and_one_layer():
    short = replace(GPUS, checkpointed=True, row=1024, micro_batch=1024, tokens=8 * 1024)
    assert activations(short) == 1024 * (40 * 4096 * 2 + 8 * 2**20 / 40)
    assert activations(replace(short, checkpointed=False)) == 1024 * 8 * 2**20


def test_passes_without_a_gradient_hold_a_layer_of_four_times_as_many_tokens():
    narrow = replace(POLICY, hidden=1)
    free = replace(GPUS, policy=narrow, checkpointed=True, row=1, micro_batch=1024)
    assert activations(free) == 4 * 1024 * 8 * 2**20 / 40


@pytest.mark.parametrize("sleeps, share", [(True, ASLEEP), (False, AWAKE)])
def test_an_open_cache_takes_its_share_of_what_is_free(sleeps, share):
    setup = replace(GPUS, sampler=replace(GPUS.sampler, cache=None, sleeps=sleeps, sequences=10**6))
    held = 20e9 + 15e9 + 20e9  # weights, optimiser, the engine's weights
    assert phases(setup)["sampling"]["key-value cache"] == gib(share * ((80 - CONTEXT) * GIB - held))
    few = replace(setup, sampler=replace(setup.sampler, sequences=2))
    assert phases(few)["sampling"]["key-value cache"] == gib(2 * 8192 * 160 * 1024)


def test_tensor_parallel_divides_the_engine():
    four = phases(replace(GPUS, sampler=replace(GPUS.sampler, cache=None, sequences=2, tensor_parallel=4)))["sampling"]
    assert four["engine weights"] == gib(5e9) and four["key-value cache"] == gib(2 * 8192 * 160 * 1024 / 4)
    sixteen = replace(GPUS.sampler, cache=None, sequences=2, tensor_parallel=16)
    assert phases(replace(GPUS, sampler=sixteen))["sampling"]["key-value cache"] == gib(2 * 8192 * 160 * 1024 / 8)


def test_where_the_optimiser_is():
    between, cpu = (replace(GPUS, checkpointed=True, offload=place) for place in ("between_steps", "cpu"))
    assert "optimiser" not in phases(between)["sampling"] and "optimiser" not in phases(between)["sync"]
    assert phases(between)["update"]["optimiser step"] == gib(4 * 10e9 / 8)  # the step takes more than the rest
    assert phases(between)["update"]["optimiser"] == gib(15e9)
    assert "optimiser" not in phases(cpu)["update"] and phases(cpu)["update"]["gradients"] == 0


def test_four_bits():
    found = phases(replace(GPUS, policy=LORA, quantised=True))["update"]["weights"]
    assert found == pytest.approx((8e9 * 0.516 + 2.1e9 * 2) / GIB, rel=1e-3)


def test_frozen_models_and_one_process_without_zero():
    alone = phases(replace(GPUS, frozen=2, processes=1, zero_stage=0, sampler=None))
    assert set(alone) == {"update"} and alone["update"]["reference and guide"] == gib(40e9)
    assert alone["update"]["CUDA graphs"] == 0 and alone["update"]["CUDA context"] == CONTEXT
    assert phases(GPUS)["update"]["CUDA graphs"] == GRAPHS


def test_a_cpu_has_one_phase_and_gives_nothing_back():
    found = phases(replace(GPUS, gpu_gib=None, width=4, zero_stage=0, sampler=replace(GPUS.sampler, sleeps=False)))
    assert set(found) == {"run"} and {"engine weights", "libraries", "compiled code"} <= set(found["run"])
    assert found["run"]["gradients"] == gib(40e9) and found["run"]["optimiser"] == gib(80e9)
    assert found["run"]["key-value cache"] == 10.0


def test_an_estimate_fits_where_it_leaves_a_part_of_the_card():
    _, most = peak(GPUS)
    assert fits(replace(GPUS, gpu_gib=most / SHARE + 0.1)) and not fits(replace(GPUS, gpu_gib=most / SHARE - 0.1))
    assert fits(replace(GPUS, gpu_gib=None))


def test_more_gpus_never_take_more_and_more_bits_never_less():
    for name in shapes.MODELS:
        for zero in (2, 3):
            totals = [peak(shapes.setup(name, lora=False, zero=zero, gpus=n))[1] for n in (2, 4, 8, 16)]
            assert totals == sorted(totals, reverse=True)
