"""Joining the processes of a run: a launcher without DeepSpeed, or with too many of them, is refused."""

import pytest
from support.paths import ROOT
from torch.utils import cpp_extension

from align.config.experiment import load_experiment
from align.config.recipe_file import ConfigError
from align.run import processes
from align.run.processes import make_accelerator
from align.system.baton import Baton


def test_a_launcher_without_deepspeed_is_told_what_to_write(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED", raising=False)
    with pytest.raises(ConfigError) as raised:
        make_accelerator(None)
    (problem,) = raised.value.problems
    assert "accelerate launch --config_file launch/cpu_zero2.yaml" in problem and "\n" not in problem


def test_extensions_are_built_under_a_lock_that_ends_with_its_owner(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(cpp_extension, "FileBaton", cpp_extension.FileBaton)
    monkeypatch.setattr(processes, "Accelerator", lambda **_: cpp_extension.FileBaton)  # DeepSpeed builds here
    assert make_accelerator(load_experiment(ROOT / "recipes/dpo_reviews.yaml")) is Baton


@pytest.mark.parametrize(
    "have, told", [(1, "8 processes on a machine with 1 GPU; launch with --num_processes 1"), (6, "6 GPUs")]
)
def test_more_processes_than_gpus_are_refused_before_they_join(monkeypatch, have, told):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setattr("align.run.processes.gpus", lambda: have)
    with pytest.raises(ConfigError, match=told):
        make_accelerator(None)
