"""Two nodes that share no folder, as network namespaces, against one machine with two processes: bit for bit."""

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.launch import start
from support.nodes import ends, kill, nodes, why_not
from support.paths import PROGRAMS, ROOT
from support.tiny_task import RECIPE

pytestmark = [pytest.mark.engine, pytest.mark.skipif(bool(why_not()), reason=str(why_not()))]

TRAIN, DRIVER = ROOT / "recipes/train.py", PROGRAMS / "killed.py"
SMALL = ["data.holdout=2", "eval.samples=1", "sampling.group_size=3", "objective.k=2", "sampling.max_response_tokens=6"]
TRANSFORMERS = ["sampling.engine=transformers", "sampling.cache_gib=null"]
GONE = "node1 (rank 1) is gone: killed, crashed or cut off"


@pytest.fixture
def words(folder, tmp_path):
    """A recipe that every node writes to `run` below the folder that it starts in."""
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder, out="run", adapter=", adapter: {rank: 4, alpha: 8}"))
    return [str(path), *SMALL]


@pytest.fixture
def two(tmp_path):
    with nodes([tmp_path / "node0", tmp_path / "node1"]) as made:
        yield made


def on_one_machine(machine: str, words: list[str], out: Path) -> dict:
    """The result of the same run in two processes, a core each as the nodes have."""
    done = start(machine, TRAIN, *words, f"run.out={out}", inside=["taskset", "-c", "0,1"])
    assert done.returncode == 0, done.stdout[-8000:]
    return result(out)


def result(out: Path) -> dict:
    """All that a run leaves which must not depend on where it ran, nor on whether it was killed."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    machine = ("seconds/", "memory/")
    return {
        "metrics": [{k: v for k, v in row.items() if not k.startswith(machine)} for row in rows],
        **{name: (out / name).read_text() for name in ("samples.jsonl", "greedy.jsonl")},
        "adapter": load_file(out / "adapter/adapter_model.safetensors"),
    }


def assert_same(one: dict, other: dict, steps: int):
    assert sum("loss" in row for row in one["metrics"]) == steps
    tensors = [found.pop("adapter") for found in (one, other)]
    assert one == other
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    assert max(float(value.abs().max()) for name, value in tensors[0].items() if "lora_B" in name) > 0.001


def steps_of(node: Path) -> list[str]:
    return sorted(path.name for path in (node / "run/checkpoints").iterdir())


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def when_done(node: Path, step: int, process) -> None:
    """Wait until a node has logged a step."""
    metrics, until = node / "run/metrics.jsonl", time.monotonic() + 300
    while not (metrics.exists() and any(row.get("step") == step and "loss" in row for row in rows(metrics))):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)


def test_a_node_that_is_killed_and_one_whose_newest_part_is_damaged(two, words, tmp_path):
    """With ZeRO-2."""
    words = [*words, *TRANSFORMERS, "run.save_every=1"]
    whole = on_one_machine("cpu_zero2", words, tmp_path / "whole")
    started = [two.start(node, "cpu_nodes_zero2", TRAIN, *words) for node in (0, 1)]
    when_done(two.folders[0], 3, started[0])
    kill(started[1])
    begun = time.monotonic()
    assert ends(started[:1], 60) == [1] and time.monotonic() - begun < 45
    assert GONE in two.log(0) and "start every node again with --resume" in two.log(0)
    assert "run.out run: not shared: each node keeps its ranks' part of a checkpoint" in two.log(0)
    newest = next(iter(steps_of(two.folders[1])[::-1]))
    state = two.folders[1] / "run/checkpoints" / newest / "engine/random_states_1.pkl"
    state.write_bytes(state.read_bytes()[:-1])
    before = int(newest.removeprefix("step_")) - 1
    assert two.run("cpu_nodes_zero2", TRAIN, *words, "--resume") == [0, 0], two.log(0)[-8000:] + two.log(1)[-8000:]
    assert f"step_{before}: {before} steps done" in two.log(0)
    assert f"passed over: node1 (rank 1): run/checkpoints/{newest}: engine/random_states_1.pkl is not" in two.log(0)
    assert_same(result(two.folders[0] / "run"), whole, steps=4)
    kept = ["replaced_1_" + newest, "step_2", "step_3", "step_4"]
    assert [set(kept) - set(steps_of(folder)) for folder in two.folders] in ([set(), set()], [{kept[0]}, set()])
    for folder in two.folders:
        assert list((folder / "run/rollouts").iterdir()) == []  # forgotten where they are
    assert not (two.folders[1] / "run/metrics.jsonl").exists() and not (two.folders[1] / "run/adapter").exists()


def test_a_process_that_dies_in_the_middle_of_a_checkpoint(two, words, tmp_path):
    """With ZeRO-3, and vLLM."""
    words = [*words, "run.save_every=2"]
    whole = on_one_machine("cpu_zero3", words, tmp_path / "whole")
    seen = tmp_path / "seen"
    driven = [json.dumps([["half a checkpoint file", 4]]), seen, *words]
    assert two.run("cpu_nodes_zero3", DRIVER, *map(str, driven)) == [1, 1], two.log(0)[-8000:]
    assert "node1 (rank 1)" in two.log(0)
    assert all("step_4" not in steps_of(folder) for folder in two.folders)
    assert two.run("cpu_nodes_zero3", TRAIN, *words, "--resume") == [0, 0], two.log(0)[-8000:] + two.log(1)[-8000:]
    assert "step_2: 2 steps done" in two.log(0)
    assert [steps_of(folder) for folder in two.folders] == [["step_2", "step_4"]] * 2
    assert_same(result(two.folders[0] / "run"), whole, steps=4)


def test_nodes_with_other_words_are_refused_at_the_start(two, words):
    words = [*words, *TRANSFORMERS]
    started = [two.start(node, "cpu_nodes_zero2", TRAIN, *words, f"optim.lr=0.{node + 1}") for node in (0, 1)]
    assert ends(started, 200) == [1, 1]
    assert "optim.lr is 0.1 on node0 (rank 0) and 0.2 on node1 (rank 1)" in two.log(0)
    assert not (two.folders[0] / "run/metrics.jsonl").exists()
