"""Runs that end badly say so in one line, leave nothing half done, and go on where that helps."""

import shutil
from pathlib import Path

import psutil
import pytest
from support.paths import PROGRAMS, ROOT
from support.zygote import fork, forked

from align.system.lock import held

pytestmark = pytest.mark.engine
TRAIN = ROOT / "recipes/train.py"
SMALL = """
data.args.size=24 data.holdout=4 data.prompts_per_step=4 sampling.group_size=4 objective.k=3
sampling.max_response_tokens=10 sampling.engine=transformers eval.samples=2 eval.pass_at=[1,2]
optim.lr=0.02 optim.micro_batch_tokens=400 run.steps=1
"""
REWARDS = 'rewards=[{fn: "rewards.gym:correct"}, {fn: "rewards.length:length_penalty", args: {per_token: 0.1}}]'


def words(folder: Path, out: Path, *more: str) -> list[str]:
    recipe = ROOT / "recipes/gfpo_chain_sum.yaml"
    return [str(recipe), f"model.policy={folder}", f"run.out={out}", *SMALL.split(), REWARDS, *more]


def test_a_full_disk_at_the_end_is_one_line_and_the_run_goes_on(folder, tmp_path):
    out = tmp_path / "run"
    code, said = fork("cpu", PROGRAMS / "full_disk.py", *words(folder, out))
    told = [line for line in said.splitlines() if "cannot be written" in line]
    assert code == 1 and len(told) == 1 and "Traceback" not in said, said
    assert told[0].startswith(f"{out}/adapter: ") and told[0].endswith("make room, then go on with --resume")
    assert not (out / "adapter").exists()
    assert "step_1: 1 steps done" in forked("cpu", TRAIN, *words(folder, out, "--resume"))
    assert (out / "adapter/align.json").is_file()


def test_a_run_whose_updates_were_all_left_out_ends_with_an_error(folder, tmp_path):
    out = tmp_path / "run"
    wrong = 'objective={name: "support.faults:not_finite", at: 0.0, groups: 4}'
    own = [word for word in words(folder, out, wrong) if not word.startswith("objective.k=")]
    code, said = fork("cpu", TRAIN, *own)
    assert code == 1 and "Traceback" not in said, said
    assert said.rstrip().splitlines()[-1].startswith("all 1 updates were left out, for loss or gradient was not finite")
    assert not (out / "adapter").exists() and (out / "checkpoints/step_1").is_dir()


def test_a_second_run_in_one_folder_is_refused_and_a_build_lock_of_a_killed_one_is_not_waited_for(folder, tmp_path):
    (built,) = Path.home().glob(".cache/torch_extensions/*/deepspeed_shm_comm")
    shutil.copytree(built, tmp_path / "extensions/deepspeed_shm_comm")
    (tmp_path / "extensions/deepspeed_shm_comm/lock").touch()
    out = tmp_path / "run"
    with held(out):
        code, said = fork("cpu", TRAIN, *words(folder, out), timeout=300, TORCH_EXTENSIONS_DIR=f"{tmp_path}/extensions")
    assert code == 1 and "Traceback" not in said, said
    assert f"run.out: {out} is in use by another run: process {psutil.Process().pid} on " in said
    assert sorted(path.name for path in out.iterdir()) == [".lock", ".lock.json"]
    assert not (tmp_path / "extensions/deepspeed_shm_comm/lock").exists()
