"""What a server's workers do for the trainer, without an engine."""

import base64
import multiprocessing
import os
import stat
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from align.rollout import server_facts, server_worker, tables
from align.rollout.server_worker import Extension

FILES = {"adapter_config.json": base64.b64encode(b"{}").decode(), "adapter_model.safetensors": "AAEC"}


class Worker(Extension):
    def __init__(self, instance="ab12c", device="cpu"):
        self.vllm_config, self.device = SimpleNamespace(instance_id=instance), SimpleNamespace(type=device)

    def get_model(self):
        return "the model"


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(server_worker, "leave_head", lambda model: None)


def test_an_adapter_is_written_and_removed(tmp_path):
    worker = Worker()
    for _ in range(2):  # several workers write the same
        folder = worker.align_put("policy-x-v1", FILES)
    assert sorted(os.listdir(folder)) == sorted(FILES)
    assert Path(folder, "adapter_model.safetensors").read_bytes() == b"\x00\x01\x02"
    other = worker.align_put("policy-x-v2", FILES)
    worker.align_drop("policy-x-v1")
    worker.align_drop("policy-x-v1")
    assert not os.path.exists(folder) and os.path.exists(other)


def test_two_servers_of_a_machine_do_not_share_files():
    assert Worker("one").align_put("a", FILES) != Worker("two").align_put("a", FILES)


def test_the_folder_is_closed_to_others(tmp_path, monkeypatch):
    Worker().align_put("a", FILES)
    [base] = tmp_path.iterdir()
    assert stat.S_IMODE(base.stat().st_mode) == 0o700
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    base.rename(tmp_path / f"align-adapters-{other}")
    with pytest.raises(PermissionError, match="belongs to another user; set TMPDIR"):
        Worker().align_put("a", FILES)


def test_the_folder_goes_when_a_worker_ends(tmp_path):
    worker = multiprocessing.get_context("fork").Process(target=lambda: Worker().align_put("a", FILES))
    worker.start()
    worker.join(30)
    [base] = tmp_path.iterdir()  # the folder of all servers of this user
    assert worker.exitcode == 0 and not [*base.iterdir()]


@pytest.mark.parametrize("name", ["../../x", "/no/x", "a/b", "..", "", "."])
@pytest.mark.parametrize("kind", ["adapter", "file"])
def test_nothing_is_written_or_removed_outside_of_the_folder(name, kind, tmp_path):
    given = (name, FILES) if kind == "adapter" else ("a", {name: "AAEC"})
    with pytest.raises(ValueError, match="is no name"):
        Worker().align_put(*given)
    with pytest.raises(ValueError, match="is no name"):
        Worker().align_drop(name)
    assert {path.name for path in tmp_path.iterdir()} <= {f"align-adapters-{os.getuid()}"}


@pytest.mark.parametrize("device, left", [("cpu", ["the model"]), ("cuda", [])])
def test_the_kernels_for_cpus_leave_the_head(device, left, monkeypatch):
    found = []
    monkeypatch.setattr(server_worker, "leave_head", found.append)
    Worker(device=device).align_put("a", FILES)
    assert found == left


def test_rows_and_facts_travel_as_plain_data(monkeypatch):
    rows = torch.arange(16, dtype=torch.float32).view(2, 8)
    monkeypatch.setattr(tables, "read", lambda model: {"embedding": rows, "head": -rows})
    found = Worker().align_vocabulary()
    assert np.array_equal(np.frombuffer(base64.b64decode(found["head"]), np.float32).reshape(-1, 8), -rows)
    monkeypatch.setattr(server_facts, "of", lambda config, device: {"device": device, "from": config.instance_id})
    assert Worker().align_facts() == {"device": "cpu", "from": "ab12c"}
