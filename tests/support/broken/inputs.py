"""Broken inputs of the corpus that name nothing, have no end, or are of another kind than what stands there.

Each case: its name, a function of the `Bench`, then what the message must hold: the place, and the fix.
"""

from support.broken.corpus import AT, Bench, put
from support.broken.files import guided
from support.broken.recipes import drop, launched

OBJECTIVE = """
from dataclasses import replace
from align.objectives import Objective, grpo

def made() -> Objective:
    return replace(grpo(), {})
"""


def both(*changes):
    def change(bench: Bench):
        for one in changes:
            one(bench)

    return change


def makes(change: str):
    """An objective of the user's own, with a part that is changed."""

    def written(bench: Bench):
        bench.write("exploding.py", OBJECTIVE.format(change))
        bench.put("objective", {"name": "exploding:made"})

    return written


def adapter(**changes):
    """A guide whose configuration is changed."""
    return guided(lambda bench: bench.file("guide/adapter_config.json", **changes))


def stages(**files: str):
    """The policy of the first recipe of these."""

    def change(bench: Bench):
        for name, text in files.items():
            bench.write(f"{name}.yaml", text)
        bench.drop("model.adapter")
        bench.put("model.policy", {"from": f"{next(iter(files))}.yaml"})

    return change


def read_as(tag: str, text: str):
    return lambda bench: setattr(bench, "text", f"model: {{policy: !!{tag} {text}}}\n")


EMPTY = "is empty; write a name, or leave the key out"
CONTROL = "holds a line end or another control character"
FIRST = "model: {policy: {from: second.yaml}}\nrun: {out: runs/first}\n"

NAMES = [
    *[
        (f"empty {key}", put(key, value), AT + key.replace(".", r"\."), EMPTY)
        for key in ("model.policy", "model.guide", "data.prompts", "data.eval_prompts", "run.out", "run.resume")
        for value in ("", "  ")
    ],
    ("empty start", put("model.adapter", {"from": ""}), AT + r"model\.adapter\.from", EMPTY),
    (
        "empty recipe",
        both(drop("model.adapter"), put("model.policy", {"from": ""})),
        AT + r"model\.policy\.from",
        EMPTY,
    ),
    ("a byte 0", put("model.adapter", {"from": "a\0b"}), AT + r"model\.adapter\.from", CONTROL),
    ("a line end", put("run.out", "runs/a\nb"), AT + r"run\.out", CONTROL),
    ("somebody's home", put("run.out", "~/runs/x"), AT + r"run\.out: ~/runs/x", "write the folder's whole path"),
    (
        "a folder for a file",
        both(lambda bench: (bench.root / "d.jsonl").mkdir(), put("data.prompts", "d.jsonl")),
        AT + r"data\.prompts: d\.jsonl: no such file",
        "but a folder of this name",
    ),
    (
        "a function of Python's own",
        both(put("data.prompts", "subprocess:getoutput"), put("data.args", {"cmd": "touch called"})),
        AT + r"data\.prompts: subprocess:getoutput",
        "name a function of your own",
    ),
]

KINDS = [
    ("no boolean", read_as("bool", "abc"), r"recipe\.yaml:1: model\.policy: 'abc' cannot be read: it is no bool", ""),
    (
        "no time",
        read_as("timestamp", "abc"),
        r"recipe\.yaml:1: model\.policy: 'abc' cannot be read: it is no timestamp",
        "",
    ),
    ("no number", read_as("int", "abc"), r"recipe\.yaml:1: model\.policy: 'abc' cannot be read: invalid literal", ""),
    ("an empty number", read_as("int", "''"), r"recipe\.yaml:1: model\.policy: '' cannot be read: it is no int", ""),
    (
        "epochs without end",
        both(drop("run.steps"), put("run.epochs", 1.7e308)),
        AT + r"run\.epochs",
        "equal to 1000000",
    ),
    ("nearly no temperature", put("sampling.temperature", 1e-300), AT + r"sampling\.temperature", "write 0.01 or more"),
    ("no loss", put("objective", {"chain": [], "loss": {}}), AT + "objective: ", "nothing is trained; name one"),
    ("a chain that is none", makes("chain=None"), AT + r"objective\.name: .* chain is None", "a tuple of Transform"),
    ("a chain of numbers", makes("chain=(3,)"), AT + r"objective\.name: .* chain is \(3,\)", "a tuple of Transform"),
    ("losses of numbers", makes("losses=[3]"), AT + r"objective\.name: .* losses is \[3\]", "a tuple of Loss"),
    ("an own one without loss", makes("losses=()"), AT + "objective: .*no loss", "name one"),
    ("a number for a name", makes("name=3"), AT + r"objective\.name: .* name is 3", "write letters"),
    ("a path for a name", makes("name='../x'"), AT + r"objective\.name: .* name is '\.\./x'", "write letters"),
    ("alpha that is none", adapter(lora_alpha=float("nan")), AT + r"model\.guide: guide: the rank or alpha nan", ""),
    ("alpha as text", adapter(alpha_pattern={"q_proj": "x"}), AT + r"model\.guide: guide: the rank or alpha 'x'", ""),
    ("a pattern that is none", adapter(target_modules="["), AT + r"model\.guide: guide: the pattern '\['", "save the"),
    ("a pattern without end", adapter(target_modules="(.*.*.*)*x"), AT + r"model\.guide: guide: .*take hours", "save"),
    ("an excluding one", adapter(exclude_modules="(a|a)*x"), AT + r"model\.guide: guide: .*take hours", "save"),
    ("one of ranks", adapter(rank_pattern={".*" * 9: 4}), AT + r"model\.guide: guide: .*take hours", "save"),
    (
        "a stage of a stage that writes nothing",
        stages(first=FIRST, second="model: 3\n"),
        AT + r"model\.policy: second\.yaml has no run\.out",
        "align check",
    ),
    (
        "an adapter of a broken stage",
        both(
            lambda bench: bench.write("s.yaml", "model: {policy: model, adapter: {rank: x}}\nrun: {out: runs/s}\n"),
            put("model.adapter", {"from": "s.yaml"}),
        ),
        AT + r"model\.adapter\.from: s\.yaml: model\.adapter\.rank: ",
        "mend that recipe",
    ),
    *[
        (f"launch {key}", launched(**{key: value}), rf"launch\.yaml:\d+: {key}: must be", "")
        for key, value in (
            *(("num_machines", -1), ("machine_rank", "first"), ("main_process_port", "abc")),
            ("compute_environment", "SAGEMAKER"),
        )
    ],
]
