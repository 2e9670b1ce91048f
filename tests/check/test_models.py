"""Models of stages."""

import yaml


def test_a_stage_that_has_not_run_is_a_note(bench):
    first = {"model": {"policy": "model"}, "run": {"out": "runs/first", "steps": 1}}
    bench.write("first.yaml", yaml.safe_dump(first))
    bench.put("model.policy", {"from": "first.yaml"})
    found = bench.checked()
    assert found["ok"] and found["notes"][0] == "runs/first/model: not there yet; first run first.yaml"
    bench.row({"prompt": ""})
    assert not bench.checked()["ok"]  # the data is looked at with the model that the first stage begins with
