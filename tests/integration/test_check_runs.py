"""A training run checks itself first: nothing is loaded where something is wrong, and all of it is told once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.broken import corpus
from support.paths import ROOT

pytestmark = pytest.mark.engine


def test_two_ranks_tell_every_problem_once_and_load_nothing(tmp_path):
    bench = corpus.Bench(corpus.healthy(tmp_path))
    bench.put("optim.learning_rate", 1)
    bench.put("sampling.engine", "transformers")
    bench.row({"prompt": ""})
    bench.reward("corpus_rewards:raises")
    bench.write("recipe.yaml", yaml.safe_dump(bench.recipe))
    accelerate, machine = Path(sys.executable).with_name("accelerate"), ROOT / "launch/cpu_zero3.yaml"
    command = [accelerate, "launch", "--config_file", machine, "--main_process_port", "0"]
    done = subprocess.run(
        [*command, ROOT / "recipes/train.py", "recipe.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    told = ("optim.learning_rate: unknown key", "row 4: 'prompt'", "reward 'raises' failed: KeyError")
    own, _, launcher = done.stderr.partition("Traceback (most recent call last)")
    for part in (own, launcher):  # once by itself, and once below what the launcher prints
        assert [part.count(problem) for problem in told] == [1, 1, 1], done.stderr[-3000:]
    assert not (tmp_path / "runs").exists()
