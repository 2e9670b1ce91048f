"""The model card of a result, made from its run."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import yaml_dump

from align.config.hub_name import is_hub_id
from align.result.report import cells
from align.system.text import for_code_span, for_markdown, for_terminal

PATH_KEYS = ("base_model_name_or_path", "_name_or_path", "name_or_path")  # where exports name the base's folder

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
    hub_id = run.base_model if is_hub_id(run.base_model) else None
    last = Path(run.base_model.removeprefix("pypi:")).absolute().name
    origin = "the Python package" if run.base_model.startswith("pypi:") else "the local model"
    base = f"[{hub_id}](https://huggingface.co/{hub_id})" if hub_id else f"{origin} {for_code_span(last)}"
    table = [("measure", "before", "after"), ("---",) * 3, *map(_cells, run.evaluation)]
    rows = "\n".join(f"| {' | '.join(row)} |" for row in table)
    library, kind = ("peft", "A LoRA adapter") if run.adapter else ("transformers", "Full weights")
    title = repo.split("/")[1] if repo else Path(run.config["run"]["out"]).name
    repo = repo or "user/name"
    front = ModelCardData(
        base_model=hub_id,
        library_name=library,
        pipeline_tag="text-generation",
        tags=["align", "rl", name],
        model_name=title,
        eval_results=_results(run, config["data"]),
    )
    sections = [
        f"# {for_markdown(title)}\n\n{kind} trained with `align`: objective {for_markdown(name)}, {run.steps} steps, "
        f"from {base}.",
        f"## How to load it\n\n{fenced(_loading(run, hub_id, last, repo), 'python')}",
        f"## Evaluation\n\nMean over {run.eval_prompts} prompts, with its 95% interval.\n\n{rows}",
        *_proofs(run, repo),
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


def _loading(run: RunSummary, hub_id: str | None, last: str, repo: str) -> str:
    """Python that loads the result."""
    if run.base_model.startswith("pypi:") and run.adapter:
        dtype = run.config["model"].get("dtype", "float32")
        start = (
            "from align.model.load import load_model\nfrom align.model.locate import locate\n\n"
            f"model = load_model(locate({json.dumps(run.base_model)}), {json.dumps(dtype)})"
        )
    else:
        name = repo if not run.adapter else hub_id or f"path/to/{last}"
        start = (
            "from transformers import AutoModelForCausalLM\n\n"
            f"model = AutoModelForCausalLM.from_pretrained({json.dumps(name)})"
        )
    return (
        f"from peft import PeftModel\n{start}\nmodel = PeftModel.from_pretrained(model, {json.dumps(repo)})"
        if run.adapter
        else start
    )


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
