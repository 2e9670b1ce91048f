"""The engine's update against plain autograd on one row at a time: ZeRO off, 2 and 3; one and two processes.

Groups straddle the ranks: three groups of four over two processes.
"""

import pytest
import torch
from safetensors.torch import load_file
from support import reference_update
from support.paths import PROGRAMS
from support.zygote import forked

from align.model.load import load_model

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def by_autograd(folder, guide):
    known = {}

    def updated(kind, family):
        if (kind, family) not in known:
            known[kind, family] = reference_update.updated(folder, guide, kind, family)
        return known[kind, family]

    return updated


MACHINES = [
    *(("cpu", "padded"), ("cpu", "shared_prefix")),
    *(("cpu_zero2", "shared_prefix"), ("cpu_zero3", "shared_prefix"), ("cpu_zero3", "padded")),
]


@pytest.mark.parametrize(
    "kind, family, machine, layout",
    [
        *((kind, "gfpo", *machine) for kind in ("lora", "full") for machine in MACHINES),
        *(("lora", family, *machine) for family in ("policy", "pairs", "masks", "value") for machine in MACHINES[2:4]),
        *(("full", family, *MACHINES[3]) for family in ("pairs", "masks", "value")),
        ("full", "masks", *MACHINES[2]),
        ("lora", "both", *MACHINES[2]),
    ],
)
def test_update_is_plain_autograd(kind, family, machine, layout, folder, guide, by_autograd, tmp_path):
    right = by_autograd(kind, family)
    script = PROGRAMS / "update.py"
    forked(machine, script, folder, guide, kind, layout, family, "keep", tmp_path / "out")
    got = load_file(tmp_path / "out")
    assert set(got) == set(right)
    for name in right:
        if name.startswith(("loss_", "norm_")):
            assert float(got[name]) == pytest.approx(float(right[name]), rel=1e-4, abs=1e-6), name
    names = [name for name in right if not name.startswith(("loss_", "norm_"))]
    error = torch.stack([(got[name] - right[name]).norm() for name in names]).norm()
    start = dict(load_model(str(folder), "float32").named_parameters())
    if kind == "full":
        moved = torch.stack([(right[name] - start[name]).norm() for name in names if name in start]).norm()
    else:
        moved = torch.stack([right[name].norm() for name in names if "lora_B" in name]).norm()  # they start at 0
    assert moved > 0.01 and error < 1e-4 * moved


@pytest.mark.parametrize(
    "kind, family, machine, layout",
    [
        ("full", "masks", "cpu", "padded"),
        ("lora", "masks", "cpu_zero2", "shared_prefix"),
        ("lora", "pairs", "cpu_zero3", "shared_prefix"),
        ("full", "both", "cpu_zero3", "padded"),
    ],
)
def test_layers_computed_again_give_the_same_update_to_the_last_bit(
    kind, family, machine, layout, folder, guide, tmp_path
):
    for layers in ("keep", "recompute"):
        forked(machine, PROGRAMS / "update.py", folder, guide, kind, layout, family, layers, tmp_path / layers)
    kept, again = load_file(tmp_path / "keep"), load_file(tmp_path / "recompute")
    assert set(kept) == set(again)
    assert [name for name in kept if not torch.equal(kept[name], again[name])] == []


@pytest.mark.parametrize("machine", ["cpu_zero2", "cpu_zero3"])
@pytest.mark.parametrize("family", ["gfpo", "policy", "pairs", "masks", "value", "both"])
def test_ranks_that_credit_their_own_groups_give_the_same_update_to_the_last_bit(
    family, machine, folder, guide, tmp_path
):
    for way in ([], ["shares"]):
        forked(
            *(machine, PROGRAMS / "update.py", folder, guide, "lora", "shared_prefix", family, "keep"),
            *(tmp_path / f"out{len(way)}", *way),
        )
    gathered, shared = load_file(tmp_path / "out0"), load_file(tmp_path / "out1")
    assert set(gathered) == set(shared)
    assert [name for name in gathered if not torch.equal(gathered[name], shared[name])] == []
