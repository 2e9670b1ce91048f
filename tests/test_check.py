"""What the check says of healthy recipes: arithmetic, notes, stages that have not run, the estimate of memory."""

import math
from pathlib import Path

import broken
import pytest
import tiny
import torch
import yaml
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from align.check import memory, model_files
from align.config import launch
from align.config.launch import Launch
from align.config.recipe import Adapter
from align.model.adapters import add_adapter
from align.model.load import load_config, load_model

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return broken.Bench(broken.healthy(tmp_path))


def facts(bench, **changes):
    bench.launch = {
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {"zero_stage": changes.get("stage", 0)},
        "num_processes": changes.get("processes", 1),
    }
    result = bench.checked()
    assert result["ok"], result["problems"]
    return result["facts"]


@pytest.mark.parametrize(
    "name, expected", [("cpu", (1, 0)), ("cpu_zero2", (2, 2)), ("cpu_zero3", (2, 3)), ("zero3", (8, 3))]
)
def test_launch_files(name, expected):
    found = launch.of_file(ROOT / "launch" / f"{name}.yaml")
    assert (found.processes, found.zero_stage) == expected and found.problems == []


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_zero_divides(stage):
    shards = Launch(processes=4, zero_stage=stage).shards
    assert shards["optimiser"] == (4 if stage >= 1 else 1)
    assert shards["gradients"] == (4 if stage >= 2 else 1)
    assert shards["weights"] == (4 if stage >= 3 else 1)


def test_the_arithmetic_of_a_step(bench):
    found = facts(bench, processes=2, stage=2)
    assert found["step"]["prompts"] == 2 and found["step"]["rows"] == 8 and found["step"]["rows of a process"] == 4
    assert found["data"]["data"]["train"] == 6 and found["data"]["data"]["held_out"] == 2
    assert found["step"]["epochs"] == round(2 * 2 / 6, 2)
    assert found["rewards"]["fine"]["answer"] == 1.0 and found["rewards"]["fine"]["placeholder"] == 0.0
    assert set(found["models"]) == {"policy", "sampler"} and found["passes"] == {"gfpo": {}}


@pytest.mark.parametrize(
    "layout, tokens", [("padded", lambda p, r: 4 * (p + r)), ("shared_prefix", lambda p, r: p + 4 * (r - 1))]
)
def test_micro_batches_are_those_of_the_layout(bench, layout, tokens):
    bench.put("optim.layout", layout)
    bench.put("optim.micro_batch_tokens", 40)
    found = facts(bench)
    prompt, response = found["data"]["data"]["prompt_tokens"]["max"], bench.recipe["sampling"]["max_response_tokens"]
    assert found["step"]["micro-batches of a process, about"] == math.ceil(2 * tokens(prompt, response) / 40)


def test_models_and_passes_of_a_guided_objective(bench):
    bench.guided()
    found = facts(bench)
    assert set(found["models"]) == {"policy", "reference", "guide"}  # nothing is sampled
    assert found["passes"]["tgdpo"] == {"guide": ["guide_logprob"], "reference": ["ref_logprob"]}


def test_cut_responses_are_counted(bench):
    bench.learns_from_pairs()
    bench.put("data.max_response_tokens", 5)
    found = bench.checked()
    assert found["facts"]["data"]["data"]["cut"] == 8  # "no idea" of each pair, and no number
    assert any("8 of 16 responses are cut" in note for note in found["notes"])


@pytest.mark.parametrize("first", ["offline", "online"])
def test_rewards_are_tried_on_what_is_sampled(bench, first):
    bench.rows(broken.pairs(), "pairs.jsonl")
    sources = {"offline": {"pairs": "pairs.jsonl"}, "online": {"prompts": "prompts.jsonl"}}
    bench.recipe["data"] = {name: sources[name] for name in sorted(sources, key=lambda name: name != first)}
    bench.drop("objective")
    bench.put("objectives", [{"gfpo": {"k": 2}, "data": "online"}, {"dpo": {}, "data": "offline"}])
    assert bench.checked()["problems"] == []


