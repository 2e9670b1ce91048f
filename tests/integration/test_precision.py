"""Training in bfloat16: which precision weights, float32 masters and sums of gradients really have, at each stage."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.paths import PROGRAMS
from support.zygote import forked

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(
    "machine, kind", [("cpu", "lora"), ("cpu_zero2", "full"), ("cpu_zero3", "full"), ("cpu_zero3", "lora")]
)
def test_the_sum_over_micro_batches_is_float32(machine, kind, folder, tmp_path):
    """Each of the micro-batches gives an exact part of the gradient, a power of 2: only sums could differ."""
    forked(machine, PROGRAMS / "precision.py", folder, kind, tmp_path / "out")
    with safe_open(tmp_path / "out", "pt") as found:
        told = json.loads(found.metadata()["told"])
        gradients = {name: found.get_tensor(name) for name in found.keys()}  # noqa: SIM118
    ranks = 1 if machine == "cpu" else 2
    assert told["micro-batches"] == [2 // ranks, 64]
    assert told["weights"] == ["torch.bfloat16"] and told["masters"] == told["gradients"] == ["torch.float32"]
    names = [name.removeprefix("one/") for name in gradients if name.startswith("one/")]
    norm = torch.stack([gradients[f"one/{name}"].norm() for name in names]).norm()
    error = torch.stack([(gradients[f"one/{name}"] - gradients[f"many/{name}"]).norm() for name in names]).norm()
    assert norm > 0.01 and error < 1e-5 * norm


ROUNDED = {"between_steps": 0.0, "cpu": 1e-4}  # Adam divides by the size of a gradient, also of one that is nearly 0

AWAY = [("cpu_zero2", "between_steps"), ("cpu_zero2", "cpu"), ("cpu_zero3", "cpu")]


@pytest.mark.parametrize("machine, offload", AWAY)
def test_where_the_optimiser_s_states_are_changes_nothing(machine, offload, folder, tmp_path):
    """DeepSpeed's Adam for CPUs rounds otherwise than torch's; moving the states changes no bit."""
    for where in ("none", offload):
        forked(machine, PROGRAMS / "skip.py", folder, "fine,fine,fine", tmp_path / where, "float32", where)
    here, away = (load_file(tmp_path / where) for where in ("none", offload))
    for name, value in here.items():
        torch.testing.assert_close(away[name], value, rtol=0, atol=ROUNDED[offload])
