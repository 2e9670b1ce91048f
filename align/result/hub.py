"""Push the result of a finished run to the Hugging Face hub, with a model card made from the run."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import LocalTokenNotFoundError

from align.config.hub_name import check_repo_name, public_name
from align.result import record
from align.result.card import PATH_KEYS, shorten


def stage(folder: Path, target: Path, base_model: str) -> None:
    """Fill `target` with symlinks to the files to upload: those of the record, and the record itself.

    A configuration that names a local path becomes a copy, which names the hub's model where it is known. Raises
    `RecordError` where the folder has no record.
    """
    names = record.pushed(folder, record.read(folder))
    for file in (folder / name for name in (*names, record.NAME)):
        if file.parent != folder or not file.is_file():  # verifying the copy finds it missing
            continue
        settings = json.loads(file.read_bytes()) if file.name.endswith("config.json") else {}
        public = settings | {key: shorten(settings[key], base_model) for key in PATH_KEYS if key in settings}
        if "base_model_name_or_path" in settings:
            public["base_model_name_or_path"] = published_name(base_model)
        if public == settings:
            (target / file.name).symlink_to(file.resolve())
        else:
            (target / file.name).write_text(json.dumps(public, indent=2) + "\n", encoding="utf-8")


def published_name(base_model: str) -> str:
    """The name of an adapter's base in what is pushed: on the hub or of its package, never a local path."""
    return public_name(base_model) or shorten(base_model, base_model)


def push(staged: Path, repo: str, readme: str, *, private: bool) -> str:
    """Upload what `stage` put in a folder to `repo` (user/name), with its card, and return the URL of its page.

    The token is HF_TOKEN or the login of `hf auth login`. Raises `ValueError` for a wrong name or `private` for a
    public repository, `FileNotFoundError` without weights, `LocalTokenNotFoundError` without a token, and the hub's
    own errors.
    """
    check_repo_name(repo)
    if not any(staged.glob("*model*.safetensors")):
        raise FileNotFoundError(f"{staged} holds no model weights (*.safetensors) to push")
    if (token := get_token()) is None:
        raise LocalTokenNotFoundError(f"pushing to {repo} needs a hub token: set HF_TOKEN or run `hf auth login`")
    (staged / "README.md").write_text(readme, encoding="utf-8")
    api = HfApi(token=token)
    url = api.create_repo(repo, private=private, exist_ok=True)
    if private and not api.model_info(repo).private:  # create_repo leaves an existing repository as it was
        raise ValueError(f"hub repository {repo} is public already; nothing was uploaded")
    api.upload_folder(repo_id=repo, folder_path=staged, commit_message="Upload the result of an align run")
    return str(url)
