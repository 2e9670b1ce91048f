"""Runs that are killed with SIGKILL and resumed, again and again, against one that is left alone: bit for bit."""

import json
import re
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from support.launch import launch, start
from support.paths import PROGRAMS, ROOT
from support.tiny_task import episodes

pytestmark = pytest.mark.engine
DRIVER = PROGRAMS / "killed.py"
SMALL = """
data.args.size=24 data.holdout=4 data.prompts_per_step=4 sampling.group_size=4
sampling.max_response_tokens=10 sampling.compile=false sampling.cache_gib=0.25 eval.samples=2 eval.pass_at=[1,2]
optim.lr=0.02 optim.micro_batch_tokens=400 optim.schedule=linear optim.warmup_steps=2
"""
# transforms that remember, several rounds a step, and rewards that a random model gets
SHORT = [
    'rewards=[{fn: "rewards.gym:correct"}, {fn: "rewards.length:length_penalty", args: {per_token: 0.1}}]',
    "correct={reward: length_penalty, at_least: -0.95}",
    "objective.k={very_hard: 4, hard: 4, medium: 3, easy: 2, warmup_prompts: 3}",
]
TRANSFORMERS = ["sampling.engine=transformers", "sampling.dynamic_sampling={rounds: 2}"]
# of 8 steps with a checkpoint every two, two of them kept, and an evaluation every three
KILLS = [
    *(
        ["loading", 0],
        ["described", 0],
        ["generating", 0],
        ["before the evaluation's line", 0],
        ["evaluation logged", 0],
    ),
    *(["generating", 1], ["sampled", 1], ["scored, not on disk", 1], ["updated", 1]),
    *(["half an entry", 2], ["scored", 2], ["checkpoint begun", 2], ["half a checkpoint file", 2]),
    *(["before checksums", 2], ["checkpoint named", 2]),
    *(["updating", 3], ["syncing", 3], ["half a line", 3], ["before samples", 3], ["evaluating", 3]),
    *(["evaluation logged", 3], ["before fsync", 4], ["generating", 5], ["half removed", 6]),
    *(["before forgetting", 8], ["before the adapter", 8], ["adapter saved", 8], ["reporting", 8], ["finished", 8]),
]


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    recipe = ROOT / "recipes/gfpo_chain_sum.yaml"
    return [str(recipe), f"model.policy={folder}", f"run.out={out}", *SMALL.split(), *SHORT, *more]


