"""Rules between `sampling` and what learns from the samples; each returns the problems, as those of `rules.py` do."""

from __future__ import annotations

from align.config.recipe import Recipe
from align.config.recipe_file import RecipeFile
from align.config.sampling_keys import Sampling
from align.objectives.objective import Objective

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
                problems.append(file.problem(file.objective_key(i), what))
    if any(data.pairs for data in (recipe.sources().values() if recipe.data else ())):
        what = "answers of data.pairs may lie outside of the support, where their probability is 0; leave it out"
        problems.append(file.problem(("sampling", names[0]), what))
    if recipe.optim and recipe.optim.updates_per_step > 1:
        what = f"after the first update the support is another one than was sampled from; write 1, or {fix}"
        problems.append(file.problem(("optim", "updates_per_step"), what))
    return problems


def staleness_rules(recipe: Recipe, objectives: tuple[Objective, ...], file: RecipeFile) -> list[str]:
    """Find steps sampled ahead by an engine that cannot, or for an objective that takes the responses for those of the
    policy of now."""
    sampling, sources, problems = recipe.sampling, recipe.sources() if recipe.data else {}, []
    if not (sampling and sampling.staleness):
        return []
    key = ("sampling", "staleness")
    if sampling.engine != "server":
        what = f"{sampling.engine} runs in the trainer's process, where it cannot sample beside the update"
        problems.append(file.problem(key, f"{what}; write 0, or engine: server"))
    for objective in objectives:
        data = sources.get(objective.data) or next(iter(sources.values()), None)
        if data and data.sampled and not (objective.preference or _weighs_importance(objective, sampling)):
            what = f"{objective.name} has no importance weight for responses of the policy one step behind"
            problems.append(file.problem(key, f"{what}; {_importance_of(objective)}, or write 0"))
    return problems


def _weighs_importance(objective: Objective, sampling: Sampling) -> bool:
    """Whether an objective corrects for the policy that sampled: by a weight, or by a ratio to the sampler's."""
    weighs = any({"old_logprob", "sampler_logprob"} <= set(transform.needs) for transform in objective.chain)
    has_ratio = any("old_logprob" in loss.needs for loss in objective.losses)
    return weighs or (has_ratio and sampling.old_logprob == "sampler")


def _importance_of(objective: Objective) -> str:
    """How the objective would get an importance weight."""
    weight = "add: [{importance_weight: {}}] to it with sampling.old_logprob: trainer"
    has_ratio = any("old_logprob" in loss.needs for loss in objective.losses)
    return f"write sampling.old_logprob: sampler, or {weight}" if has_ratio else weight


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


SAMPLING = support_rules, staleness_rules, server_rules
