"""Whole runs of episodes on a tiny model: real engines, real processes of environments, recorded and replayed."""

import json
from pathlib import Path

import pytest
from support.paths import ROOT
from support.replays import assert_record_is_the_run_s
from support.tiny_task import episodes
from support.zygote import forked

pytestmark = pytest.mark.engine


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("machine", "sampling"),
    [
        ("cpu", {"dynamic_sampling": {"rounds": 2}}),
        ("cpu", {"engine": "transformers", "cache_gib": None, "compile": True}),
        ("cpu_zero3", {}),
    ],
    ids=["vllm", "transformers", "two ranks, ZeRO-3"],
)
def test_one_pass_of_the_trainer_is_what_the_sampler_said_turn_by_turn(machine, sampling, folder, tmp_path):
    path = episodes(folder, tmp_path, sampling=sampling, data={"holdout": 2}, eval={"samples": 1}, run={"steps": 2})
    forked(machine, ROOT / "recipes/train.py", path)
    steps = [row for row in lines(tmp_path / "run/metrics.jsonl") if "loss" in row]
    evaluations = [row for row in lines(tmp_path / "run/metrics.jsonl") if "eval/turns" in row]
    assert len(steps) == 2 == len(evaluations)
    assert all(
        {"episode/turns", "episode/success", "rewards/Digits", "seconds/environment"} <= row.keys() for row in steps
    )
    assert all(2 <= row["episode/turns"] <= 3 and row["episode/ended/budget"] == 0 for row in steps)
    rows, compared = lines(tmp_path / "run/samples.jsonl"), 0
    for row in rows:
        own = {t for turn in row["turns"] if turn["role"] == "assistant" for t in range(turn["start"], turn["end"])}
        assert len(row["turns"]) in (3, 5) and 0 < len(own) < len(row["response_ids"])
        for t, (said, now) in enumerate(zip(row["sampler_logprob"], row["logprob"], strict=True)):
            assert (said is None) == (t not in own)  # what others put in has no log-probability, and no credit
            if now is not None:
                compared += 1
                assert t in own and abs(said - now) < 1e-4
        assert all(value is None for t, value in enumerate(row["advantage"][0]) if t not in own)
    assert compared > 100 and len(rows) >= 16
    assert_record_is_the_run_s(tmp_path / "run")


def test_faults_of_environments_cost_their_rows_and_are_counted(folder, tmp_path):
    environment = {"name": "support.tiny_task:Faulty", "max_turns": 3, "seconds": 3}
    data = {"episodes": 8, "holdout": 0, "prompts_per_step": 8, "max_prompt_tokens": 90}
    path = episodes(folder, tmp_path, environment=environment, data=data, reward_limits={"max_failed": 1.0})
    forked(
        "cpu", ROOT / "recipes/train.py", path, "run.steps=2", "sampling.group_size=2", "sampling.engine=transformers"
    )
    steps = [row for row in lines(tmp_path / "run/metrics.jsonl") if "loss" in row]
    assert [row["rewards/Faulty/failed"] for row in steps] == [14, 14] == [row["response/failed"] for row in steps]
    whys = {why for row in lines(tmp_path / "run/samples.jsonl") for why in row.get("failed", {}).values()}
    expected = ["reset: ValueError: no start", "ZeroDivisionError", "took longer than 3 s", "exit code 3", "characters"]
    expected += ["returned 'much'", "SIGKILL"]
    assert all(any(part in why for why in whys) for part in expected), whys
    assert all(row["reward"] is None for row in lines(tmp_path / "run/samples.jsonl") if row.get("failed"))