def result(out: Path) -> dict:
    """All that a run leaves which must not depend on whether it was killed."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    machine = ("seconds/", "memory/")
    return {
        "metrics": [{k: v for k, v in row.items() if not k.startswith(machine)} for row in rows],
        **{name: (out / name).read_text() for name in ("samples.jsonl", "greedy.jsonl")},
        "checkpoints": sorted(path.name for path in (out / "checkpoints").iterdir()),
        "rollouts": list((out / "rollouts").iterdir()),
    }


def assert_same(killed: Path, whole: Path, steps: int):
    one, two = result(killed), result(whole)
    assert one == two
    assert sum("loss" in row for row in two["metrics"]) == steps
    tensors = [load_file(out / "adapter/adapter_model.safetensors") for out in (killed, whole)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0] | tensors[1])
    assert max(float(value.abs().max()) for name, value in tensors[1].items() if "lora_B" in name) > 0.01


def counts(seen: Path, kind: str) -> Counter:
    return Counter(line for line in seen.read_text().splitlines() if line.startswith(kind))


def test_a_run_killed_at_every_point_ends_as_one_left_alone(folder, tmp_path):
    schedule = ["run.steps=8", "run.save_every=2", "run.eval_every=3", "run.keep=2", *TRANSFORMERS]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    launch("cpu", DRIVER, "[]", tmp_path / "whole.seen", *arguments(folder, whole, *schedule))
    launch("cpu", DRIVER, json.dumps(KILLS), tmp_path / "killed.seen", *arguments(folder, killed, *schedule))
    assert_same(killed, whole, steps=8)
    assert result(killed)["checkpoints"] == ["step_6", "step_8"] and result(killed)["rollouts"] == []
    for kind in ("sampled", "scored"):
        once, again = (counts(tmp_path / f"{name}.seen", kind) for name in ("whole", "killed"))
        assert set(once.values()) == {1} and set(again) == set(once)
        # nothing that was on the disk was made again; twice a run was killed between scoring and writing
        assert again.total() - once.total() == (2 if kind == "scored" else 0)


def test_episodes_killed_in_a_round_in_an_environment_and_between(folder, tmp_path):
    engine = {"engine": "transformers", "cache_gib": None, "compile": True}
    recipe = episodes(folder, tmp_path, sampling=engine, data={"holdout": 2}, eval={"samples": 1})
    schedule = ["run.steps=3", "run.save_every=2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    kills = [
        *(["before the first round", 1], ["in a round", 1], ["in an environment", 2]),
        *(["scored, not on disk", 2], ["updating", 3]),
    ]
    words = [str(recipe), *schedule, "sampling.engine=transformers"]
    launch("cpu", DRIVER, "[]", tmp_path / "whole.seen", *words, f"run.out={whole}")
    launch("cpu", DRIVER, json.dumps(kills), tmp_path / "killed.seen", *words, f"run.out={killed}")
    assert_same(killed, whole, steps=3)
    rows = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    assert all(len(row["turns"]) in (3, 5) for row in rows)
    once, again = (counts(tmp_path / f"{name}.seen", "sampled") for name in ("whole", "killed"))
    assert set(once) == set(again)  # only rounds of a call that was not over are sampled again


def test_killed_where_vllm_samples_and_syncs(folder, tmp_path):
    schedule = ["run.steps=3", "run.save_every=2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    kills = [["generating (vLLM)", 1], ["syncing (vLLM)", 1], ["scored", 3]]
    launch("cpu", DRIVER, "[]", tmp_path / "whole.seen", *arguments(folder, whole, *schedule))
    launch("cpu", DRIVER, json.dumps(kills), tmp_path / "killed.seen", *arguments(folder, killed, *schedule))
    assert_same(killed, whole, steps=3)
    assert set(counts(tmp_path / "killed.seen", "sampled").values()) == {1}


def test_two_ranks_of_which_one_is_killed(folder, tmp_path):
    """With ZeRO-2; the launcher takes the other rank down, and where the launcher is killed both follow it."""
    schedule = ["run.steps=4", "run.save_every=2", *TRANSFORMERS]
    whole, killed, seen = tmp_path / "whole", tmp_path / "killed", tmp_path / "killed.seen"
    launch("cpu_zero2", DRIVER, "[]", tmp_path / "whole.seen", *arguments(folder, whole, *schedule))
    words = arguments(folder, killed, *schedule)
    resume: list[str] = []
    for kill in (["updating", 1], ["half a checkpoint file", 2], ["scored (launcher)", 4], ["full disk", 4]):
        stopped = start("cpu_zero2", DRIVER, json.dumps([kill]), seen, *words, *resume)
        assert stopped.returncode == (-9 if kill[0] == "scored (launcher)" else 1)
        assert ("exitcode  : -9" in stopped.stdout) == (kill[0] in ("updating", "half a checkpoint file"))
        assert_none_left(killed)
        resume = ["--resume"]
    assert stopped.stdout.count("step_4: cannot be written") == 1  # the rank that could tells it
    assert [path.name for path in (killed / "checkpoints").iterdir()] == ["step_2"]
    last = launch("cpu_zero2", DRIVER, "[]", seen, *words, *resume)
    assert re.search(r"step_2: 2 steps done, [1-9]\d* rollouts", last)
    assert_same(killed, whole, steps=4)
    assert set(counts(seen, "sampled")) == set(counts(tmp_path / "whole.seen", "sampled"))
    assert set(counts(seen, "sampled").values()) == {1}


def test_a_full_disk_leaves_the_last_good_checkpoint(folder, tmp_path):
    """A file system of 1.5 MB: there is room for one checkpoint and not for two."""
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    small = ["bwrap", "--dev-bind", "/", "/", "--size", "1500000", "--tmpfs", str(out / "checkpoints")]
    if not shutil.which("bwrap") or subprocess.run([*small, "true"]).returncode:
        pytest.skip("bubblewrap, which would mount a small file system, is not there or may not")
    look = f'"$@"; cd {out}/checkpoints; ls -A; cd step_1; sha256sum -c SHA256SUMS'
    words = arguments(folder, out, "run.steps=2", "run.save_every=1", *TRANSFORMERS)
    done = start("cpu", DRIVER, "[]", tmp_path / "seen", *words, inside=[*small, "sh", "-c", look, "sh"])
    assert "step_2: cannot be written" in done.stdout and "--resume" in done.stdout, done.stdout
    assert done.returncode == 0 and "engine/random_states_0.pkl: OK" in done.stdout
    assert ".step_2" not in done.stdout


def assert_none_left(out: Path):
    """No process of a run that was killed lives on."""
    until = time.monotonic() + 20
    while left := [p for p in psutil.process_iter(["cmdline"]) if f"run.out={out}" in (p.info["cmdline"] or [])]:
        assert time.monotonic() < until, left
        time.sleep(0.2)