@pytest.mark.parametrize(
    "file, content",
    [
        ("model/config.json", "[]"),
        ("model/tokenizer.json", "[]"),
        ("model/tokenizer_config.json", "[]"),
        ("model/model.safetensors.index.json", "{"),
        ("guide/adapter_config.json", "[]"),
    ],
)
def test_a_file_that_nobody_foresaw_is_a_problem_and_no_traceback(bench, file, content):
    bench.guided()
    bench.write(file, content)
    bench.rows([row | {"chosen": ""} if i == 3 else row for i, row in enumerate(broken.pairs())], "pairs.jsonl")
    told = "\n".join(bench.checked()["problems"])
    assert f"model.{'guide' if 'guide' in file else 'policy'}" in told and "row 3" in told


def test_rows_and_folders_that_cannot_be_used(bench):
    bench.row({"prompt": "half an emoji \ud83d"})
    bench.put("run.out", "prompts.jsonl/run")
    told = "\n".join(bench.checked()["problems"])
    assert "row 3: cannot be tokenised" in told and "run.out: " in told and "is a file; name another folder" in told


def test_a_problem_shows_no_secret(bench):
    bench.reward(broken.TELLS, args={"api_key": "SUPERSECRETVALUE99"})
    (told,) = bench.checked()["problems"]
    assert "401 with key [redacted]" in told and "SUPERSECRET" not in told


def test_a_stage_that_has_not_run_is_a_note(bench):
    first = {"model": {"policy": "model"}, "run": {"out": "runs/first", "steps": 1}}
    bench.write("first.yaml", yaml.safe_dump(first))
    bench.put("model.policy", {"from": "first.yaml"})
    found = bench.checked()
    assert found["ok"] and found["notes"][0] == "runs/first/model: not there yet; first run first.yaml"
    bench.row({"prompt": ""})
    assert not bench.checked()["ok"]  # the data is looked at with the model that the first stage begins with


def test_notes_of_what_may_not_be_meant(bench):
    bench.put("data.prompts_per_step", 7)
    bench.put("optim.warmup_steps", 5)
    bench.put("data.holdout", 0)
    bench.put("run.eval_every", 1)
    bench.rows(broken.prompts(6))
    notes = "\n".join(bench.checked()["notes"])
    assert "7 prompts of 6" in notes and "optim.warmup_steps: 5 never" in notes and "run.eval_every: nothing" in notes


def test_a_template_that_ends_no_answer():
    tokenizer = tiny.tokenizer()
    assert model_files.ends_answers(tokenizer, [tokenizer.eos_token_id])
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "")
    assert not model_files.ends_answers(tokenizer, [tokenizer.eos_token_id])


@pytest.mark.parametrize("adapter", [None, Adapter(rank=2)])
def test_the_activations_are_those_that_torch_keeps(tmp_path, adapter):
    model = load_model(str(tiny.save_model(tmp_path)), "float32")
    skeleton = model_files.skeleton(model.config, "tiny")
    if adapter:
        model, skeleton = (add_adapter(m, adapter, "tiny") for m in (model, skeleton))
    decoder, kept = (model.get_base_model() if adapter else model).get_decoder(), {}
    own = {p.untyped_storage().data_ptr() for p in decoder.parameters()}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ids = torch.zeros(1, memory.PROBE, dtype=torch.int64)
        out = decoder(input_ids=ids, position_ids=torch.arange(memory.PROBE)[None], use_cache=False)
    real = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own) / memory.PROBE
    assert out.last_hidden_state.requires_grad and real == pytest.approx(memory.kept_per_token(skeleton), rel=0.02)


def test_zero_divides_the_estimate(bench):
    one, two, three = (facts(bench, processes=2, stage=stage)["memory_gib"] for stage in (0, 2, 3))
    assert two["weights"] == one["weights"] == pytest.approx(2 * three["weights"], abs=1e-3)
    assert one["activations"] == two["activations"]


def test_the_skeleton_stays_whole_under_zero_3(tmp_path):
    """transformers partitions what its Auto classes make while DeepSpeed's third stage is on."""
    config = load_config(str(tiny.save_model(tmp_path)))
    guide = tiny.save_guide(tmp_path, tmp_path / "guide")
    stage = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    try:
        skeleton = add_adapter(model_files.skeleton(config, "tiny"), Adapter(rank=2), "tiny")
        assert all(p.is_meta and p.numel() for p in skeleton.parameters())
        model_files.check_adapter(str(guide), config)
    finally:
        unset_hf_deepspeed_config()
        del stage
