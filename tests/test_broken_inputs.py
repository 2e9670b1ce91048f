"""A corpus of broken inputs: each is one defect in a healthy recipe, and is refused with its place and its fix."""

import json
import re
import shutil
import sys

import broken
import datasets
import pytest
import torch
import yaml
from broken import Bench
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from align.__main__ import app

AT = r"recipe\.yaml:\d+: "
LAUNCH = {
    "distributed_type": "DEEPSPEED",
    "deepspeed_config": {"zero_stage": 2, "gradient_accumulation_steps": 1},
    "num_processes": 2,
    "mixed_precision": "no",
}


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    return broken.healthy(tmp_path_factory.mktemp("healthy"))


@pytest.fixture
def bench(template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    yield broken.bench(template, tmp_path)
    for name in ("corpus_rewards", "exploding"):
        sys.modules.pop(name, None)


def put(key, value):
    return lambda bench: bench.put(key, value)


def drop(key):
    return lambda bench: bench.drop(key)


def replaced(old, new):
    """Another text of the recipe."""

    def change(bench: Bench):
        text = yaml.safe_dump(bench.recipe, sort_keys=False)
        assert text.count(old) == 1
        bench.text = text.replace(old, new)

    return change


def launched(**changes):
    def change(bench: Bench):
        bench.launch = {**LAUNCH, **changes}

    return change


# Each case: its name, what breaks, and patterns that the message must hold: the place, then the fix.

KEYS = [
    ("unknown", put("optim.learning_rate", 1), AT + r"optim\.learning_rate: unknown key; ", "lr"),
    ("typo", put("sampling.group_sise", 4), AT + r"sampling\.group_sise: unknown", "did you mean 'group_size'"),
    ("misplaced", put("optim.group_size", 4), AT + r"optim\.group_size: unknown", r"belongs at sampling\.group_size"),
    ("misplaced at the top", put("max_grad_norm", 1), AT + "max_grad_norm", r"belongs at optim\.max_grad_norm"),
    ("section", put("trainer", {"lr": 1}), AT + "trainer: unknown key", "there are: .*optim"),
    ("needed", drop("run.steps"), AT + r"run\.steps", "missing; this key is needed"),
    ("no data", drop("data"), "recipe.yaml: data", "this key is needed"),
    ("no objective", drop("objective"), "recipe.yaml: objective", "write one of objective and objectives"),
    ("objective", put("objective.name", "gfpoo"), AT + r"objective\.name", "did you mean 'gfpo'"),
    ("argument", put("objective.best", 2), AT + r"objective\.best: unknown key", r"there are: .*\bk\b"),
    ("of another objective", put("objective", {"name": "dpo", "k": 2}), AT + r"objective\.k", "there are: .*beta"),
    ("twice", replaced("  lr: 0.01", "  lr: 0.01\n  lr: 0.1"), AT + r"optim\.lr", "stands twice; keep one"),
    (
        "link",
        put("objective.add", [{"keep_to": {"k": 2}}]),
        AT + r"objective\.add\.0\.keep_to",
        "did you mean 'keep_top'",
    ),
    ("not YAML", replaced("optim:", "optim: ["), r"recipe\.yaml: not valid YAML", r"line \d+"),
    (
        "no mapping",
        lambda bench: setattr(bench, "text", "- model"),
        r"recipe\.yaml: a recipe is a mapping",
        "keys such as model",
    ),
]

RANGES = [
    ("text for a number", put("optim.lr", "fast"), AT + r"optim\.lr", "valid number.*'fast'"),
    ("negative rate", put("optim.lr", -0.1), AT + r"optim\.lr", "greater than 0.*-0.1"),
    ("no group", put("sampling.group_size", 0), AT + r"sampling\.group_size", "greater than or equal to 1"),
    ("half a step", put("run.steps", 1.5), AT + r"run\.steps", "valid integer.*1.5"),
    ("cold", put("sampling.temperature", 0), AT + r"sampling\.temperature", "greater than 0"),
    ("infinite rate", put("optim.lr", float("inf")), AT + r"optim\.lr", "finite"),
    ("precision", put("model.dtype", "float16"), AT + r"model\.dtype", "'float32' or 'bfloat16'"),
    ("schedule", put("optim.schedule", "cosin"), AT + r"optim\.schedule", "'constant', 'linear' or 'cosine'"),
    ("rank", put("model.adapter.rank", 1000), AT + r"model\.adapter\.rank", "less than or equal to 512"),
    ("no pass", put("eval.pass_at", []), AT + r"eval\.pass_at", "at least 1 item"),
    ("weight", put("objective.weight", "much"), AT + r"objective\.weight", "must be a number above 0"),
    ("k", put("objective.k", "few"), AT + r"objective\.k", "valid integer|valid dictionary"),
    ("section that is a number", put("optim", 3), AT + "optim", "valid dictionary"),
    ("seed", put("run.seed", -1), AT + r"run\.seed", "greater than or equal to 0"),
]

CROSS = [
    ("k beyond the group", put("objective.k", 9), AT + "objective: keep_top", r"sampling\.group_size"),
    ("one response", put("sampling.group_size", 1), AT + r"sampling\.group_size", "must be at least 2"),
    ("pass@4 of 2", put("eval.pass_at", [4]), AT + r"eval\.pass_at", r"as many eval\.samples; there are 2"),
    (
        "preference from prompts",
        put("objective", {"name": "dpo"}),
        AT + "objective: dpo learns from pairs",
        "best_and_worst",
    ),
    ("no guide", put("objective", {"name": "rto"}), AT + r"model\.guide: missing", "an adapter, a model"),
    ("two sources of one kind", put("data.pairs", "pairs.jsonl"), AT + "data", "one of prompts and pairs"),
    ("bank of prompts", put("data.bank", "bank"), AT + "data", "a bank goes with pairs"),
    ("no rewards", put("rewards", []), AT + "rewards: is empty", "name at least one reward function"),
    ("solved by nothing", put("correct", {"reward": "exact"}), AT + r"correct\.reward", "there are: fine"),
    (
        "transformers under ZeRO-3",
        lambda bench: (
            put("sampling.engine", "transformers")(bench),
            launched(deepspeed_config={"zero_stage": 3})(bench),
        ),
        AT + r"sampling\.engine",
        "launch with ZeRO-2 or none",
    ),
    (
        "adapter sync of all weights",
        lambda bench: (bench.drop("model.adapter"), bench.put("sampling.sync", "adapter")),
        AT + r"sampling\.sync: adapter needs model\.adapter",
        "write merged",
    ),
    (
        "transformers with a sync",
        lambda bench: (bench.put("sampling.engine", "transformers"), bench.put("sampling.sync", "merged")),
        AT + r"sampling\.sync",
        "leave it out",
    ),
    ("mixed precision", launched(mixed_precision="bf16"), r"launch\.yaml: mixed_precision", "write 'no'"),
    (
        "accumulation",
        launched(deepspeed_config={"zero_stage": 2, "gradient_accumulation_steps": 4}),
        r"launch\.yaml: .*gradient_accumulation_steps",
        "write 1",
    ),
    (
        "no DeepSpeed",
        launched(distributed_type="MULTI_GPU"),
        r"launch\.yaml:\d+: distributed_type",
        r"launch/cpu\.yaml",
    ),
    ("no process", launched(num_processes=0), r"launch\.yaml:\d+: num_processes", "at least 1"),
    (
        "chain out of order",
        put(
            "objective", {"chain": [{"group_advantage": {}}, {"keep_top": {"k": 2}}], "loss": {"clipped_surrogate": {}}}
        ),
        AT + "objective: keep_top",
        "the order is filter",
    ),
    ("holdout twice", put("data.eval_prompts", "prompts.jsonl"), AT + r"data\.holdout", "leave it out"),
    (
        "dynamic sampling of one",
        lambda bench: (bench.put("sampling.group_size", 1), bench.put("sampling.dynamic_sampling", {})),
        AT + r"sampling\.group_size",
        "at least 2",
    ),
    (
        "prompt and response beyond the context",
        put("sampling.max_response_tokens", 250),
        r"data: the longest prompt \(\d+ tokens\)",
        r"context has 256",
    ),
    ("tracker", put("run.trackers", ["wandb2"]), AT + r"run\.trackers\.0", "'trackio', 'tensorboard' or 'wandb'"),
]

DATA = [
    ("no file", put("data.prompts", "nowhere.jsonl"), r"nowhere\.jsonl", "no such file"),
    ("empty file", lambda bench: bench.write("prompts.jsonl", ""), r"prompts\.jsonl", "no rows"),
    (
        "not JSON",
        lambda bench: bench.write("prompts.jsonl", '{"prompt": "a"}\n{"prompt": \n'),
        r"prompts\.jsonl: line 2",
        "not JSON",
    ),
    (
        "bytes",
        lambda bench: bench.write("prompts.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff\xfe"}\n'),
        r"prompts\.jsonl: line 2",
        "save it as UTF-8",
    ),
    (
        "a list for a row",
        lambda bench: bench.rows([{"prompt": "a"}, ["b"]]),
        r"prompts\.jsonl: row 1",
        "must be a dictionary with a 'prompt'",
    ),
    (
        "no prompt",
        lambda bench: bench.rows([{"question": "a", "answer": "b"}]),
        r"prompts\.jsonl: row 0: 'prompt'",
        "there are: question, answer",
    ),
    (
        "empty prompt",
        lambda bench: bench.row({"prompt": ""}),
        r"prompts\.jsonl: row 3: 'prompt'",
        "must be text or a list",
    ),
    (
        "a number for a prompt",
        lambda bench: bench.row({"prompt": 7}),
        r"prompts\.jsonl: row 3: 'prompt'",
        "must be text .* it is 7",
    ),
    (
        "message without content",
        lambda bench: bench.row({"prompt": [{"role": "user"}]}),
        r"prompts\.jsonl: row 3: 'prompt'",
        "role: ..., content: text",
    ),
    (
        "message without a role",
        lambda bench: bench.row({"prompt": [{"role": "user", "content": "a"}, {"content": "b"}]}),
        r"prompts\.jsonl: row 3: 'prompt'",
        "role: ..., content: text",
    ),
    (
        "long prompt",
        lambda bench: bench.row({"prompt": "x" * 100}),
        r"prompts\.jsonl: row 3: the prompt has 100",
        r"data\.max_prompt_tokens is 64; raise it",
    ),
    ("everything held out", put("data.holdout", 8), r"data\.holdout: 8 of 8", "leaves none to train on"),
    ("no such column", put("data.holdout_by", "topic"), r"data\.holdout_by: row 0", "there are: answer"),
    (
        "csv without the column",
        lambda bench: (bench.write("p.csv", "question,answer\na,b\n"), bench.put("data.prompts", "p.csv")),
        r"p\.csv: row 0: 'prompt'",
        "there are: question, answer",
    ),
    (
        "no parquet",
        lambda bench: (bench.write("p.parquet", "text"), bench.put("data.prompts", "p.parquet")),
        r"p\.parquet",
        "Parquet",
    ),
    (
        "json that is cut",
        lambda bench: (bench.write("p.json", '[{"prompt": "a"}'), bench.put("data.prompts", "p.json")),
        r"data\.prompts: p\.json",
        "JSON|json",
    ),
    ("no such function", put("data.prompts", "corpus_rewards:rows"), "corpus_rewards:rows", "no attribute 'rows'"),
    ("arguments of no function", put("data.args", {"nope": 1}), r"data\.prompts: prompts\.jsonl", "nope"),
    (
        "no chosen",
        lambda bench: bench.learns_from_pairs([{"prompt": "a", "rejected": "b"}]),
        r"pairs\.jsonl: row 0: 'chosen'",
        "must be text",
    ),
    (
        "no rejected",
        lambda bench: bench.learns_from_pairs([{"prompt": "a", "chosen": "b"}]),
        "data: row 0",
        "no 'rejected', which dpo needs",
    ),
    (
        "same responses",
        lambda bench: bench.pair({"rejected": "4"}),
        r"pairs\.jsonl: row 3: chosen and rejected",
        "drop the row",
    ),
    (
        "text and messages",
        lambda bench: bench.pair({"chosen": [{"role": "assistant", "content": "4"}]}),
        r"row 3: 'chosen'",
        "must be text as the prompt",
    ),
    (
        "no bank",
        lambda bench: (bench.learns_from_pairs(), bench.put("data.bank", "bank")),
        r"data\.bank: bank holds no bank",
        "python -m align annotate",
    ),
]


def rename_weights(bench: Bench):
    (bench.root / "model/model.safetensors").rename(bench.root / "model/pytorch_model.bin")


def without(name: str, file: str):
    def change(bench: Bench):
        tensors = load_file(bench.root / file)
        del tensors[next(key for key in tensors if key.endswith(name))]
        save_file(tensors, bench.root / file, metadata={"format": "pt"})

    return change


def guided(*changes):
    def change(bench: Bench):
        bench.guided()
        for step in changes:
            step(bench)

    return change


def reshaped(bench: Bench):
    file = bench.root / "guide/adapter_model.safetensors"
    save_file({name: torch.zeros(3, 3) for name in load_file(file)}, file, metadata={"format": "pt"})


def guide_with_other_tokens(bench: Bench):
    """A whole model, the policy's copy, with two tokens exchanged."""
    shutil.copytree(bench.root / "model", bench.root / "other")
    tokenizer = json.loads((bench.root / "other/tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    bench.write("other/tokenizer.json", json.dumps(tokenizer))
    bench.guided()
    bench.put("model.guide", "other")


POLICY = AT + r"model\.policy: "
MODELS = [
    (
        "no folder",
        put("model.policy", "./nowhere"),
        POLICY + r"\./nowhere",
        "no such folder; write a folder, a hub name",
    ),
    (
        "no config",
        lambda bench: bench.remove("model/config.json"),
        POLICY + "model: has no config.json",
        "save_pretrained",
    ),
    (
        "broken config",
        lambda bench: bench.cut("model/config.json"),
        POLICY + "model/config.json",
        "not JSON.*copy the model again",
    ),
    (
        "no tokenizer",
        lambda bench: (bench.remove("model/tokenizer.json"), bench.remove("model/tokenizer_config.json")),
        POLICY + "model",
        "no tokenizer could be loaded",
    ),
    (
        "no end token",
        lambda bench: bench.file("model/tokenizer_config.json", eos_token=None),
        POLICY + "model",
        "no end token",
    ),
    ("pickled", rename_weights, POLICY + "model: has only pickled weights", "as safetensors"),
    (
        "no weights",
        lambda bench: bench.remove("model/model.safetensors"),
        POLICY + "model: has no weights",
        "save_pretrained",
    ),
    (
        "cut weights",
        lambda bench: bench.cut("model/model.safetensors"),
        POLICY + r"model/model\.safetensors",
        "cut or damaged.*again",
    ),
    (
        "damaged header",
        lambda bench: bench.write("model/model.safetensors", b"\xff" * 64),
        POLICY + r"model/model\.safetensors",
        "cut or damaged.*again",
    ),
    (
        "a weight is missing",
        without("q_proj.weight", "model/model.safetensors"),
        POLICY + "model: 1 of .*q_proj",
        "copy or save it again",
    ),
    (
        "other shapes",
        lambda bench: bench.file("model/config.json", intermediate_size=128),
        POLICY + "model: .*mlp",
        "weights and configuration of one model",
    ),
    (
        "a missing shard",
        lambda bench: bench.write("model/model.safetensors.index.json", '{"weight_map": {"a": "model-2.safetensors"}}'),
        POLICY + "model/.*index.json: names model-2",
        "copy the model again",
    ),
    (
        "own code",
        lambda bench: bench.file("model/config.json", model_type="mine", auto_map={"AutoConfig": "mine.Config"}),
        POLICY + "model/config.json",
        "never run; take one",
    ),
    (
        "no language model",
        lambda bench: bench.file("model/config.json", model_type="vit"),
        POLICY + "model: .*no causal language model",
        "Model type should be one of|config.json",
    ),
    (
        "small embedding",
        lambda bench: bench.file("model/config.json", vocab_size=64),
        POLICY + "model: the tokenizer has token",
        "resize the embedding",
    ),
    (
        "no template",
        lambda bench: bench.remove("model/chat_template.jinja"),
        r"prompts\.jsonl: row 0: the prompt is a conversation",
        "no chat template",
    ),
    (
        "template that refuses",
        lambda bench: bench.write("model/chat_template.jinja", "{{ raise_exception('only one user') }}"),
        r"prompts\.jsonl: row 0: .*chat template refuses",
        "change the messages, or data.system",
    ),
    ("targets", put("model.adapter.targets", ["query"]), AT + r"model\.adapter\.targets", "query"),
    (
        "head as a target",
        put("model.adapter.targets", ["lm_head"]),
        AT + r"model\.adapter\.targets: lm_head",
        "name layers inside the blocks",
    ),
    ("resume from nothing", put("run.resume", "runs/gone"), AT + r"run\.resume: runs/gone", "no checkpoint"),
    (
        "no guide folder",
        guided(put("model.guide", "runs/dpo/adapter")),
        AT + r"model\.guide: runs/dpo/adapter",
        "no such folder",
    ),
    (
        "guide of another base",
        guided(lambda bench: bench.file("guide/adapter_config.json", base_model_name_or_path="other/base")),
        AT + r"model\.guide: guide was trained on other/base",
        "the policy's base is model",
    ),
    (
        "guide without weights",
        guided(lambda bench: bench.remove("guide/adapter_model.safetensors")),
        AT + r"model\.guide: guide: has no weights",
        "save_pretrained",
    ),
    (
        "empty guide",
        guided(lambda bench: save_file({}, bench.root / "guide/adapter_model.safetensors")),
        AT + r"model\.guide: guide: .*empty",
        "save the adapter again",
    ),
    (
        "guide that lacks a weight",
        guided(without("lora_B.weight", "guide/adapter_model.safetensors")),
        AT + r"model\.guide: guide: 1 of .*lora_B",
        "save it again",
    ),
    (
        "cut guide",
        guided(lambda bench: bench.cut("guide/adapter_model.safetensors")),
        AT + r"model\.guide: guide/adapter",
        "cut or damaged.*again",
    ),
    ("guide of other shapes", guided(reshaped), AT + r"model\.guide: guide: .*\[3, 3\]", "of one model"),
    (
        "guide of no layer",
        guided(lambda bench: bench.file("guide/adapter_config.json", target_modules=["query"])),
        AT + r"model\.guide: guide: cannot be put",
        "query",
    ),
    ("guide with other tokens", guide_with_other_tokens, AT + r"model\.guide: other", "tokenizer is not the policy's"),
]

OWN = "corpus_rewards:"
REWARDS = [
    (
        "no module",
        lambda bench: bench.reward("no_such_rewards:good"),
        AT + r"rewards\.0\.fn",
        "installed or on PYTHONPATH",
    ),
    ("no attribute", lambda bench: bench.reward(OWN + "god"), AT + r"rewards\.0\.fn", "no attribute 'god'"),
    ("no path", lambda bench: bench.reward("accuracy"), AT + r"rewards\.0\.fn", "write package.module:name"),
    ("no function", lambda bench: bench.reward(OWN + "number"), AT + r"rewards\.0\.fn", "is not a function"),
    (
        "module that raises",
        lambda bench: (bench.write("exploding.py", "1 / 0"), bench.reward("exploding:good")),
        AT + r"rewards\.0\.fn",
        "importing it raised ZeroDivisionError",
    ),
    (
        "no column",
        lambda bench: bench.reward(OWN + "wants_solution"),
        "reward 'wants_solution' needs 'solution'",
        r"there are: answer\); rename a column",
    ),
    (
        "no argument",
        lambda bench: bench.reward(OWN + "scaled"),
        "reward 'scaled' needs 'factor'",
        r"args: \{factor: ...\}",
    ),
    (
        "argument of another type",
        lambda bench: bench.reward(OWN + "scaled", args={"factor": "two"}),
        "reward 'scaled' raised TypeError",
        "tried with",
    ),
    (
        "takes no columns",
        lambda bench: bench.reward(OWN + "closed"),
        "reward 'closed' is called with 'answer'",
        r"add \*\*columns",
    ),
    (
        "one number",
        lambda bench: bench.reward(OWN + "one_number"),
        "reward 'one_number' returned a float",
        "a list with one value a row",
    ),
    (
        "too few",
        lambda bench: bench.reward(OWN + "too_few"),
        "reward 'too_few' returned 1 values for 3",
        "a list with one value a row",
    ),
    (
        "text",
        lambda bench: bench.reward(OWN + "text_out"),
        "reward 'text_out' returned 'good' for row 0",
        "a finite number or None",
    ),
    (
        "not a number",
        lambda bench: bench.reward(OWN + "not_a_number"),
        "reward 'not_a_number' returned nan for row 0",
        "a finite number or None",
    ),
    (
        "raises",
        lambda bench: bench.reward(OWN + "raises"),
        r"reward 'raises' raised KeyError: 'score' \(on row 0: .*tried with placeholder",
        "return a number or None",
    ),
    (
        "fails on an empty response",
        lambda bench: bench.reward(OWN + "indexes"),
        r"reward 'indexes' raised IndexError: .*\(on row 0: .*hostile text",
        "None instead",
    ),
    (
        "fails on a long number",
        lambda bench: bench.reward(OWN + "digits"),
        r"reward 'digits' raised ValueError: .*999.*hostile text",
        "None instead",
    ),
    (
        "fails on a long response",
        lambda bench: bench.reward(OWN + "long_ones"),
        "reward 'long_ones' raised ZeroDivisionError.*word word",
        "None instead",
    ),
    (
        "async judge that is not there",
        lambda bench: bench.reward(OWN + "waits_for_nothing"),
        "reward 'waits_for_nothing' raised ConnectionError",
        "tried with placeholder",
    ),
    ("weight", lambda bench: bench.reward(OWN + "fine", weight="high"), AT + r"rewards\.0\.weight", "valid number"),
    (
        "unknown key",
        lambda bench: bench.reward(OWN + "fine", arg={}),
        AT + r"rewards\.0\.arg: unknown key",
        "did you mean 'args'",
    ),
]

CORPUS = {"keys": KEYS, "ranges": RANGES, "cross-rules": CROSS, "data": DATA, "models": MODELS, "rewards": REWARDS}
CASES = [pytest.param(*case, id=f"{kind}: {name}") for kind, cases in CORPUS.items() for name, *case in cases]


def test_the_corpus_is_large_enough():
    assert all(len(cases) >= 10 for cases in CORPUS.values()) and len(CASES) >= 60


def test_healthy_recipes_have_no_problem(bench):
    assert bench.checked()["problems"] == []
    bench.launch = LAUNCH
    assert bench.checked()["problems"] == []
    bench.guided()
    assert bench.checked()["problems"] == []


@pytest.mark.parametrize("defect, place, fix", CASES)
def test_a_broken_input_is_refused_with_its_place_and_its_fix(bench, defect, place, fix):
    defect(bench)
    result = bench.checked()
    assert not result["ok"] and result["facts"] == {}
    told = [problem for problem in result["problems"] if re.search(place, problem, re.DOTALL)]
    assert told, result["problems"]
    assert any(re.search(fix, problem, re.DOTALL) for problem in told), told
    assert len(result["problems"]) <= 3, result["problems"]  # one defect is not told in many ways


def test_defects_of_all_kinds_are_told_at_once(bench):
    bench.put("optim.learning_rate", 1)
    bench.put("run.steps", 0)
    bench.put("eval.pass_at", [9])
    bench.cut("model/model.safetensors")
    bench.rows([*broken.prompts(), {"prompt": ""}, {"prompt": 4}])
    bench.recipe["rewards"] = [{"fn": OWN + "raises"}, {"fn": OWN + "gone"}, {"fn": OWN + "wants_solution"}]
    told = "\n".join(bench.checked()["problems"])
    for part in (
        *(r"optim\.learning_rate", r"run\.steps", r"eval\.pass_at", r"model\.safetensors: is cut", "row 8", "row 9"),
        *("reward 'raises'", "'gone'", "needs 'solution'"),
    ):
        assert re.search(part, told), (part, told)


@pytest.mark.parametrize("lost", ["model/tokenizer.json", "model/config.json"])
def test_a_broken_model_hides_no_row_and_no_reward(bench, lost):
    bench.remove(lost)
    bench.row({"prompt": ""})
    bench.reward(OWN + "raises")
    told = "\n".join(bench.checked()["problems"])
    assert "model.policy" in told and "row 3: 'prompt'" in told and "reward 'raises'" in told


def test_many_broken_rows_take_few_lines(bench):
    bench.rows([{"prompt": ""}] * 25)
    (told,) = bench.checked()["problems"]
    assert told.endswith("it is '' (and 24 more: rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...)")
    bench.rows([{"prompt": i} for i in range(25)])
    told = bench.checked()["problems"]
    assert len(told) == 11 and "25 rows cannot be used, for 25 reasons" in told[-1]


def test_the_command_line(bench):
    bench.launch = LAUNCH
    bench.checked()

    def check(*arguments):
        done = CliRunner().invoke(app, ["check", "recipe.yaml", *arguments])
        return done.exit_code, done.stdout

    code, said = check("--json", "--launch", "launch.yaml")
    found = json.loads(said)
    assert code == 0 and found["ok"] and found["problems"] == []
    assert found["facts"]["step"]["rows"] == 8 and found["facts"]["launch"]["processes"] == 2
    code, said = check("optim.lr=-1", "--json")
    assert code == 1 and json.loads(said)["problems"][0].startswith("command line: optim.lr")
    code, said = check("optim.lr=-1")
    assert code == 1 and "problem: command line: optim.lr" in said
