"""Broken data, models, adapters and rewards of the corpus: what breaks, and patterns of the message that must tell it.

Each case: its name, a function of the `Bench`, then what the message must hold: the place, and the fix.
"""

import json
import shutil

import torch
from safetensors.torch import load_file, save_file

from support.broken.corpus import AT, Bench, put

DATA = [
    ("no file", put("data.prompts", "nowhere.jsonl"), AT + r"data\.prompts: nowhere\.jsonl", "no such file"),
    (
        "a file of another name",
        put("data.prompts", "prompt.jsonl"),
        AT + r"data\.prompts: prompt\.jsonl: no such file",
        r"did you mean 'prompts\.jsonl'",
    ),
    (
        "half a character",
        lambda bench: bench.row({"answer": "\ud83d"}),
        r"prompts\.jsonl: row 4: ",
        r"'\\ud83d' holds half a character; write the whole one",
    ),
    (
        "half a character in a name",
        lambda bench: bench.row({"\ud83d": "x"}),
        r"prompts\.jsonl: row 4: ",
        "holds half a character",
    ),
    (
        "a long number",
        lambda bench: bench.write("prompts.jsonl", '{"prompt": "a", "answer": ' + "9" * 5000 + "}\n"),
        AT + r"data\.prompts: prompts\.jsonl: line 1 cannot be read",
        "shorten it",
    ),
    (
        "a list in a list in a list",
        lambda bench: bench.write("prompts.jsonl", '{"prompt": "a", "answer": ' + "[" * 500 + "]" * 500 + "}\n"),
        r"prompts\.jsonl: row 1",
        "more than 50 lists deep",
    ),
    (
        "a list too deep to read",
        lambda bench: bench.write(
            "prompts.jsonl", '{"prompt": "a", "answer": ' + "[" * 100_000 + "]" * 100_000 + "}\n"
        ),
        r"prompts\.jsonl: line 1 cannot be read",
        "recursion depth",
    ),
    (
        "a number for a column",
        lambda bench: (
            bench.write("numbered_rows.py", "def rows():\n    return [{'prompt': 'a', 1: 'b'}]\n"),
            bench.put("data.prompts", "numbered_rows:rows"),
        ),
        "numbered_rows:rows: row 1: a column is called 1",
        "a name is text",
    ),
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
        r"prompts\.jsonl: row 2",
        "must be a dictionary with a 'prompt'",
    ),
    (
        "no prompt",
        lambda bench: bench.rows([{"question": "a", "answer": "b"}]),
        r"prompts\.jsonl: row 1: 'prompt'",
        "there are: question, answer",
    ),
    (
        "empty prompt",
        lambda bench: bench.row({"prompt": ""}),
        r"prompts\.jsonl: row 4: 'prompt'",
        "must be text or a list",
    ),
    (
        "a number for a prompt",
        lambda bench: bench.row({"prompt": 7}),
        r"prompts\.jsonl: row 4: 'prompt'",
        "must be text .* it is 7",
    ),
    (
        "message without content",
        lambda bench: bench.row({"prompt": [{"role": "user"}]}),
        r"prompts\.jsonl: row 4: 'prompt'",
        "role: ..., content: text",
    ),
    (
        "message without a role",
        lambda bench: bench.row({"prompt": [{"role": "user", "content": "a"}, {"content": "b"}]}),
        r"prompts\.jsonl: row 4: 'prompt'",
        "role: ..., content: text",
    ),
    (
        "long prompt",
        lambda bench: bench.row({"prompt": "x" * 100}),
        r"prompts\.jsonl: row 4: the prompt has 100",
        r"data\.max_prompt_tokens is 64; raise it",
    ),
    ("everything held out", put("data.holdout", 8), r"data\.holdout: 8 of 8", "leaves none to train on"),
    (
        "no such column",
        put("data.holdout_by", "topic"),
        AT + r"data\.holdout_by: a row has no column 'topic'",
        "there are: answer",
    ),
    (
        "csv without the column",
        lambda bench: (bench.write("p.csv", "question,answer\na,b\n"), bench.put("data.prompts", "p.csv")),
        r"p\.csv: row 1: 'prompt'",
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
        r"pairs\.jsonl: row 1: 'chosen'",
        "must be text",
    ),
    (
        "no rejected",
        lambda bench: bench.learns_from_pairs([{"prompt": "a", "chosen": "b"}]),
        "data: row 1",
        "no 'rejected', which dpo needs",
    ),
    (
        "same responses",
        lambda bench: bench.pair({"rejected": "4"}),
        r"pairs\.jsonl: row 4: chosen and rejected",
        "drop the row",
    ),
    (
        "text and messages",
        lambda bench: bench.pair({"chosen": [{"role": "assistant", "content": "4"}]}),
        r"row 4: 'chosen'",
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
        "take one that writes text",
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
        r"prompts\.jsonl: row 1: the prompt is a conversation",
        "no chat template",
    ),
    (
        "template that refuses",
        lambda bench: bench.write("model/chat_template.jinja", "{{ raise_exception('only one user') }}"),
        r"prompts\.jsonl: row 1: .*chat template refuses",
        "change the messages, or data.system",
    ),
    (
        "a template that TRL does not ship",
        put("model.chat_template", "trl:qwen2.5"),
        AT + r"model\.chat_template: trl:qwen2\.5: TRL ships no template of this name",
        "did you mean 'qwen2_5'",
    ),
    (
        "a template's file that is not there",
        lambda bench: (bench.write("own.jinja", "x"), bench.put("model.chat_template", "owm.jinja")),
        AT + r"model\.chat_template: owm\.jinja: no such file",
        "did you mean 'own.jinja'.*write trl:NAME",
    ),
    (
        "a folder for a template",
        put("model.chat_template", "model"),
        AT + r"model\.chat_template: model: cannot be read as text",
        "name a .jinja file",
    ),
    (
        "a template that is no Jinja",
        lambda bench: (
            bench.write("own.jinja", "{% for m in messages %}\n{{ m.content }\n{% endfor %}"),
            bench.put("model.chat_template", "own.jinja"),
        ),
        AT + r"model\.chat_template: own\.jinja: line 2: is no Jinja",
        "mend it there",
    ),
    (
        "a template that fails on a question",
        lambda bench: (
            bench.write("own.jinja", "{{ messages[5].content }}"),
            bench.put("model.chat_template", "own.jinja"),
        ),
        AT + r"model\.chat_template: own\.jinja: cannot write a conversation of user: UndefinedError",
        "mend it",
    ),
    (
        "a template that leaves out the question",
        lambda bench: (bench.write("own.jinja", "hello"), bench.put("model.chat_template", "own.jinja")),
        AT + r"model\.chat_template: own\.jinja: leaves out what the user says",
        "name the template of a text model",
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
        "a byte 0 in the name of the folder",
        put("run.out", "a\0b"),
        AT + r"run\.out: holds .*'a\\x00b'",
        "write the name",
    ),
    (
        "a link to nowhere for a folder",
        lambda bench: ((bench.root / "dangling").symlink_to("gone"), bench.put("run.out", "dangling")),
        AT + r"run\.out: dangling is a link to gone",
        "make that folder, or name another one",
    ),
    (
        "in the folder of the model",
        put("run.out", "model/run"),
        AT + r"run\.out: model/run is inside model, the folder of model\.policy",
        "name another folder",
    ),
    (
        "a folder that holds the model's",
        put("run.out", "."),
        AT + r"run\.out: \. holds model, the folder of model\.policy",
        "name another folder",
    ),
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
        AT + r"model\.guide: guide: has no adapter_model",
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

