"""A real push to a loopback hub and a reload from it, and what stops a push."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError
from support.hub_server import client_environment, hub_stub
from support.paths import PYTHONPATH
from support.results import recorded, retell
from support.run_summary import SUMMARY

from align.config.hub_name import check_repo_name
from align.result.card import RunSummary
from align.result.hub import push, stage

ROUND_TRIP = """
import json, sys
from pathlib import Path
import torch
from huggingface_hub import HfApi, snapshot_download
from peft import PeftModel
from support import tiny_model
from support.results import recorded
from transformers import AutoModelForCausalLM
from align.result.card import RunSummary, card
from align.result.hub import push, stage

base_folder, folder, staged = map(Path, sys.argv[1:4])
recorded(str(tiny_model.save_model(base_folder)), folder, "adapter")
base = AutoModelForCausalLM.from_pretrained(base_folder)
tokens = torch.arange(12)[None]
with torch.no_grad():
    plain = base(tokens).logits
    trained = PeftModel.from_pretrained(base, folder).eval()(tokens).logits
for stray in ("optimizer.pt", "adapter_model.bin", "rng.pkl", "optimizer.safetensors", "run.json", "log.txt"):
    (folder / stray).write_bytes(b"stray")
for stray in ("secrets_config.json", "model.safetensors", "chat_template.jinja", "vocab.json", "notes.model"):
    (folder / stray).write_bytes(b"{}")
(folder / "checkpoint-20").mkdir()
(folder / "checkpoint-20" / "adapter_model.safetensors").write_bytes(b"stray")

summary = RunSummary(**json.load(sys.stdin))
staged.mkdir()
stage(folder, staged, summary.base_model)
url = push(staged, "user/name", card(summary, "user/name"), private=True)

fresh = AutoModelForCausalLM.from_pretrained(base_folder)
with torch.no_grad():
    reloaded = PeftModel.from_pretrained(fresh, "user/name").eval()(tokens).logits
(readme,) = HfApi().get_paths_info("user/name", ["README.md", "absent"])
found = dict(
    url=url,
    adapter_matters=not torch.equal(trained, plain),
    same_logits=torch.equal(trained, reloaded),
    listed=HfApi().list_repo_files("user/name"),
    readme_size=readme.size,
    snapshot=sorted(file.name for file in Path(snapshot_download("user/name")).iterdir()),
)
print(json.dumps(found))
"""

PUSH = """
import json, sys
from pathlib import Path
from align.result.card import RunSummary, card
from align.result.hub import push

text = card(RunSummary(**json.load(sys.stdin)), "user/name")
print(push(Path(sys.argv[1]), "user/name", text, private=sys.argv[2] == "private"))
"""


def run_client(hub, home: Path, script: str, summary: RunSummary, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        input=json.dumps(dataclasses.asdict(summary)),
        env=client_environment(hub, home) | {"PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_adapter_round_trip(tmp_path):
    base_folder, folder = tmp_path / "some models" / "tiny-llama", tmp_path / "result"
    summary = dataclasses.replace(SUMMARY, base_model=str(base_folder))
    with hub_stub() as hub:
        staged = tmp_path / "staged"
        done = run_client(hub, tmp_path / "home", ROUND_TRIP, summary, str(base_folder), str(folder), str(staged))
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        files = hub.files("user/name")
        private = hub.private["user/name"]

    assert found["url"] == f"{hub.url}/user/name"
    assert private
    assert found["adapter_matters"] and found["same_logits"]
    # what was recorded, with record and card; none of what was put beside it, whatever its name
    assert sorted(files) == ["README.md", "adapter_config.json", "adapter_model.safetensors", "align.json"]
    assert found["listed"] == found["snapshot"] == sorted(files)
    assert files["README.md"] == (staged / "README.md").read_bytes()
    assert found["readme_size"] == len(files["README.md"])
    assert files["adapter_model.safetensors"] == (folder / "adapter_model.safetensors").read_bytes()
    assert sum(method == "PUT" for method, _ in hub.requests) == 1  # only the weights go through LFS
    # The base's folder stays in the local adapter_config.json, where it is needed, and only there.
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base_folder)
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "tiny-llama"
    assert str(base_folder) in (folder / "align.json").read_text()  # why `push_run` refuses such a base
    for name in ("README.md", "adapter_config.json"):
        assert str(tmp_path).encode() not in files[name]
        assert b"some models" not in files[name]


@pytest.mark.parametrize("asked", ["private", "public"])
def test_push_to_an_existing_public_repository(tmp_path, asked):
    folder = tmp_path / "result"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text('{"hidden_size": 32}')
    with hub_stub() as hub:
        hub.create("user/name", private=False)
        done = run_client(hub, tmp_path / "home", PUSH, SUMMARY, str(folder), asked)
        files = hub.files("user/name")
    if asked == "private":
        assert "ValueError: hub repository user/name is public already" in done.stderr
        assert files == {}
    else:
        assert done.returncode == 0, done.stderr
        assert files["adapter_model.safetensors"] == b"weights"
        assert files["config.json"] == b'{"hidden_size": 32}'  # nothing to shorten: byte for byte


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_of_an_older_record_its_files_and_the_weights_are_pushed(folder, tmp_path, kind):
    """Such records list no weights, and other files than theirs stay here."""
    result = recorded(folder, tmp_path / "result", kind)
    (result / "tokenizer.json").write_text("{}")
    name = {"adapter": "adapter_config.json", "model": "config.json"}[kind]
    files = {name: "0" * 64, "tokenizer.json": "0" * 64, "../secret_config.json": "0" * 64, "gone.json": "0" * 64}
    retell(result, lambda said: (said.update(files=files), said.pop("complete")))
    for stray in ("secrets_config.json", "vocab.json", "optimizer.safetensors"):
        (result / stray).write_text("{}")
    (tmp_path / "secret_config.json").write_text("{}")
    staged = tmp_path / "staged"
    staged.mkdir()
    stage(result, staged, "org/base")
    weights = "adapter_model.safetensors" if kind == "adapter" else "model.safetensors"
    assert {file.name for file in staged.iterdir()} == {name, "tokenizer.json", weights, "align.json"}


WRONG_NAMES = ["name", "", "a/b/c", "user/", "/name", "user/na me", "user/a--b", "user/x.git", "/srv/x"]


@pytest.mark.parametrize("repo", WRONG_NAMES)
def test_wrong_repository_name(repo, tmp_path, monkeypatch):
    monkeypatch.setattr(HfApi, "create_repo", lambda *args, **kwargs: pytest.fail("used the network"))
    with pytest.raises(ValueError, match="(?i)repo"):
        check_repo_name(repo)
    with pytest.raises(ValueError, match="(?i)repo"):
        push(tmp_path, repo, "", private=True)


def test_missing_token(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token here"))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(LocalTokenNotFoundError, match="user/name needs a hub token: set HF_TOKEN"):
        push(tmp_path, "user/name", "", private=True)
    assert not (tmp_path / "README.md").exists()


def test_folder_without_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model weights"):
        push(tmp_path, "user/name", "", private=True)
