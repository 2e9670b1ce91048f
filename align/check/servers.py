"""Ask the vLLM servers of a recipe whether they are there, and what it needs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx

from align.check.survey import Survey
from align.rollout import server_facts
from align.rollout.fleet import ONE_TOKEN
from align.rollout.server_arguments import command, is_loopback
from align.rollout.server_http import GENERATE, Http, ServerError, Unauthorized, told, understood
from align.rollout.server_token import token
from align.rollout.server_weights import LOADED
from align.system.node import machine_of


def try_servers(found: Survey) -> list[str]:
    """What is wrong with the servers, each with the recipe's line and the command that starts it right; [] where the
    recipe names none, or nothing is known of its model. On several machines each asks for itself."""
    sampling, file = found.experiment.recipe.sampling, found.experiment.file
    if sampling is None or sampling.engine != "server" or found.config is None or not sampling.servers:
        return []
    wanted = server_facts.wanted(sampling, found.experiment.recipe.model, found.config, found.context)
    several = found.launch.machines > 1
    asked = [url for url in sampling.servers if not (several and is_loopback(urlsplit(url).hostname))]
    http = Http(token(), sampling.liveness_s)
    with ThreadPoolExecutor(len(sampling.servers)) as pool:
        looks = dict(zip(asked, pool.map(lambda url: look(http, url, wanted), asked), strict=True))
    http.close()
    first = {start: url for url, (start, _) in reversed(looks.items())}
    out, here = [], f"from {machine_of()}: " if several else ""
    for i, url in enumerate(sampling.servers):
        key, how = ("sampling", "servers", i), command(file.name, url)
        if url not in looks:
            what = f"each of {found.launch.machines} machines would ask a server of its own; write an address that all"
            out.append(file.problem(key, f"{url}: {what} reach, and start it with HOST=ADDRESS {how}"))
            continue
        start, problems = looks[url]
        out += [file.problem(key, f"{url}: {here}{what}; start it with {how}") for what in problems]
        if start and first[start] != url:
            out.append(file.problem(key, f"{url}: it is the same server as {first[start]}; keep one"))
    return out


def look(http: Http, url: str, wanted: dict[str, Any]) -> tuple[str, list[str]]:
    """(which start of a server answers, what is wrong with it); "": none does."""
    try:
        with understood():
            facts = http.call(url, "align_facts")
            start, problems = facts["instance"], server_facts.problems(facts, wanted)
    except httpx.HTTPError as error:
        hangs = isinstance(error, httpx.ReadTimeout)
        return "", [f"it hangs: {told(error)}" if hangs else f"it cannot be reached: {told(error)}"]
    except Unauthorized as error:
        return "", [str(error)]
    except ServerError as error:
        return "", [f"it was not started by launch/serve.sh: {error}"]
    return start, problems or _at_work(http, url, "lora_rank" in wanted)


def _at_work(http: Http, url: str, keeps_base: bool) -> list[str]:
    """Why a server that is the right one gives no token of what it should have."""
    out = []
    try:
        paused = http.get(url, "is_paused", "is_paused")
        if keeps_base:
            version = http.get(url, "weight_info", "weight_version")
            if version != LOADED:
                out.append(f"another run has put the weights {version} in place of the base's")
            if paused:
                out.append("it is paused, as a run leaves it that ends while it sends weights")
        if not paused:
            http.post(url, GENERATE, ONE_TOKEN)
    except httpx.TimeoutException:
        out.append("it hangs: it gives no token in time (sampling.liveness_s)")
    except (httpx.HTTPError, ServerError) as error:
        out.append(f"it gives no token: {told(error)}")
    return out
