"""The proof in bfloat16, with real engines and a policy that really moves: planted faults are seen, healthy steps pass.

Longer, with more faults: `tests/bench/proof.py`.
"""

import json

import pytest
from support import tiny_model, tiny_task
from support.paths import PROGRAMS
from support.zygote import forked

pytestmark = pytest.mark.engine


def test_faults_that_rounding_hides_are_seen_within_five_steps(tmp_path):
    """LoRA, merged: its scale a tenth too large, a module missing, an adapter one step old."""
    folder = tiny_model.save_model(tmp_path / "tiny")
    recipe = tiny_task.RECIPE.format(folder=folder, adapter=", adapter: {rank: 4, alpha: 8}", out=tmp_path / "run")
    (tmp_path / "recipe.yaml").write_text(recipe.replace("lr: 0.01", "lr: 0.004"))
    planted = ["scale 1.1", "no o_proj", "old"]
    more = ("model.dtype=bfloat16", "sampling.sync=merged")
    program = PROGRAMS / "proof.py"
    forked("cpu", program, tmp_path / "recipe.yaml", tmp_path / "out.json", 10, ",".join(planted), *more)
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["alarms"] == [] and len(found["healthy"]) == 11
    assert all(one["steps"] for one in found["found"]) and len(found["found"]) == 3, found["found"]
    kinds = {one["fault"]: one["kind"] for one in found["found"]}
    assert kinds["scale 1.1"] == "part of the weights" and kinds["old"] == "stale adapter", found["found"]
