"""Push the result of a finished run to the Hugging Face hub, with a model card made from the run."""

from __future__ import annotations

import json
import tempfile
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import LocalTokenNotFoundError

from align.config.hub_name import check_repo_name
from align.result.card import PATH_KEYS, RunSummary, card, shorten

# Files that loading a model needs: no pickle, no optimiser state, no subfolder. JSON is named one kind at a time, as a
# run's own (state, metrics) may hold paths of this machine.
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


def stage(folder: Path, target: Path, base_model: str) -> None:
    """Fill `target` with symlinks to the files to upload; a config that names a local path becomes a shortened copy."""
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
    """Write README.md into `folder`, upload the folder to `repo` (user/name) and return the URL of its page.

    The token is HF_TOKEN or the login of `hf auth login`. Raises `ValueError` for a wrong name or `private` for a
    public repository, `FileNotFoundError` without weights, `LocalTokenNotFoundError` without a token, and the hub's
    own errors.
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
