"""Find what a resumed run goes on from, and say what of it is exact."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from align.checkpoint.agreement import Part, held, intact_on_all
from align.checkpoint.checkpoint import CheckpointError, damage, is_one, newest_first, read
from align.checkpoint.identity import Change, changes, check_same, followed, recorded
from align.checkpoint.provenance import resolved
from align.config.experiment import Experiment
from align.config.recipe import Run
from align.config.recipe_file import ConfigError
from align.system.node import Node

EXACT = """\
Exact, bit for bit: metrics and weights, on CPU with one process, or with ZeRO-2 and as many processes as before.
Not exact: other versions; rewards that are not functions of their input; GPU kernels that are not deterministic;
seconds/ and memory/; trackers, which may get steps twice that were not yet in a checkpoint."""


@dataclass(frozen=True)
class Origin:
    """The start of a run."""

    checkpoint: Path | None = None  # None: the model as the recipe names it
    step: int = 0
    lineage: tuple[tuple[int, str], ...] = ()
    in_place: bool = False  # whether it goes on in the folder of the run that was stopped
    passed_over: tuple[str, ...] = ()  # newer checkpoints, with what is wrong with each
    recipe: Mapping[str, Any] = field(default_factory=dict)  # `identity.followed` of the run that was stopped, if known

    @property
    def folder(self) -> Path | None:
        """The folder of the run that wrote the checkpoint."""
        return self.checkpoint.absolute().parent.parent if self.checkpoint else None


def find(run: Run) -> Origin:
    """Find the checkpoint that `run.resume` names, or the newest intact one of the run. Raises `CheckpointError`."""
    if run.resume is None:
        return Origin()
    path = Path(run.resume)
    if is_one(path):
        return _placed(_intact(path), run)
    if folders := newest_first(path / "checkpoints"):
        return _placed(_newest_intact(folders), run)
    if path.resolve() == Path(run.out).resolve():
        return _placed(_first(Path(run.out)), run)
    raise CheckpointError(f"run.resume: {path}: holds no checkpoint; name a run's folder or one of its checkpoints")


def find_on_all(run: Run, nodes: Mapping[str, Sequence[Part]]) -> Origin:
    """Find the newest one that is intact on all nodes, from each node's parts of those that `run.resume` names, as
    `parts` gives them. Raises `CheckpointError`."""
    path = Path(run.resume)
    whole, problems = intact_on_all(nodes)
    if whole:
        origin = _at(path if is_one(path) else path / "checkpoints" / f"step_{whole[0]}")
        return _placed(replace(origin, passed_over=tuple(problems[s] for s in problems if s > whole[0])), run)
    if len(problems) <= 1 and path.resolve() == Path(run.out).resolve():  # killed before all had the first
        return _placed(replace(_first(Path(run.out)), passed_over=tuple(problems.values())), run)
    lost = problems.values() or [f"{path}: holds no checkpoint on any node"]
    raise CheckpointError("\n".join(["run.resume: no checkpoint is intact on all nodes; start anew without it", *lost]))


def parts(run: Run, node: Node) -> dict[str, list[Part]]:
    """{node: its parts of the checkpoints that `run.resume` names}. Collective."""
    path = Path(run.resume)
    return held([path] if is_one(path) else newest_first(path / "checkpoints"), node)


def _placed(origin: Origin, run: Run) -> Origin:
    """Say whether a run goes on in its folder. Raises `CheckpointError` where it cannot go on from there."""
    path, out = Path(run.resume), Path(run.out)
    if origin.step > run.steps:
        what = f"{origin.checkpoint} has done {origin.step} steps and run.steps is {run.steps}"
        raise CheckpointError(f"run.resume: {what}; raise it, or name an earlier checkpoint")
    there, here = path.resolve(), out.resolve()
    own = here in (there, there.parent.parent if is_one(path) else None)
    if not own and there.is_relative_to(here):
        raise CheckpointError(f"run.resume: {path} is inside run.out, which is another run's; name another run.out")
    return replace(origin, in_place=own)


def changed(experiment: Experiment, origin: Origin) -> list[Change]:
    """What the recipe has otherwise than the run that it goes on from. Raises `CheckpointError` where that makes it
    another run."""
    found = changes(origin.recipe, followed(resolved(experiment)))
    check_same(Path(experiment.recipe.run.out) if origin.in_place else origin.folder, found)
    return found


def lineage(
    origin: Origin, recipe: Mapping[str, Any], versions: Mapping[str, str], processes: int
) -> list[tuple[int, str]]:
    """[(step, fingerprint)] of each recipe on the way to this run's weights, and the step from which it was followed.

    A fingerprint is the hash of everything that decides a step: the resolved recipe without evaluation, logs and hub,
    the versions and the number of processes. Which servers sample decides nothing.
    """
    decides = {name: value for name, value in recipe.items() if name not in ("run", "eval", "hub")}
    if sampling := decides.get("sampling"):
        decides["sampling"] = {name: value for name, value in sampling.items() if name not in ("servers", "liveness_s")}
    decides |= {"seed": recipe["run"]["seed"], "versions": dict(versions), "processes": processes}
    fingerprint = sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    before = list(origin.lineage)
    return before if before and before[-1][1] == fingerprint else [*before, (origin.step, fingerprint)]


def versions_then(origin: Origin, out: Path) -> dict[str, str]:
    """The versions of the run that was stopped; {} where it did not get to write them, or they cannot be read."""
    try:
        found = json.loads(((origin.folder or out) / "versions.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def explain(
    origin: Origin,
    out: Path,
    rollouts: int,
    then: Mapping[str, str],
    now: Mapping[str, str],
    changed: Sequence[Change] = (),
) -> str:
    """Say where a resumed run starts, how many rollouts are on disk, what has changed, and what of it is exact."""
    start = origin.checkpoint or f"{out}, which has no checkpoint yet, from the start"
    lines = [f"resume: {start}: {origin.step} steps done, {rollouts} rollouts of later steps on disk"]
    lines += [f"passed over: {problem}" for problem in origin.passed_over]
    lines += [f"another recipe: {change}" for change in changed]
    other = [name for name in sorted({*then, *now}) if then and then.get(name) != now.get(name)]
    lines += [f"another version: {name} was {then.get(name)}, is {now.get(name)}" for name in other]
    if origin.checkpoint and not then:
        lines.append("versions.json of that run is missing or cannot be read: its versions are not known")
    return "\n".join([*lines, EXACT])


def in_place(experiment: Experiment) -> Experiment:
    """Have `--resume` go on in the folder that the run writes to. Raises `ConfigError` where run.resume is set too."""
    run = experiment.recipe.run
    if run.resume is not None:
        raise ConfigError(["run.resume: leave it out with --resume, which goes on with the run in run.out"])
    return _resuming(experiment, run.out)


def starting_at(experiment: Experiment, origin: Origin) -> Experiment:
    """Name the checkpoint itself as `run.resume`, for config.yaml: which one is newest changes."""
    return _resuming(experiment, str(origin.checkpoint) if origin.checkpoint else None)


def _intact(folder: Path) -> Origin:
    if problem := damage(folder):
        raise CheckpointError(f"run.resume: {problem}; name another, or the run's folder for its newest intact one")
    return _at(folder)


def _at(folder: Path) -> Origin:
    state = read(folder)
    recipe = state.recipe or recorded(folder.absolute().parent.parent)
    return Origin(folder, state.step, tuple(state.lineage), recipe=followed(recipe) if recipe else {})


def _newest_intact(folders: list[Path]) -> Origin:
    passed_over = []
    for folder in folders:
        problem = damage(folder)
        if problem is None:
            return replace(_at(folder), passed_over=tuple(passed_over))
        passed_over.append(problem)
    raise CheckpointError("\n".join(["run.resume: no checkpoint is intact; start again without it", *passed_over]))


def _first(out: Path) -> Origin:
    """The origin of a run that was killed before its first checkpoint: the one that it had started from."""
    recipe = recorded(out)
    if not recipe:
        return Origin()
    first = recipe["run"].get("resume")
    if not isinstance(first, str | None):
        raise CheckpointError(f"run.resume: {out / 'config.yaml'}: run.resume is {first!r} and no folder; mend it")
    return replace(Origin() if first is None else _intact(Path(first)), recipe=followed(recipe))


def _resuming(experiment: Experiment, resume: str | None) -> Experiment:
    recipe = experiment.recipe
    run = recipe.run.model_copy(update={"resume": resume})
    return replace(experiment, recipe=recipe.model_copy(update={"run": run}))
