"""Models of stages."""

import yaml
from safetensors.torch import load_file, save_file


def test_a_stage_that_has_not_run_is_a_note(bench):
    first = {"model": {"policy": "model"}, "run": {"out": "runs/first", "steps": 1}}
    bench.write("first.yaml", yaml.safe_dump(first))
    bench.put("model.policy", {"from": "first.yaml"})
    found = bench.checked()
    assert found["ok"] and found["notes"][0] == "runs/first/model: not there yet; first run first.yaml"
    bench.row({"prompt": ""})
    assert not bench.checked()["ok"]  # the data is looked at with the model that the first stage begins with


def test_weights_without_the_prefix_of_a_language_model_are_those_that_are_loaded(bench):
    """As the decoder alone is saved; transformers adds the prefix."""
    file = bench.root / "model/model.safetensors"
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    assert bench.checked()["problems"] == []
