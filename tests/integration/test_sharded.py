"""Under ZeRO-3 no rank ever holds the whole model: not while it is loaded, not while it is saved."""

import json

import pytest
import torch
from support import tiny_model
from support.paths import PROGRAMS
from support.zygote import forked

from align.model.load import load_model
from align.result import record

pytestmark = pytest.mark.engine


def test_no_rank_holds_the_whole_model(folder, tmp_path):
    forked("cpu_zero3", PROGRAMS / "sharded.py", folder, tmp_path)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for found in ranks:
        assert found["loaded"] == found["frozen"] < 0.51 * found["whole"]
        assert found["gathered"]["save"] == found["largest"]  # one parameter at a time
        assert found["gathered"]["load"] <= 2 * found["largest"] < 0.5 * found["whole"]  # the tied head is one too
    assert ranks[1]["written"] == []  # what is not written is not kept
    assert len(ranks[0]["written"]) > 2 and max(ranks[0]["written"]) < 0.5 * ranks[0]["whole"]
    assert sum(ranks[0]["written"]) == ranks[0]["whole"]
    before, after = (dict(load_model(str(path), "float32").named_parameters()) for path in (folder, tmp_path / "model"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert record.digest(record.stored(folder)) == record.digest(record.stored(tmp_path / "model"))


@pytest.mark.parametrize("kind, passes", [("full", 2), ("lora", 1)])
def test_the_head_is_gathered_once_a_pass_and_not_once_a_chunk(kind, passes, tmp_path):
    """Forward and backward where it is trained, unless DeepSpeed still has it; frozen, the backward pass needs none."""
    model = tiny_model.save_model(tmp_path / "model", tied=False)
    forked("cpu_zero3", PROGRAMS / "gathers.py", model, kind, tmp_path / "out")
    found = json.loads((tmp_path / "out").read_text())
    once = found["micro_batches"]
    assert once > 1 and all(once <= count <= passes * once for count in found["gathers"])
