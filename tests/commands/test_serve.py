"""What the start of a server refuses, and what it becomes."""

import json
import os
import subprocess

import pytest
from support import tiny_model
from support.paths import PYTHONPATH, ROOT
from support.tiny_task import RECIPE

from align.commands import serve as command
from align.commands.serve import exposed, main
from align.system.hardware import Hardware

NAMED = ["http://10.0.0.5:8000", "http://node-2:8001"]


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    for name in ("ALIGN_SERVER_TOKEN", "HOST", "PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_this_machine_alone_needs_nothing(host):
    assert exposed(host, 8000, []) is None


@pytest.mark.parametrize("host, port", [("10.0.0.5", 8000), ("node-2", 8001)])
def test_an_address_that_the_recipe_names_is_allowed(host, port):
    assert exposed(host, port, NAMED) is None


@pytest.mark.parametrize(
    "host, port",
    [("0.0.0.0", 8000), ("::", 8000), ("10.0.0.5", 8001), ("10.0.0.6", 8000), ("127.evil.example", 8000), ("", 8000)],
)
def test_another_address_needs_a_token(host, port, monkeypatch):
    said = exposed(host, port, NAMED)
    assert said.startswith(f"HOST={host}: ") and "ALIGN_SERVER_TOKEN" in said and f"http://{host}:{port}" in said
    monkeypatch.setenv("ALIGN_SERVER_TOKEN", "secret")
    assert exposed(host, port, NAMED) is None


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model.save_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def recipe(model, tmp_path, monkeypatch):
    """A recipe, and what is started in place of this process."""
    path, started = tmp_path / "recipe.yaml", []
    path.write_text(RECIPE.format(folder=model, out=tmp_path / "run", adapter=", adapter: {rank: 4, alpha: 8}"))
    monkeypatch.setattr(os, "execve", lambda file, words, known: started.append((words, known)))
    return str(path), started


def test_a_server_has_the_recipes_model_length_and_way(recipe, model, monkeypatch):
    path, started = recipe
    monkeypatch.setenv("PORT", "8123")
    main([path, "sampling.max_sequences=7"])
    [(words, known)] = started
    said = dict(zip(words, words[1:], strict=False))
    assert said["--model"] == str(model) and said["--port"] == "8123" and said["--host"] == "127.0.0.1"
    assert said["--max-num-seqs"] == "7" and int(said["--max-model-len"]) > 12
    assert json.loads(said["--weight-transfer-config"]) == {"backend": "gloo"}
    assert known["VLLM_SERVER_DEV_MODE"] == "1" and known["PATH"]


def test_a_recipe_that_names_servers_may_be_started_before_they_are_there(recipe):
    path, started = recipe
    assert main([path, "sampling.engine=server", "sampling.servers=[http://127.0.0.1:9]", "sampling.sync=adapter"]) == 1
    assert "--enable-lora" in started[0][0]


@pytest.mark.parametrize("port", ["http", "-1", "0", "65536", "80.5", ""])
def test_a_port_that_is_none(recipe, port, monkeypatch, capsys):
    path, started = recipe
    monkeypatch.setenv("PORT", port)
    assert main([path]) == 1 and not started
    assert f"PORT={port} is no port; write a number" in capsys.readouterr().err


def test_an_open_address_is_refused_before_anything_is_started(recipe, monkeypatch, capsys):
    path, started = recipe
    monkeypatch.setenv("HOST", "0.0.0.0")
    assert main([path]) == 1 and not started
    assert "ALIGN_SERVER_TOKEN" in capsys.readouterr().err


def test_a_recipe_that_is_wrong_is_told_in_a_line(recipe, tmp_path, capsys):
    path, started = recipe
    assert main([path, "sampling.group_sise=3"]) == 1
    assert "sampling.group_sise" in capsys.readouterr().err
    assert main([str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml" in capsys.readouterr().err
    assert main([path, "model.policy=no/where"]) == 1
    assert capsys.readouterr().err and not started


def test_what_the_engine_would_die_of_is_told_in_a_line(recipe, monkeypatch, capsys):
    path, started = recipe
    monkeypatch.setattr(command, "here", lambda: Hardware("cuda", 80))
    assert main([path, "sampling.sync=adapter", "model.dtype=float32"]) == 1 and not started
    assert "no float32" in capsys.readouterr().err


def test_the_launch_file_says_how_it_is_called():
    known = {**os.environ, "PYTHONPATH": PYTHONPATH}
    done = subprocess.run(
        ["bash", str(ROOT / "launch/serve.sh")], env=known, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "PORT=8000 bash launch/serve.sh RECIPE" in done.stdout
