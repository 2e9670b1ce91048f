"""Build objectives from YAML: by name, by dotted path, or spelled out as a chain of transforms and losses."""

from __future__ import annotations

import inspect
import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from align.config.factories import call, check_survives, load_object, unfit
from align.config.problems import distinct, nearest, shortened
from align.config.recipe_file import ConfigError, KeyPath, RecipeFile, collect
from align.losses.loss import Loss
from align.objectives.objective import Objective
from align.registry import LOSSES, OBJECTIVES, TRANSFORMS
from align.transforms.transform import Stage, Transform

# {quantity that only a transform can give: the transform that usually does}
GIVERS = {"advantage": "group_advantage", "token_reward": "token_reward", "returns": "gae"}


def build_objectives(file: RecipeFile) -> tuple[Objective, ...]:
    """Build a recipe's objectives from its key `objective` or its list `objectives`. Raises `ConfigError`."""
    one, several = file.data.get("objective"), file.data.get("objectives")
    if (one is None) == (several is None):
        raise ConfigError([file.problem(("objective",), "write one of objective and objectives")])
    if one is not None:
        return (build_objective(one, file, ("objective",)),)
    if not isinstance(several, list) or not several:
        raise ConfigError([file.problem(("objectives",), "takes a list such as [{gfpo: {k: 4}, weight: 1.0}]")])
    built = collect(enumerate(several), lambda entry: build_objective(entry[1], file, ("objectives", entry[0])))
    names = distinct([objective.name for objective in built])  # metrics bear the name of their objective
    return tuple(replace(objective, name=name) for objective, name in zip(built, names, strict=True))


def build_objective(spec: Any, file: RecipeFile, key: KeyPath) -> Objective:
    """Build one objective from any of three forms. Raises `ConfigError`.

    `{name: gfpo, k: 4}`, `{gfpo: {k: 4}}`, or spelled out as `{chain: [{keep_top: {k: 4}}, ...], loss:
    {clipped_surrogate: {...}}}`. Each may have `add`, a list of further transforms and losses, `weight`, and `data`,
    the name of the source that it learns from.
    """
    if not isinstance(spec, Mapping):
        raise ConfigError([file.problem(key, "takes a mapping such as {name: gfpo, k: 4}")])
    spec = dict(spec)
    weight, add, data = spec.pop("weight", 1.0), spec.pop("add", []), spec.pop("data", None)
    if not isinstance(weight, (int, float)) or isinstance(weight, bool) or not 0 < weight < math.inf:
        raise ConfigError([file.problem((*key, "weight"), f"must be a number above 0, but it is {weight!r}")])
    if "chain" in spec or "loss" in spec:
        objective = _spelled_out(spec, file, key)
    elif "name" in spec:
        name = spec.pop("name")
        objective = _factory(name, OBJECTIVES, Objective, spec, file, key, (*key, "name"))
    elif len(spec) == 1:
        name, args = next(iter(spec.items()))
        objective = _factory(name, OBJECTIVES, Objective, args, file, (*key, name), (*key, name))
    else:
        raise ConfigError([file.problem(key, "needs a name, or a chain with a loss")])
    for piece in _pieces(add, {**TRANSFORMS, **LOSSES}, (Transform, Loss), file, (*key, "add")):
        if isinstance(piece, Transform):
            objective = replace(objective, chain=_inserted(objective.chain, piece))
        else:
            objective = replace(objective, losses=(*objective.losses, piece))
    if not objective.losses:
        raise ConfigError([file.problem(key, f"{objective.name} has no loss, so nothing is trained; name one")])
    _check_order(objective, file, key)
    if data is not None and not isinstance(data, str):
        raise ConfigError([file.problem((*key, "data"), f"must be the name of a source, but it is {data!r}")])
    return replace(objective, weight=float(weight), data=data)


def with_defaults(spec: Mapping) -> dict[str, Any]:
    """Fill the defaults of every factory into an objective's valid YAML."""
    out = {name: value for name, value in spec.items() if name in ("weight", "add", "data")}
    rest = {name: value for name, value in spec.items() if name not in out}
    if "add" in out:
        out["add"] = _filled_list(out["add"], {**TRANSFORMS, **LOSSES})
    if "chain" in rest:
        return {"chain": _filled_list(rest["chain"], TRANSFORMS), "loss": _filled_list(rest["loss"], LOSSES), **out}
    if "name" not in rest:
        ((name, args),) = rest.items()
        rest = {"name": name, **(args or {})}
    name = rest.pop("name")
    return {"name": name, **_filled(name, OBJECTIVES, rest), **out}


def argument_paths(data: Mapping[str, Any]) -> list[str]:
    """`objective.k` of every argument of the methods that a recipe names, wherever they stand in it."""
    specs = {"objective": data.get("objective")}
    if isinstance(data.get("objectives"), list):
        specs |= {f"objectives.{i}": spec for i, spec in enumerate(data["objectives"])}
    out = []
    for place, spec in specs.items():
        for name in spec if isinstance(spec, Mapping) else ():
            called = spec[name] if name == "name" else name
            if isinstance(called, str) and called in OBJECTIVES:
                inside = place if name == "name" else f"{place}.{name}"
                out += [f"{inside}.{argument}" for argument in inspect.signature(OBJECTIVES[called]).parameters]
    return out


