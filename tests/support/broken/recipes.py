"""Broken keys, ranges and rules of the corpus: what breaks, and patterns of the message that must tell it.

Each case: its name, a function of the `Bench`, then what the message must hold: the place, and the fix.
"""

import yaml

from support.broken.corpus import AT, Bench, put

LAUNCH = {
    "distributed_type": "DEEPSPEED",
    "deepspeed_config": {"zero_stage": 2, "gradient_accumulation_steps": 1},
    "num_processes": 2,
    "mixed_precision": "no",
}


def drop(key):
    return lambda bench: bench.drop(key)


def both(section, **keys):
    """Several keys of a section."""

    def change(bench: Bench):
        for name, value in keys.items():
            bench.put(f"{section}.{name}", value)

    return change


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


KEYS = [
    ("unknown", put("optim.learning_rate", 1), AT + r"optim\.learning_rate: unknown key; ", "lr"),
    ("typo", put("sampling.group_sise", 4), AT + r"sampling\.group_sise: unknown", "did you mean 'group_size'"),
    ("misplaced", put("optim.group_size", 4), AT + r"optim\.group_size: unknown", r"belongs at sampling\.group_size"),
    ("misplaced at the top", put("max_grad_norm", 1), AT + "max_grad_norm", r"belongs at optim\.max_grad_norm"),
    ("section", put("trainer", {"lr": 1}), AT + "trainer: unknown key", "there are: .*optim"),
    ("needed", drop("run.out"), AT + r"run\.out", "missing; this key is needed"),
    ("no length", drop("run.steps"), AT + r"run\.steps", r"missing; this key is needed, or run\.epochs"),
    ("two lengths", put("run.epochs", 1), AT + r"run\.epochs", r"leave it out where run\.steps"),
    ("two warm-ups", both("optim", warmup_share=0.1, warmup_steps=2), AT + r"optim\.warmup_share", "leave it out"),
    ("betas of sgd", both("optim", optimizer="sgd", betas=[0.9, 0.99]), AT + r"optim\.betas", "sgd has none"),
    ("a beta of 1", put("optim.betas", [0.9, 1.0]), AT + r"optim\.betas", "less than 1"),
    ("one beta", put("optim.betas", [0.9]), AT + r"optim\.betas", ""),
    ("callback", put("run.callbacks", ["no_such:f"]), AT + r"run\.callbacks\.0", "installed or on PYTHONPATH"),
    ("no callback", put("run.callbacks", ["math:pi"]), AT + r"run\.callbacks\.0", "math:pi is not a function"),
    ("callback of one", put("run.callbacks", ["textwrap:dedent"]), AT + r"run\.callbacks\.0", r"write def f\(step, m"),
    ("no data", drop("data"), "recipe.yaml: data", "this key is needed"),
    ("no objective", drop("objective"), "recipe.yaml: objective", "write one of objective and objectives"),
    ("objective", put("objective.name", "gfpoo"), AT + r"objective\.name", "did you mean 'gfpo'"),
    ("argument", put("objective.best", 2), AT + r"objective\.best: unknown key", r"there are: .*\bk\b"),
    ("of another objective", put("objective", {"name": "dpo", "k": 2}), AT + r"objective\.k", "there are: .*beta"),
    ("twice", replaced("  lr: 0.01", "  lr: 0.01\n  lr: 0.1"), AT + r"optim\.lr", "stands twice; keep one"),
    (
        "transform",
        put("objective.add", [{"keep_to": {"k": 2}}]),
        AT + r"objective\.add\.0\.keep_to",
        "did you mean 'keep_top'",
    ),
    ("not YAML", replaced("optim:", "optim: ["), r"recipe\.yaml: not valid YAML", r"line \d+"),
    (
        "no mapping",
        lambda bench: setattr(bench, "text", "- model"),
        r"recipe\.yaml: must be a mapping",
        "keys such as model",
    ),
]

RANGES = [
    ("text for a number", put("optim.lr", "fast"), AT + r"optim\.lr", "valid number.*'fast'"),
    ("negative rate", put("optim.lr", -0.1), AT + r"optim\.lr", "greater than 0.*-0.1"),
    ("no group", put("sampling.group_size", 0), AT + r"sampling\.group_size", "greater than or equal to 1"),
    ("a group beyond memory", put("sampling.group_size", 10**18), AT + r"sampling\.group_size", "equal to 100000"),
    ("hours without end", put("reward_limits", {"seconds": 1e10}), AT + r"reward_limits\.seconds", "equal to 1000000"),
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
    ("two sources of one kind", put("data.pairs", "pairs.jsonl"), AT + "data", "one of prompts, pairs and episodes"),
    ("bank of prompts", put("data.bank", "bank"), AT + "data", "a bank goes with pairs"),
    ("no rewards", put("rewards", []), AT + "rewards: is empty", "name at least one reward function"),
    (
        "gate on no measure",
        put("hub", {"repo": "user/name", "gate": {"measure": "rewrad", "at_least": 0.5}}),
        AT + r"hub\.gate\.measure: nothing is called 'rewrad'",
        "did you mean 'reward'",
    ),
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
