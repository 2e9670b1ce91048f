"""A run whose reward function does terrible things to half of the responses goes on with the others."""

import json
from collections import Counter

import pytest
from support.paths import ROOT
from support.tiny_task import RECIPE
from support.zygote import forked

pytestmark = pytest.mark.engine


def test_a_run_goes_on_through_every_kind_of_failure(folder, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=folder, adapter=", adapter: {rank: 4}", out=tmp_path / "run"))
    limits = "reward_limits={seconds: 1, memory_gib: 1, max_failed: 0.9}"
    arguments = ('rewards={"support.reward_functions:fragile": 1.0}', limits, "run.steps=3", "eval.samples=1")
    printed = forked("cpu", ROOT / "recipes/train.py", recipe, *arguments)
    (told,) = [line for line in printed.splitlines() if line.startswith("reward 'fragile' failed on")]
    assert "responses, first: " in told and told.endswith("run/rewards/fragile.log")
    assert "asked about" in (tmp_path / "run/rewards/fragile.log").read_text()
    metrics = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    samples = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    steps = [row for row in metrics if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3]
    for row in steps:
        mine = [sample for sample in samples if sample["step"] == row["step"]]
        failed = [sample for sample in mine if "failed" in sample]
        assert 0 < row["response/failed"] == row["rewards/fragile/failed"] == len(failed) < len(mine) == 16
        assert row["signal/taken/failed"] == sum(len(sample["response_ids"]) for sample in failed)
        assert row["response/unrated"] == 0
        assert row["signal/generated"] == row["signal/carrying"] + sum(
            value for name, value in row.items() if name.startswith("signal/taken/")
        )
    assert sum(row["signal/carrying"] for row in steps) > 0  # the others teach, where their lengths differ
    for sample in samples:
        fails = sum(sample["response_ids"]) % 10 < 5
        assert ("failed" in sample) == fails == (sample["reward"] is None) == ("kept" not in sample)
    reasons = Counter(sample["failed"]["fragile"][:12] for sample in samples if "failed" in sample)
    assert set(reasons) == {"took longer ", "MemoryError ", "its process ", "ValueError: ", "returned nan"}
