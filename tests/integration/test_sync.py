"""The real sampler has the trainer's weights after a sync, and visibly not before."""

import json
import os

import pytest
from support import tiny_model, tiny_task
from support.paths import PROGRAMS
from support.zygote import forked

from align.model import quantize

pytestmark = pytest.mark.engine
ADAPTER = ", adapter: {rank: 4, alpha: 8}"
TRAINER = "sampling.old_logprob=trainer"
STOP = ["1", "ab", ". "]
CUT = ["sampling.top_p=0.9", "sampling.top_k=40", "sampling.min_p=0.002", f"sampling.stop={json.dumps(STOP)}"]
SHARED = ["sampling.tensor_parallel=2"]
EVERY_PASS = [
    TRAINER,
    "objective.add=[{importance_weight: {}}, {kl_policy_ref: {coef: 0.01}}, {entropy_bonus: {coef: 0.01}}]",
]


@pytest.mark.parametrize(
    "machine, adapter, sync, more",
    [
        ("cpu", ADAPTER, "sampling.sync=merged", []),
        ("cpu", ADAPTER, "sampling.sync=adapter", EVERY_PASS),
        ("cpu", "", "sampling.sync=merged", EVERY_PASS),
        ("cpu_zero3", ADAPTER, "sampling.sync=merged", EVERY_PASS),
        ("cpu_zero2", "", "sampling.sync=merged", SHARED),
        ("cpu_zero3", ADAPTER, "sampling.sync=adapter", SHARED),
        ("cpu", ADAPTER, "sampling.engine=transformers", []),
        ("cpu", ADAPTER, "sampling.sync=merged", CUT),
        ("cpu", "", "sampling.engine=transformers", [*CUT, "objective.add=[{importance_weight: {}}]", TRAINER]),
    ],
)
def test_sampler_follows_trainer(machine, adapter, sync, more, folder, tmp_path):
    follows(machine, adapter, sync, more, folder, tmp_path)


@pytest.mark.parametrize("adapter", [ADAPTER, ""])
def test_sampler_follows_the_trainer_of_a_mixture(adapter, tmp_path):
    """Its experts are one tensor in the trainer, and others in the engine."""
    follows("cpu", adapter, "sampling.sync=merged", [], tiny_model.save_mixture(tmp_path / "mixture"), tmp_path)


@pytest.mark.skipif(quantize.why_not() is not None, reason="bitsandbytes is not installed")
def test_sampler_follows_a_trainer_in_4_bits(folder, tmp_path):
    """The engine loads the base as it is in its files, and gets the weights that the trainer computes with."""
    follows("cpu", f"{ADAPTER}, quantize: 4bit", "sampling.sync=adapter", [], folder, tmp_path)


def follows(machine, adapter, sync, more, folder, tmp_path):
    (tmp_path / "recipe.yaml").write_text(tiny_task.RECIPE.format(folder=folder, adapter=adapter, out=tmp_path / "run"))
    script = PROGRAMS / "sync.py"
    forked(machine, script, tmp_path / "recipe.yaml", tmp_path / "out.json", sync, *more)
    found = json.loads((tmp_path / "out.json").read_text())
    gaps = found["gaps"]
    for moment in ("start", "after four steps", "synced"):
        assert gaps[moment] < 1e-4, gaps
    if "transformers" not in sync:  # that engine shares the trainer's weights
        assert gaps["updated, not synced"] > 1e-3, gaps
    ranks = 1 if machine == "cpu" else 2
    assert found["engines"] == (1 if more == SHARED else ranks)
    assert found["threads"] == max(1, len(os.sched_getaffinity(0)) // ranks)
    for metrics in (
        found["first"],
        found["metrics"],
    ):  # one update a step: before it the policy is the one that sampled
        assert metrics["ratio"] == pytest.approx(1.0, abs=1e-4) and metrics["ratio_max"] == pytest.approx(1.0, abs=1e-3)
    if more and "sampling.top_p=0.9" in more:
        stopped = [text for text, _ in found["responses"] if any(text.endswith(end) for end in STOP)]
        assert stopped
        for text, truncated in found["responses"]:
            assert not any(end in text[:-1] for end in STOP)
            assert truncated != (text in stopped or text.endswith("<|im_end|>"))