def _spelled_out(spec: dict, file: RecipeFile, key: KeyPath) -> Objective:
    problems = [
        file.problem((*key, name), f"unknown key; {nearest(name, ['chain', 'loss', 'add', 'weight'])}")
        for name in spec
        if name not in ("chain", "loss")
    ]
    problems += [file.problem(key, f"missing {name}") for name in ("chain", "loss") if spec.get(name) is None]
    if problems:
        raise ConfigError(problems)
    parts = (("chain", TRANSFORMS, Transform), ("loss", LOSSES, Loss))
    chain, losses = collect(parts, lambda part: _pieces(spec[part[0]], *part[1:], file, (*key, part[0])))
    return Objective("+".join(piece.name for piece in chain or losses), chain, losses)


def _pieces(specs: Any, known: Mapping, kind: type | tuple, file: RecipeFile, key: KeyPath) -> tuple:
    """Build transforms or losses from a list of `{name: {args}}`, or from one mapping with several names."""
    if isinstance(specs, Mapping):
        entries = [((*key, name), name, args) for name, args in specs.items()]
    elif isinstance(specs, list) and all(isinstance(spec, Mapping) and len(spec) == 1 for spec in specs):
        entries = [((*key, i, *spec), *next(iter(spec.items()))) for i, spec in enumerate(specs)]
    else:
        raise ConfigError([file.problem(key, "takes a list such as [{keep_top: {k: 4}}, {group_advantage: {}}]")])
    return collect(entries, lambda entry: _factory(entry[1], known, kind, entry[2], file, entry[0], entry[0]))


def _factory(
    name: Any, known: Mapping, kind: type | tuple, args: Any, file: RecipeFile, key: KeyPath, name_key: KeyPath
):
    """Call the factory `name` with `args`; `name` is one of `known` or a dotted path."""
    if isinstance(name, str) and name in known:
        factory = known[name]
    elif isinstance(name, str) and ":" in name:
        try:
            check_survives(name, lambda factory: unfit(factory, kind) or call(factory, args, file, key))
            factory = load_object(name)
        except ValueError as error:
            raise ConfigError([file.problem(name_key, str(error))]) from error
        if (what := unfit(factory, kind)) is not None:
            raise ConfigError([file.problem(name_key, f"{name} {what}")])
    else:
        raise ConfigError([file.problem(name_key, f"unknown name {name!r}; {nearest(name, known)}")])
    made = call(factory, args, file, key)
    if not isinstance(made, kind):
        raise ConfigError([file.problem(name_key, f"{name} returned a {type(made).__name__}, which cannot stand here")])
    if what := _misbuilt(made):
        raise ConfigError([file.problem(name_key, f"{name} returned a {type(made).__name__} whose {what}")])
    return made


def _misbuilt(made: Objective | Transform | Loss) -> str | None:
    """Say what of a user's own objective, transform or loss has the wrong type; None where all is right."""
    if not isinstance(made.name, str) or not re.fullmatch(r"\w[\w .+:-]*", made.name):  # metrics bear it
        return f"name is {made.name!r}; write letters, digits, spaces or any of _ . + : -"
    parts = (("chain", Transform), ("losses", Loss)) if isinstance(made, Objective) else ()
    for part, kind in parts:
        held = getattr(made, part)
        if not isinstance(held, tuple) or not all(isinstance(piece, kind) for piece in held):
            return f"{part} is {shortened(held)}; write a tuple of {kind.__name__}"
    return None


def _inserted(chain: tuple[Transform, ...], transform: Transform) -> tuple[Transform, ...]:
    """The chain with a transform put behind those of its stage; at the end where it has none."""
    behind = [
        i
        for i, other in enumerate(chain)
        if None not in (transform.stage, other.stage) and other.stage > transform.stage
    ]
    place = min(behind, default=len(chain))
    return (*chain[:place], transform, *chain[place:])


def _check_order(objective: Objective, file: RecipeFile, key: KeyPath) -> None:
    """Raise `ConfigError` unless transforms stand in the order of their stages, and credit is given before it is read.

    What the loop can compute by itself may be read anywhere.
    """
    given: set[str] = set()
    for piece in (*objective.chain, *objective.losses):
        for quantity, giver in GIVERS.items():
            if quantity in piece.needs and quantity not in given:
                what = f"{piece.name} reads {quantity}, which no transform before it gives; put {giver} before it"
                raise ConfigError([file.problem(key, what)])
        given.update(getattr(piece, "gives", ()))
    of_tokens = [transform for transform in objective.chain if transform.stage in (Stage.TOKENS, Stage.WEIGHT)]
    if of_tokens and objective.preference:
        what = f"{of_tokens[0].name} chooses or weighs tokens, and {objective.name} compares whole responses"
        raise ConfigError([file.problem(key, what)])
    staged = [transform for transform in objective.chain if transform.stage is not None]
    for before, transform in itertools.pairwise(staged):
        if before.stage > transform.stage or before.stage == transform.stage == Stage.ADVANTAGE:
            order = ", ".join(stage.name.lower() for stage in Stage)
            what = f"{transform.name} ({transform.stage.name.lower()}) cannot stand behind {before.name}"
            why = f"({before.stage.name.lower()}); the order is {order}, with one advantage"
            raise ConfigError([file.problem(key, f"{what} {why}")])


def _filled_list(specs: Mapping | list, known: Mapping) -> list[dict]:
    entries = specs.items() if isinstance(specs, Mapping) else [next(iter(spec.items())) for spec in specs]
    return [{name: _filled(name, known, args)} for name, args in entries]


def _filled(name: str, known: Mapping, args: Mapping | None) -> dict[str, Any]:
    parameters = inspect.signature(known[name] if name in known else load_object(name)).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {**defaults, **(args or {})}