# {how user code leaves: (the line that does, what the message says of it)}
WAYS_OUT = {
    "sys.exit": ("import sys; sys.exit(0)", "SystemExit|sys.exit"),
    "os._exit": ("import os; os._exit(0)", "its process left with exit code 0"),
    "a segfault": ("import ctypes; ctypes.string_at(0)", "its process died of SIGSEGV"),
}


def leaves(what: str, name_it, place: str, module: str = "{line}\n") -> list[tuple]:
    """A case for each way out: the module `leaving` takes it, and `name_it` puts the module into the recipe."""

    def case(line):
        return lambda bench: (bench.write("leaving.py", module.format(line=line)), name_it(bench))

    return [(f"{what}: {way}", case(line), place, told) for way, (line, told) in WAYS_OUT.items()]


IN_FUNCTION = "def made(**args):\n    {line}\n"
DATA += [
    *leaves("module of rows", put("data.prompts", "leaving:made"), r"data\.prompts: .*leaving:made"),
    *leaves("function of rows", put("data.prompts", "leaving:made"), r"data\.prompts: .*leaving:made", IN_FUNCTION),
]


OF_AN_OBJECTIVE = "from align.objectives import Objective\n\ndef made(**args) -> Objective:\n    {line}\n"


def learns(bench: Bench):
    bench.put("objective", {"name": "leaving:made"})


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
        "reward 'scaled' failed: TypeError",
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
        "reward 'one_number' failed: .*returned a float",
        "a list with one value a row",
    ),
    (
        "too few",
        lambda bench: bench.reward(OWN + "too_few"),
        "reward 'too_few' failed: .*returned 1 values for 3",
        "a list with one value a row",
    ),
    (
        "text",
        lambda bench: bench.reward(OWN + "text_out"),
        "reward 'text_out' failed: returned 'good'.*on row 1",
        "a finite number or None",
    ),
    (
        "not a number",
        lambda bench: bench.reward(OWN + "not_a_number"),
        "reward 'not_a_number' failed: returned nan.*on row 1",
        "a finite number or None",
    ),
    (
        "raises",
        lambda bench: bench.reward(OWN + "raises"),
        AT + r"rewards\.0\.fn: reward 'raises' failed: KeyError: 'score' \(corpus_rewards\.py:\d+\)",
        r"return a number or None instead \(on row 1: .*tried with placeholder",
    ),
    (
        "fails on an empty response",
        lambda bench: bench.reward(OWN + "indexes"),
        r"reward 'indexes' failed: IndexError: .*\(on row 1: .*hostile text",
        "None instead",
    ),
    (
        "fails on a long number",
        lambda bench: bench.reward(OWN + "digits"),
        r"reward 'digits' failed: ValueError: .*999.*hostile text",
        "None instead",
    ),
    (
        "fails on a long response",
        lambda bench: bench.reward(OWN + "long_ones"),
        "reward 'long_ones' failed: ZeroDivisionError.*word word",
        "None instead",
    ),
    (
        "async judge that is not there",
        lambda bench: bench.reward(OWN + "waits_for_nothing"),
        "reward 'waits_for_nothing' failed: ConnectionError",
        "tried with placeholder",
    ),
    (
        "misspelt argument",
        lambda bench: bench.reward(OWN + "scaled", args={"factor": 2, "facter": 3}),
        AT + r"rewards\.0\.args\.facter: reward 'scaled' has no argument 'facter'",
        "did you mean 'factor'",
    ),
    (
        "argument of a function without any",
        lambda bench: bench.reward(OWN + "too_few", args={"bonus": 2}),
        AT + r"rewards\.0\.args\.bonus",
        "there are: answer",
    ),
    (
        "any callable",
        lambda bench: bench.reward("subprocess:getoutput", args={"cmd": "touch ran"}),
        AT + r"rewards\.0\.fn: .*takes no completions",
        r"write def getoutput\(completions, \*\*columns\)",
    ),
    (
        "by place only",
        lambda bench: bench.reward(OWN + "by_place"),
        AT + r"rewards\.0\.fn: reward 'by_place' takes 'completions' by its place only",
        "take the / out",
    ),
    (
        "beyond float32",
        lambda bench: bench.reward(OWN + "huge"),
        AT + r"rewards\.0\.fn: reward 'huge' failed: returned 1e\+39",
        "a number within float32",
    ),
    (
        "messages taken for text",
        lambda bench: bench.reward(OWN + "lowers"),
        AT + r"rewards\.0\.fn: reward 'lowers' failed: AttributeError: .*corpus_rewards\.py:\d+",
        r"take rewards\.text\(completion\)",
    ),
    *leaves(
        "reward module", lambda bench: bench.reward("leaving:fine"), AT + r"rewards\.0\.fn: .*'fine' cannot be loaded"
    ),
    ("weight", lambda bench: bench.reward(OWN + "fine", weight="high"), AT + r"rewards\.0\.weight", "valid number"),
    (
        "unknown key",
        lambda bench: bench.reward(OWN + "fine", arg={}),
        AT + r"rewards\.0\.arg: unknown key",
        "did you mean 'args'",
    ),
]
REWARDS += [
    *leaves("module of an objective", learns, AT + r"objective"),
    *leaves("function of an objective", learns, AT + r"objective", OF_AN_OBJECTIVE),
]
