"""What is asked of a server: its command line, its requests, on a CPU and with a GPU that is only described."""

import json

import pytest
from support.recipes import BASE
from transformers import LlamaConfig

from align.check.defaults import fill_defaults
from align.config.experiment import load_experiment
from align.config.launch import Launch
from align.config.sampling_keys import Sampling
from align.rollout.server_arguments import command, is_loopback, request, server_arguments, told_settings
from align.system.hardware import GIB, Hardware

CPU, GPU = Hardware("cpu", 24), Hardware("cuda", 80)
ADAPTER = "model.adapter={rank: 12}"


def words(tmp_path, hardware, *keys, context=96):
    path = tmp_path / "recipe.yaml"
    path.write_text(BASE)
    experiment, _ = fill_defaults(load_experiment(path, keys), LlamaConfig(), Launch(processes=1, hardware=hardware))
    return server_arguments("model", experiment.recipe, context, hardware, "127.0.0.1", 8000)


def said(found):
    """{option: its value}; of one that has none, the next option."""
    return dict(zip(found, found[1:], strict=False))


def test_a_prompt_is_computed_whole_on_a_cpu_alone(tmp_path):
    on_cpu, on_gpu = words(tmp_path, CPU), words(tmp_path, GPU)
    assert "--no-enable-chunked-prefill" in on_cpu and said(on_cpu)["--max-num-batched-tokens"] == "4096"
    assert said(words(tmp_path, CPU, context=9000))["--max-num-batched-tokens"] == "9000"
    assert not {"--no-enable-chunked-prefill", "--max-num-batched-tokens", "--gpu-memory-utilization"} & set(on_gpu)


def test_a_servers_cache_is_its_own(tmp_path):
    assert said(words(tmp_path, CPU, "sampling.cache_gib=2"))["--kv-cache-memory-bytes"] == str(2 * GIB)
    assert said(words(tmp_path, GPU, "sampling.cache_gib=2"))["--kv-cache-memory-bytes"] == str(2 * GIB)
    assert "--kv-cache-memory-bytes" not in words(tmp_path, GPU)  # vLLM sizes it


@pytest.mark.parametrize("hardware, backend", [(CPU, "gloo"), (GPU, "nccl")])
def test_weights_come_whole_or_as_adapters(tmp_path, hardware, backend):
    merged = words(tmp_path, hardware, ADAPTER, "sampling.sync=merged")
    assert (
        json.loads(said(merged)["--weight-transfer-config"]) == {"backend": backend} and "--enable-lora" not in merged
    )
    adapter = words(tmp_path, hardware, ADAPTER, "sampling.sync=adapter")
    assert "--enable-lora" in adapter and said(adapter)["--max-lora-rank"] == "16"
    assert said(adapter)["--max-cpu-loras"] == "2" and "--weight-transfer-config" not in adapter


def test_the_server_asks_for_the_token_and_adds_nothing_to_a_request(tmp_path):
    found = said(words(tmp_path, CPU))
    assert found["--middleware"] == "align.rollout.server_token.Guard"
    assert found["--generation-config"] == "vllm" and found["--logprobs-mode"] == "processed_logprobs"
    assert found["--worker-extension-cls"] == "align.rollout.server_worker.Extension"
    assert found["--served-model-name"] == "policy" and found["--host"] == "127.0.0.1" and found["--port"] == "8000"


def test_an_argument_is_true_false_a_list_or_a_value(tmp_path):
    targets = ADAPTER.replace("}", ", targets: [q_proj, v_proj]}")
    found = words(tmp_path, GPU, targets, "sampling.sync=adapter", "sampling.compile=false")
    at = found.index("--lora-target-modules")
    assert found[at + 1 : at + 3] == ["q_proj", "v_proj"] and "--enforce-eager" in found
    assert "--no-enforce-eager" in words(tmp_path, GPU) and "--no-trust-remote-code" in words(tmp_path, GPU)
    assert all(isinstance(word, str) for word in found)


def test_a_request_has_token_ids_a_seed_and_a_salt():
    found = request((1, 2), Sampling(top_p=0.9), model="m", seed=7, salt="s", n=3, temperature=1.0, max_tokens=5)
    assert (found["model"], found["token_ids"], found["cache_salt"]) == ("m", [1, 2], "s")
    params = found["sampling_params"]
    assert (params["seed"], params["n"], params["top_p"], params["detokenize"]) == (7, 3, 0.9, False)
    assert "cache_salt" not in request([1], Sampling(), model="m", seed=7)
    assert json.loads(json.dumps(found)) == found


def test_settings_of_a_greedy_request_have_no_support():
    support = Sampling(top_p=0.9, top_k=5, min_p=0.1, stop=["x"])

    def told(temperature, beside=None):
        return told_settings(
            request([1], support, model="m", seed=0, temperature=temperature, max_tokens=5), beside or {}
        )

    assert told(0.0) == {"temperature": 0.0, "max_tokens": 5, "stop": ["x"]}
    assert told(1.0) == {**told(0.0), "temperature": 1.0, "top_p": 0.9, "top_k": 5, "min_p": 0.1}
    assert told(0.0, {"penalty": "2"})["penalty"] == "2"


@pytest.mark.parametrize(
    "url, start",
    [
        ("http://127.0.0.1:8000", "PORT=8000 bash launch/serve.sh r.yaml"),
        ("http://localhost:8000", "PORT=8000 bash launch/serve.sh r.yaml"),
        ("http://[::1]:8000", "PORT=8000 bash launch/serve.sh r.yaml"),
        ("http://[fd00::5]:8000", "HOST=fd00::5 PORT=8000 bash launch/serve.sh r.yaml"),
        ("http://10.0.0.5:8001", "HOST=10.0.0.5 PORT=8001 bash launch/serve.sh r.yaml"),
        ("https://node-2:443", "HOST=node-2 PORT=443 bash launch/serve.sh r.yaml"),
    ],
)
def test_the_command_that_starts_a_server_is_told(url, start):
    assert command("r.yaml", url) == start
    assert command("r.yaml", url, ["a=1"]) == f"{start} a=1"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.200.3.4", "::1"])
def test_loopback(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "128.0.0.1", "127.evil.example", "127.0.0.1.example", "localhost.example", ""]
)
def test_no_loopback(host):
    assert not is_loopback(host)
