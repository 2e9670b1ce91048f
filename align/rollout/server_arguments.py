"""What is asked of a vLLM server, as plain data: the words of its command line, its environment, its requests."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from align.config.recipe import Recipe
from align.config.sampling_keys import Sampling
from align.rollout.engine_arguments import request_settings, shared_arguments
from align.rollout.server_token import GUARD
from align.system.hardware import GIB, Hardware

ENTRY = "vllm.entrypoints.launchers.api_server.entry"  # `vllm serve` of the wheel for CPUs fails

BASE = "policy"  # the name of the model that the server starts with; an adapter has the name of its policy

EXTENSION = "align.rollout.server_worker.Extension"

TOKENS = 4096  # least that a server on a CPU takes in one step: there no prompt is computed in parts

SHAPING = ("top_p", "top_k", "min_p")  # settings of a request that greedy sampling does not read

ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # pausing, weights, calls of the extension
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
}


def backend(hardware: Hardware) -> str:
    """What weights travel by between the trainer and a server on such hardware."""
    return "nccl" if hardware.is_gpu else "gloo"


def server_arguments(path: str, recipe: Recipe, context: int, hardware: Hardware, host: str, port: int) -> list[str]:
    """The words behind `python -m ENTRY` of a server that fits a recipe whose defaults are filled in.

    It has its machine or its GPUs for itself, so on a GPU vLLM sizes its cache unless the recipe does. On a CPU prompts
    are computed whole: a request with a seed whose prompt is computed in parts ends that engine.
    """
    sampling = recipe.sampling
    given = dict(
        **shared_arguments(path, recipe, context, hardware),
        served_model_name=BASE,
        host=host,
        port=port,
        generation_config="vllm",  # no defaults of the model's for what a request leaves out
        enable_scale_out=True,
        worker_extension_cls=EXTENSION,
        disable_uvicorn_access_log=True,
        middleware=GUARD,
    )
    if sampling.cache_gib is not None:
        given["kv_cache_memory_bytes"] = int(sampling.cache_gib * GIB)
    if not hardware.is_gpu:
        given |= dict(enable_chunked_prefill=False, max_num_batched_tokens=max(TOKENS, context))
        given["gpu_memory_utilization"] = 0.05  # only checked at the start, since the cache is sized above
    if sampling.sync == "adapter":
        given["max_cpu_loras"] = 2  # the newest policy, and the one before it
    else:
        given["weight_transfer_config"] = json.dumps({"backend": backend(hardware)})
    return [word for name, value in given.items() for word in _words(name, value)]


def _words(name: str, value: Any) -> list[str]:
    """An argument as vLLM's command line has it."""
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    if isinstance(value, list):
        return [f"--{option}", *map(str, value)]
    return [f"--{option}", str(value)]


def request(
    ids: Sequence[int], sampling: Sampling, *, model: str, seed: int, salt: str | None = None, **settings: Any
) -> dict[str, Any]:
    """The body of a request for responses to the tokens of a prompt.

    A server keeps what it computed of a prompt for requests with the same salt alone.
    """
    params = request_settings(sampling, seed=seed, **settings)
    asked = {"model": model, "token_ids": list(ids), "sampling_params": params}
    return {**asked, "cache_salt": salt} if salt else asked


def told_settings(body: Mapping[str, Any], beside: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a request as `generator.asked` has them; `beside`: what its server adds to every request."""
    params, neutral = body["sampling_params"], request_settings(Sampling())
    greedy = params["temperature"] == 0
    shaping = [name for name in (*SHAPING, "stop") if not (greedy and name in SHAPING)]
    found = {name: params[name] for name in shaping if params[name] != neutral[name]}
    return {**beside, **found, "temperature": params["temperature"], "max_tokens": params["max_tokens"]}


def command(recipe: str, url: str, overrides: Sequence[str] = ()) -> str:
    """The command line that starts the server of this address."""
    where = urlsplit(url)
    bound = "" if is_loopback(where.hostname) else f"HOST={where.hostname} "
    return " ".join([f"{bound}PORT={where.port} bash launch/serve.sh {recipe}", *overrides])


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, which no other can reach."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False  # a name, whoever has it
