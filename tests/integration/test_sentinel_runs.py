"""What the sentinel does in real runs: a step that is not finite changes nothing, rolling back, stopping."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.paths import PROGRAMS, ROOT
from support.tiny_task import RECIPE
from support.zygote import fork, forked

pytestmark = pytest.mark.engine
OURS = "align/train.py"  # in a traceback


def updated(machine: str, folder: Path, updates: str, out: Path) -> tuple[dict, dict]:
    """(weights, what was measured) after these updates."""
    forked(machine, PROGRAMS / "skip.py", folder, updates, out)
    with safe_open(out, "pt") as file:
        return load_file(out), {name: json.loads(value) for name, value in file.metadata().items()}


@pytest.mark.parametrize("machine, ranks", [("cpu", 1), ("cpu_zero2", 2), ("cpu_zero3", 2)])
def test_a_step_that_is_not_finite_is_as_if_it_had_not_been(machine, ranks, folder, tmp_path):
    plain, _ = updated(machine, folder, "fine,fine,fine", tmp_path / "plain")
    faulty, found = updated(machine, folder, "fine,advantage,fine,loss,gradient,fine", tmp_path / "faulty")
    assert found["skipped"] == [[0, 1, 0, 1, 1, 0]] * ranks
    finite = [torch.tensor([row["loss"], row["grad_norm"]]).isfinite().tolist() for row in found["metrics"]]
    assert finite == [[True, True], [False, False], [True, True], [False, False], [True, False], [True, True]]
    assert set(plain) == set(faulty) and all(torch.equal(plain[name], faulty[name]) for name in plain)
    assert max(float(value.abs().max()) for name, value in plain.items() if "lora_B" in name) > 0.01


def recipe(folder: Path, tmp_path: Path, *overrides: str) -> list[str]:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder, adapter=", adapter: {rank: 4, alpha: 8}", out=tmp_path / "run"))
    return [str(path), "data.holdout=0", "optim.lr=0.003", *overrides]


def steps_of(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]


def test_the_offending_batch_is_written_down(folder, tmp_path):
    objective = 'objective={name: "support.faults:not_finite", at: 0.5}'
    own = recipe(folder, tmp_path, objective, "sampling.engine=transformers", "run.steps=4")
    said = forked("cpu_zero2", ROOT / "recipes/train.py", *own)
    rows = steps_of(tmp_path)
    assert [row["skipped"] for row in rows] == [0, 0, 1, 0]
    assert [row["step"] for row in rows if "sentinel/non_finite" in row] == [3]
    assert said.count("step 3: sentinel: non_finite: an update was skipped") == 1  # by one of two ranks
    assert sorted(path.name for path in (tmp_path / "run/dumps").iterdir()) == ["step_3.jsonl", "step_3.safetensors"]
    dumped = [json.loads(line) for line in (tmp_path / "run/dumps/step_3.jsonl").read_text().splitlines()]
    (wrong,) = [row for row in dumped if row["not_finite"]]
    assert len(dumped) == 16 and wrong["not_finite"] == ["advantage"] and "digits" in wrong["prompt"]
    tensors = load_file(tmp_path / "run/dumps/step_3.safetensors")
    assert not tensors["data/not_finite/advantage"][wrong["row"]].isfinite().all()
    assert tensors["data/not_finite/logprob"].isfinite().all() and tensors["data/not_finite/logprob"].any()


@pytest.mark.parametrize("machine, engine", [("cpu", "transformers"), ("cpu_zero3", "vllm")])
def test_rolled_back_and_then_stopped(machine, engine, folder, tmp_path):
    """From step 4 on the ratio is too large. Step 5 sees it twice and goes back to step 3; step 7 may not again."""
    watch = "sentinel={ratio_blow_up: {for_steps: 2, action: rollback}, rollbacks: 1}"
    steps = ("run.steps=8", "run.save_every=1", "run.keep=9", "sampling.old_logprob=trainer")
    far = 'objective={name: "support.faults:far", after: 0.375}'
    own = recipe(folder, tmp_path, far, watch, f"sampling.engine={engine}", *steps)
    code, said = fork(machine, ROOT / "recipes/train.py", *own)
    assert code == 1
    assert "step 5: sentinel: ratio_blow_up: ratio_max is" in said
    assert "the run stops: it was rolled back 1 times" in said and OURS not in said
    assert f"run.resume={tmp_path / 'run'}" in said
    rows = steps_of(tmp_path)
    acts = ("sentinel/ratio_blow_up", "sentinel/rollback", "sentinel/stop")
    assert [[row["step"] for row in rows if act in row] for act in acts] == [[5, 7], [5], [7]]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7] and rows[3]["grad_norm"] > 0
    checkpoints = tmp_path / "run/checkpoints"
    three, four, five = (saved(checkpoints / name) for name in ("step_3", "replaced_1_step_4", "step_5"))
    assert all(torch.equal(three[name], five[name]) for name in three)
    assert not all(torch.equal(three[name], four[name]) for name in three)
    assert (checkpoints / "step_7").is_dir()


def test_a_run_without_gradient_stops_says_why_and_goes_on(folder, tmp_path):
    """All rewards are 0. What was stopped is saved, so a resumed run has the next step before it."""
    nothing = ('rewards={"support.tiny_task:digits": 0.0}', "sampling.engine=transformers", "run.steps=4")
    watch = "sentinel.no_signal={for_steps: 2, action: stop}"
    code, said = fork("cpu", ROOT / "recipes/train.py", *recipe(folder, tmp_path, *nothing, watch))
    assert code == 1 and OURS not in said
    assert "step 2: sentinel: no_signal: no token carried gradient in 2 steps" in said
    assert "group_advantage: the responses of a group had the same reward; raise sampling.group_size" in said
    resume = (f"run.resume={tmp_path / 'run'}", "sentinel.no_signal={for_steps: 2, action: warn}")
    said = forked("cpu", ROOT / "recipes/train.py", *recipe(folder, tmp_path, *nothing, *resume))
    assert "step 4: sentinel: no_signal" in said
    assert [row["step"] for row in steps_of(tmp_path)] == [1, 2, 3, 4]


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of the first rank's trained weights, whole or its part of them."""
    parts = [path for path in sorted((folder / "engine").rglob("*.pt")) if "model_states" in path.name]
    optimizer = [path for path in sorted((folder / "engine").rglob("*.pt")) if "optim_states" in path.name]
    return _tensors(torch.load((optimizer or parts)[0], weights_only=False), "")


def _tensors(value, name: str) -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {key: tensor for part, inner in items for key, tensor in _tensors(inner, f"{name}/{part}").items()}
