"""Served generation with real vLLM servers: two of them, two trainer ranks, both ways to sync, and what goes wrong."""

import json
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from support import tiny_model, tiny_task
from support.paths import PROGRAMS, PYTHONPATH, ROOT
from support.zygote import fork, forked, free_port

pytestmark = pytest.mark.engine
ADAPTER = ", adapter: {rank: 4, alpha: 8}"


class Servers:
    """Two servers of launch/serve.sh, each in a process group of its own."""

    def __init__(self, recipe, sync):
        self.recipe, self.sync = recipe, sync
        self.ports = [free_port(), free_port()]
        self.urls = [f"http://127.0.0.1:{port}" for port in self.ports]
        self.processes = [self.start(port) for port in self.ports]

    def start(self, port):
        words = ["bash", str(ROOT / "launch/serve.sh"), str(self.recipe), *self.keys]
        log = (self.recipe.parent / f"{port}.log").open("a")
        known = {**os.environ, "PYTHONPATH": PYTHONPATH, "PORT": str(port), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(words, cwd=ROOT, env=known, stdout=log, stderr=log, start_new_session=True)

    @property
    def keys(self):
        return [f"sampling.sync={self.sync}", f"sampling.servers={json.dumps(self.urls)}", "sampling.engine=server"]

    def wait(self):
        until = time.monotonic() + 300
        for i, url in enumerate(self.urls):
            while True:
                log = (self.recipe.parent / f"{self.ports[i]}.log").read_text()
                assert self.processes[i].poll() is None and time.monotonic() < until, log[-4000:]
                try:
                    if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                        break
                except httpx.HTTPError:
                    time.sleep(0.5)

    def restart(self, i):
        self.end(i)
        self.processes[i] = self.start(self.ports[i])

    def end(self, i):
        os.killpg(self.processes[i].pid, signal.SIGKILL)
        self.processes[i].wait()


@pytest.fixture(scope="module")
def recipe(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "recipe.yaml"
    path.write_text(tiny_task.RECIPE.format(folder=folder, adapter=ADAPTER, out=path.parent / "run"))
    return path


@pytest.fixture(scope="module")
def fleets(recipe):
    """{way to sync: two servers}, which start side by side."""
    found = {sync: Servers(recipe, sync) for sync in ("adapter", "merged")}
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(Servers.wait, found.values()))
        yield found
    finally:
        for servers in found.values():
            for i in range(2):
                servers.end(i)


def ran(recipe, tmp_path, keys, fault="none"):
    out = tmp_path / f"{fault.partition(':')[0]}.json"
    more = [
        "sampling.liveness_s=10",
        "sampling.deadline_s=150",
        "run.steps=3",
        f"run.out={out.with_suffix('')}",
        *keys,
    ]
    said = forked("cpu_zero2", PROGRAMS / "served.py", recipe, out, fault, *more, timeout=300)
    return {**json.loads(out.read_text()), "told": said}


@pytest.fixture(scope="module")
def own(recipe, tmp_path_factory):
    """What the in-process engine samples, asked with the servers' seeds."""
    return ran(recipe, tmp_path_factory.mktemp("own"), ["sampling.sync=merged"], "own")


def assert_same(found, own):
    """To the token; losses differ as engines round."""
    assert [step["ids"] for step in found["steps"]] == [step["ids"] for step in own["steps"]]
    assert [step["loss"] for step in found["steps"]] == pytest.approx([step["loss"] for step in own["steps"]], abs=1e-4)
    assert all(step["sync/gap_max"] < 1e-4 for step in found["steps"]), found


@pytest.mark.parametrize("sync", ["adapter", "merged"])
def test_servers_sample_what_the_engine_in_process_does(sync, fleets, own, recipe, tmp_path):
    found = ran(recipe, tmp_path, fleets[sync].keys)
    assert_same(found, own)
    assert all(len(ready) == 2 for ready in found["ready"])


@pytest.mark.parametrize(
    "sync, fault", [("adapter", "STOP"), ("adapter", "ENGINE"), ("merged", "STOP"), ("merged", "KILL")]
)
def test_a_server_lost_in_the_middle_changes_nothing(sync, fault, fleets, own, recipe, tmp_path):
    servers = fleets[sync]
    found = ran(recipe, tmp_path, servers.keys, f"{fault}:{servers.processes[1].pid}")
    assert_same(found, own)
    assert all(ready == servers.urls[:1] for ready in found["ready"]), found["ready"]
    if fault == "STOP":
        os.killpg(servers.processes[1].pid, signal.SIGCONT)
    else:
        servers.restart(1)
        servers.wait()
        again = ran(recipe, tmp_path, servers.keys)
        assert_same(again, own)
        assert all(len(ready) == 2 for ready in again["ready"])


def test_a_server_that_another_run_gives_its_weights_is_not_believed(fleets, own, recipe, tmp_path):
    """It gets the policy again at the next sync."""
    servers = fleets["merged"]
    found = ran(recipe, tmp_path, servers.keys, f"WEIGHTS:{servers.urls[1]}")
    assert_same(found, own)
    assert "with the weights another-v3" in found["told"] and f"{servers.urls[1]}: it is back" in found["told"]
    assert all(len(ready) == 2 for ready in found["ready"])


@pytest.mark.parametrize(
    "fault, hidden_size, why",
    [
        ("release", 128, "it runs vLLM 0.32.0, and here is 0.31.4; install the same release on both sides"),
        ("none", 64, "it has another model: hidden_size"),
    ],
)
def test_another_server_than_the_recipes_is_named_at_the_start(fault, hidden_size, why, fleets, recipe, tmp_path):
    model = tiny_model.save_model(tmp_path / "model", hidden_size)
    keys = [*fleets["merged"].keys, f"model.policy={model}"]
    code, said = fork("cpu_zero2", PROGRAMS / "served.py", recipe, tmp_path / "out.json", fault, *keys, timeout=300)
    assert code == 1 and all(f"{url}: {why}" in said for url in fleets["merged"].urls), said


def test_a_run_sampled_ahead_and_killed_ends_as_one_left_alone(fleets, recipe, tmp_path):
    keys = [*fleets["adapter"].keys, "sampling.staleness=1", "run.steps=4", "run.save_every=1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert started(recipe, [*keys, f"run.out={whole}"]).wait(300) == 0
    run = started(recipe, [*keys, f"run.out={killed}"])
    until = time.monotonic() + 300
    while len(steps_in(killed)) < 2:
        assert run.poll() is None and time.monotonic() < until, (recipe.parent / "ahead.log").read_text()[-4000:]
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert started(recipe, [*keys, f"run.out={killed}", "--resume"]).wait(300) == 0
    found, expected = steps_in(killed), steps_in(whole)
    assert [step["response/lag"] for step in expected] == [0, 1, 1, 1]
    assert [step.get("overlap/hidden") is not None for step in expected] == [True, True, True, False]
    told = ("seconds/", "memory/", "overlap/")
    assert [exact(step, told) for step in found] == [exact(step, told) for step in expected]
    assert (killed / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()


def started(recipe, words):
    log = (recipe.parent / "ahead.log").open("a")
    known = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    command = ["python", str(ROOT / "recipes/train.py"), str(recipe), *words]
    return subprocess.Popen(command, cwd=ROOT, env=known, stdout=log, stderr=log, start_new_session=True)


def steps_in(out):
    """The metrics of the steps that a run has done."""
    path = out / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [found for line in lines if "response/lag" in (found := json.loads(line))]


def exact(metrics, but):
    return {name: value for name, value in metrics.items() if not name.startswith(but)}
