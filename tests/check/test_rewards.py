"""Rewards are tried before a run."""

import pytest
from support.broken import corpus


@pytest.mark.parametrize("first", ["offline", "online"])
def test_rewards_are_tried_on_what_is_sampled(bench, first):
    bench.rows(corpus.pairs(), "pairs.jsonl")
    sources = {"offline": {"pairs": "pairs.jsonl"}, "online": {"prompts": "prompts.jsonl"}}
    bench.recipe["data"] = {name: sources[name] for name in sorted(sources, key=lambda name: name != first)}
    bench.drop("objective")
    bench.put("objectives", [{"gfpo": {"k": 2}, "data": "online"}, {"dpo": {}, "data": "offline"}])
    assert bench.checked()["problems"] == []
