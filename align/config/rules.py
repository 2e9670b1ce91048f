"""Rules between keys of a recipe. Each takes what was read and returns the problems, one line each.

A section that is None was found wrong before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec

from align.config.data_keys import Data
from align.config.hub_name import base_problem, check_repo_name
from align.config.model_keys import FromRecipe
from align.config.problems import nearest
from align.config.recipe import Gate, Recipe
from align.config.recipe_file import KeyPath, RecipeFile
from align.config.sampling_keys import Sampling
from align.objectives.objective import Objective
from align.transforms.transform import Stage

Rule = Callable[[Recipe, tuple[Objective, ...], RecipeFile], list[str]]


def cross_rules(recipe: Recipe, objectives: tuple[Objective, ...], file: RecipeFile) -> list[str]:
    """Find keys of different sections that do not go together."""
    problems = []
    model, sampling, evaluation, run = recipe.model, recipe.sampling, recipe.eval, recipe.run
    for objective in objectives:
        for transform in objective.chain if sampling else ():
            if {"old_logprob", "sampler_logprob"} <= set(transform.needs) and sampling.old_logprob == "sampler":
                needed = f"{transform.name} needs sampling.old_logprob: trainer"
                what = f"{needed}; with the sampler's the ratio contains it already"
                problems.append(file.problem(("sampling", "old_logprob"), what))
    if sampling and sampling.sync == "adapter" and model and model.adapter is None:
        problems.append(
            file.problem(("sampling", "sync"), "adapter needs model.adapter; write merged, or leave it out")
        )
    if sampling and sampling.engine == "transformers" and sampling.sync:
        problems.append(file.problem(("sampling", "sync"), "the transformers engine shares the weights; leave it out"))
    for name, rule in recipe.sentinel.rules.items() if recipe.sentinel and run else ():
        if rule.action == "rollback" and run.save_every is None:
            problems.append(file.problem(("sentinel", name, "action"), "rollback needs checkpoints: run.save_every"))
        elif rule.action == "rollback" and (run.keep - 1) * run.save_every < rule.for_steps - 1:
            need = 1 - (-(rule.for_steps - 1) // run.save_every)
            what = f"it takes {rule.for_steps} steps to see, and by then the checkpoint before is gone: run.keep={need}"
            problems.append(file.problem(("sentinel", name, "action"), what))
    if evaluation and max(evaluation.pass_at) > evaluation.samples:
        what = f"pass@{max(evaluation.pass_at)} needs as many eval.samples; there are {evaluation.samples}"
        problems.append(file.problem(("eval", "pass_at"), what))
    return problems


def tracker_rules(recipe: Recipe, objectives: tuple[Objective, ...], file: RecipeFile) -> list[str]:
    """Find trackers that this machine lacks, which a replay of the run does not need."""
    lacking = [(i, name) for i, name in enumerate(recipe.run.trackers if recipe.run else ()) if not find_spec(name)]
    return [file.problem(("run", "trackers", i), f"{name} is not installed; pip install {name}") for i, name in lacking]


def quantize_rules(recipe: Recipe, objectives: tuple[Objective, ...], file: RecipeFile) -> list[str]:
    """Find a quantised policy without an adapter, or one that would be merged into it."""
    model = recipe.model
    if model and model.quantize and recipe.sampling and recipe.sampling.sync == "merged":
        what = f"merged has no 4-bit base below it, which model.quantize: {model.quantize} trains an adapter for"
        return [file.problem(("sampling", "sync"), f"{what}; write adapter, or leave it out")]
    if model and model.quantize and model.adapter is None:
        what = f"{model.quantize} needs model.adapter, for quantised weights cannot be trained"
        return [file.problem(("model", "quantize"), f"{what}; add adapter: {{rank: 16}}, or leave quantize out")]
    return []


def length_rules(recipe: Recipe, objectives: tuple[Objective, ...], file: RecipeFile) -> list[str]:
    """Find a run without a length or with two, and keys of another optimiser."""
    problems, run, optim = [], recipe.run, recipe.optim
    if run and run.steps is None and run.epochs is None:
        problems.append(file.problem(("run", "steps"), "missing; this key is needed, or run.epochs"))
    if run and run.steps is not None and run.epochs is not None:
        problems.append(file.problem(("run", "epochs"), "leave it out where run.steps is given"))
    if optim and optim.warmup_share is not None and optim.warmup_steps:
        problems.append(file.problem(("optim", "warmup_share"), "leave it out where optim.warmup_steps is given"))
    if optim and optim.optimizer == "sgd" and "betas" in optim.model_fields_set:
        problems.append(file.problem(("optim", "betas"), "sgd has none; leave it out, or write optim.optimizer: adamw"))
    return problems


def source_rules(recipe: Recipe, objectives: tuple[Objective, ...], file: RecipeFile) -> list[str]:
    """Find sources without objectives or rewards, and objectives without the data or the guide that they read."""
    problems, sources = [], recipe.sources() if recipe.data else {}
    read = {objective.data for objective in objectives}
    for name, data in sources.items():
        if len(sources) > 1 and objectives and name not in read:
            problems.append(file.problem(("data", name), f"no objective learns from it; write data: {name} in one"))
        key = ("data",) if isinstance(recipe.data, Data) else ("data", name)
        if data.holdout and data.eval_prompts and data.sampled:
            problems.append(file.problem((*key, "holdout"), "leave it out where eval_prompts are given"))
        if (data.sampled or data.eval_prompts) and recipe.rewards in ({}, []) and not recipe.environment:
            problems.append(file.problem(("rewards",), "is empty; name at least one reward function"))
    for i, objective in enumerate(objectives):
        key = _objective_key(i, file)
        problems += _data_problems(objective, sources, file, key)
        if "guide_logprob" in objective.needs and recipe.model and recipe.model.guide is None:
            what = f"missing; {objective.name} needs a guide: an adapter, a model, or {{from: RECIPE}}"
            problems.append(file.problem(("model", "guide"), what))
    return problems


def group_rules(recipe: Recipe, objectives: tuple[Objective, ...], file: RecipeFile) -> list[str]:
    """Find transforms and losses whose groups have too few responses."""
    problems, sampling, sources = [], recipe.sampling, recipe.sources() if recipe.data else {}
    if sampling is None:
        return []
    for i, objective in enumerate(objectives):
        data = sources.get(objective.data) or next(iter(sources.values()), None)
        if data is None or data.pairs:
            continue
        comparing = [transform.name for transform in objective.chain if transform.compares]
        if sampling.group_size == 1 and comparing:
            what = f"must be at least 2: {comparing[0]} compares the responses of a group"
            problems.append(file.problem(("sampling", "group_size"), what))
            continue
        for piece in (*objective.chain, *objective.losses):
            try:
                piece.check(sampling.group_size)
            except ValueError as error:
                what = f"{piece.name}: {error} (sampling.group_size)"
                problems.append(file.problem(_objective_key(i, file), what))
    if sampling.group_size == 1 and sampling.dynamic_sampling:
        problems.append(file.problem(("sampling", "group_size"), "must be at least 2 with dynamic_sampling"))
    return problems


def head_rules(recipe: Recipe, objectives: tuple[Objective, ...], file: RecipeFile) -> list[str]:
    """Find quantities of a head that no loss of the recipe trains, and heads that two objectives train differently."""
    problems, heads = [], {}
    for i, objective in enumerate(objectives):
        key = _objective_key(i, file)
        own = [head for loss in objective.losses for head in loss.heads]
        given = {name for head in own for name in head.gives}
        for piece in (*objective.chain, *objective.losses):
            wants = {*getattr(piece, "reads_current", ()), *piece.needs} & {"value", "reward_mask", "kl_mask"}
            learned = wants - given - ({"reward_mask", "kl_mask"} & set(piece.needs))
            if learned:
                giver = "value_loss" if "value" in learned else "pair_logistic_masked"
                problems.append(file.problem(key, f"{piece.name} reads {min(learned)}; add the loss {giver}"))
        for head in own:
            if heads.setdefault(head.name, head) != head:
                what = f"another objective trains the head {head.name!r} with other settings; give both the same"
                problems.append(file.problem(key, what))
    return problems


# quantities that a policy with a cut support cannot have: `align.model.cut` says why
BEYOND_SUPPORT = {
    "entropy": "the entropy of the whole vocabulary",
    "ref_kl": "the KL of the whole vocabulary",
    "ref_logprob": "log-probabilities of the reference, whose own support is another one",
    "guide_logprob": "log-probabilities of the guide, whose own support is another one",
    "reward_mask": "the reference, whose own support is another one",
    "kl_mask": "the reference, whose own support is another one",
}


def support_rules(recipe: Recipe, objectives: tuple[Objective, ...], file: RecipeFile) -> list[str]:
    """Find what needs the whole distribution where top_p, top_k or min_p cut it."""
    sampling, whole, problems = recipe.sampling, Sampling(), []
    names = [n for n in ("top_p", "top_k", "min_p") if sampling and getattr(sampling, n) != getattr(whole, n)]
    if not names:
        return []
    fix = f"leave out sampling.{' and sampling.'.join(names)}"
    for i, objective in enumerate(objectives):
        for piece in (*objective.chain, *objective.losses):
            reads = [name for name in BEYOND_SUPPORT if name in (*piece.needs, *getattr(piece, "reads_current", ()))]
            if reads:
                what = f"{piece.name} needs {BEYOND_SUPPORT[reads[0]]}; {fix}"
                problems.append(file.problem(_objective_key(i, file), what))
    if any(data.pairs for data in (recipe.sources().values() if recipe.data else ())):
        what = "answers of data.pairs may lie outside of the support, where their probability is 0; leave it out"
        problems.append(file.problem(("sampling", names[0]), what))
    if recipe.optim and recipe.optim.updates_per_step > 1:
        what = f"after the first update the support is another one than was sampled from; write 1, or {fix}"
        problems.append(file.problem(("optim", "updates_per_step"), what))
    return problems


def environment_rules(recipe: Recipe, objectives: tuple[Objective, ...], file: RecipeFile) -> list[str]:
    """Find episodes without an environment, an environment without episodes, and turns longer than an episode."""
    problems, sampling, sources = [], recipe.sampling, recipe.sources() if recipe.data else {}
    environment = file.data.get("environment")
    for name, data in sources.items():
        key = ("data", "episodes") if isinstance(recipe.data, Data) else ("data", name, "episodes")
        if data.episodes and not environment:
            problems.append(file.problem(key, "needs an environment: {name: module:Class}; or write prompts"))
        if data.episodes and isinstance(recipe.environment, dict):
            what = "have no column `environment` to choose one of several by; write prompts, whose rows have it"
            problems.append(file.problem(key, what))
    if environment and sources and not any(data.sampled or data.eval_prompts for data in sources.values()):
        what = "no source samples responses, so nothing is played; write data.episodes or data.prompts"
        problems.append(file.problem(("environment",), what))
    if sampling and sampling.max_turn_tokens and not environment:
        problems.append(
            file.problem(("sampling", "max_turn_tokens"), "needs an environment; write max_response_tokens")
        )
    elif sampling and sampling.max_turn_tokens and sampling.max_turn_tokens > sampling.max_response_tokens:
        what = f"an episode has {sampling.max_response_tokens} tokens (sampling.max_response_tokens), so no turn fits"
        problems.append(file.problem(("sampling", "max_turn_tokens"), f"{what}; lower it or raise that"))
    return problems


def server_rules(recipe: Recipe, objectives: tuple[Objective, ...], file: RecipeFile) -> list[str]:
    """Find servers without the engine that asks them, that engine without servers, and keys that mean nothing there."""
    sampling, problems = recipe.sampling, []
    if sampling is None or sampling.engine != "server":
        if sampling and sampling.servers:
            problems.append(file.problem(("sampling", "servers"), "need sampling.engine: server; or leave them out"))
        return problems
    if not sampling.servers:
        what = "is empty; name those that sample, such as [http://127.0.0.1:8000]"
        problems.append(file.problem(("sampling", "servers"), what))
    twice = sorted({url for url in sampling.servers if sampling.servers.count(url) > 1})
    problems += [file.problem(("sampling", "servers"), f"{url} stands twice; keep one") for url in twice]
    if sampling.sleep:
        what = "the memory of servers is their own, and nothing of it is the trainer's; leave it out"
        problems.append(file.problem(("sampling", "sleep"), what))
    if recipe.model and recipe.model.quantize:
        what = "servers have the base as its files have it, not in 4 bits; leave it out, or write sampling.engine: vllm"
        problems.append(file.problem(("model", "quantize"), what))
    return problems


TRAINING: tuple[Rule, ...] = (
    *(cross_rules, tracker_rules, quantize_rules, length_rules, source_rules),
    *(group_rules, head_rules, support_rules, environment_rules, server_rules),
)

REPLAY: tuple[Rule, ...] = (cross_rules,)  # recorded rollouts bring along what sources and models would give


def hub_problems(recipe: Recipe, file: RecipeFile) -> list[str]:
    """Find what would keep the result from being pushed."""
    if recipe.hub is None:
        return []
    problems, model, goal = [], recipe.model, recipe.target()
    try:
        check_repo_name(goal.repo)
    except ValueError as error:
        problems.append(file.problem(("hub",), str(error)))
    if model and model.adapter:
        base = model.policy.recipe if isinstance(model.policy, FromRecipe) else model.policy
        if (what := base_problem(base)) is not None:
            problems.append(file.problem(("hub",), what))
    if goal.gate and recipe.data and not any(data.holdout or data.eval_prompts for data in recipe.sources().values()):
        problems.append(file.problem(("hub", "gate"), "needs an evaluation; write data.holdout or data.eval_prompts"))
    return problems


def check_measure(gate: Gate, measured: Iterable[str]) -> None:
    """Raise `ValueError` where the gate's measure is not among the metrics of an evaluation; it names those it has."""
    names = [name.removeprefix("eval/") for name in measured if name.startswith("eval/")]
    if gate.measure not in names:
        raise ValueError(f"nothing is called {gate.measure!r}; {nearest(gate.measure, names)}")


def _data_problems(objective: Objective, sources: dict[str, Data], file: RecipeFile, key: KeyPath) -> list[str]:
    if len(sources) > 1 and objective.data is None:
        return [file.problem(key, f"which source does it learn from? Write data: NAME; {nearest('', sources)}")]
    if sources and objective.data is not None and objective.data not in sources:
        what = f"no source is called {objective.data!r}; {nearest(objective.data, sources)}"
        return [file.problem((*key, "data"), what)]
    gives = {name for transform in objective.chain for name in transform.gives}
    data = sources.get(objective.data) or next(iter(sources.values()), None)
    if data and data.sampled and objective.preference and "chosen" not in gives:
        what = f"{objective.name} learns from pairs; add [{{best_and_worst: {{}}}}] to make them from rollouts"
        return [file.problem(key, f"{what}, or name a data set as data.pairs")]
    dropping = [transform.name for transform in objective.chain if transform.stage is Stage.FILTER]
    if data and data.pairs and objective.pairs and dropping:
        return [file.problem(key, f"{dropping[0]} drops rows, and of a pair of the data both are needed")]
    return []


def _objective_key(i: int, file: RecipeFile) -> KeyPath:
    return ("objective",) if file.data.get("objectives") is None else ("objectives", i)
