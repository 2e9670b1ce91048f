"""Bring the policy to vLLM servers: as an adapter's files over HTTP, or all weights by vLLM's weight transfer.

In both ways all ranks gather, the first one sends, and all are told which servers have it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from align.learner import weights
from align.rollout.fleet import Server
from align.rollout.server_arguments import BASE, is_loopback
from align.rollout.server_control import Absent, Control, Failed, blamed
from align.rollout.server_http import CONNECT_S, Behind, Http, ServerError, told, understood
from align.system.deadline import DeadlineError
from align.system.network import address_towards, listening

LOADED = "default"  # vLLM's name of the weights that a server has read from the model's files

FILES = ("adapter_config.json", "adapter_model.safetensors")

ATTEMPTS = 3  # to send weights, each time to those servers that still answer

Examine = Callable[[Server], None]  # raises `ServerError` where a server is not what the recipe needs

FAILURES = (httpx.HTTPError, RuntimeError, ValueError, OSError)  # gloo and NCCL raise kinds of RuntimeError


class Way(Protocol):
    """How the policy gets to the servers."""

    def start(self, model: nn.Module, name: str, servers: Sequence[Server]) -> dict[str, str | None]:
        """Have the servers sample from the policy's base; {url: why one does not, None where it does}. Collective."""
        ...

    def send(self, model: nn.Module, name: str, servers: Sequence[Server]) -> dict[str, str | None]:
        """Have them sample from the policy of now, under its name; likewise. Collective."""
        ...

    def give(self, server: Server, name: str) -> None:
        """Have one server alone sample from the policy that was sent last. Raises `ServerError` where it cannot, and
        `Behind` where only a sync brings it."""
        ...

    def proof(self, name: str) -> tuple[str, str]:
        """(the model, the version of the weights) that a reply names which was sampled from the policy."""
        ...

    def end(self, servers: Sequence[Server]) -> None:
        """Leave nothing on the servers."""
        ...


class Adapters:
    """Each policy is an adapter of its own name over the base; the newest and the one before it stay loaded."""

    def __init__(self, http: Http, rank: int, examine: Examine):
        self._http, self._rank, self._examine = http, rank, examine
        self._files: dict[str, str] = {}
        self._names: list[str] = []

    def start(self, model, name, servers):
        """As `Way.start`: the base is what they have read."""
        self._names = [name]
        return self._give_all(servers, name)

    def send(self, model, name, servers):
        """As `Way.send`."""
        with TemporaryDirectory(prefix="align-adapter-") as folder:
            weights.save(model, Path(folder), write=True)
            self._files = {file: base64.b64encode((Path(folder) / file).read_bytes()).decode() for file in FILES}
        self._names = [*self._names[-1:], name]
        return self._give_all(servers, name)

    def _give_all(self, servers: Sequence[Server], name: str) -> dict[str, str | None]:
        return agreed(each(servers, partial(self.give, name=name)) if self._rank == 0 else {})

    def give(self, server, name):
        """As `Way.give`: every rank has the files."""
        self._examine(server)
        version = self._http.get(server.url, "weight_info", "weight_version")
        if version != LOADED:
            raise ServerError(f"another run has put the weights {version} in place of the base's; start it again")
        if not self._files:  # the base itself
            return
        with understood():
            there = {one["id"] for one in self._http.get(server.url, "v1/models", "data")}
        if name not in there:
            path = self._http.call(server.url, "align_put", name=name, files=self._files)
            self._http.post(server.url, "v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        run = name.rpartition("-v")[0]
        for old in sorted(one for one in there if one.rpartition("-v")[0] == run and one not in self._names):
            self._http.post(server.url, "v1/unload_lora_adapter", {"lora_name": old})
            self._http.call(server.url, "align_drop", name=old)

    def proof(self, name):
        """As `Way.proof`."""
        return name if self._files else BASE, LOADED

    def end(self, servers):
        """As `Way.end`."""
        for name in self._names if self._rank == 0 and self._files else ():
            for server in servers:
                with_no_answer(self._http.post, server.url, "v1/unload_lora_adapter", {"lora_name": name}, CONNECT_S)
                with_no_answer(self._http.call, server.url, "align_drop", CONNECT_S, name=name)


class Whole:
    """All weights in place of those that the servers have, over one group of the first rank and all their workers.

    `seconds` are those of one broadcast, and `most` those of all.
    """

    def __init__(self, http: Http, rank: int, examine: Examine, backend: str, seconds: float, most: float):
        from align.rollout.weight_transfer import Source

        self._http, self._rank, self._examine = http, rank, examine
        self._backend, self._seconds, self._most = backend, seconds, most
        self._source = Source(lambda: iter(()))
        self._members: list[tuple[str, str]] = []  # (url, which start of it) of the group's servers
        self._control, self._transfer = None, None

    def start(self, model, name, servers):
        """As `Way.start`: they may have what another run left there."""
        adapted = hasattr(model, "peft_config")
        return self._send(partial(weights.base if adapted else weights.merged, model), name, servers)

    def send(self, model, name, servers):
        """As `Way.send`."""
        return self._send(partial(weights.merged, model), name, servers)

    def _send(self, give: Callable[[], Iterator[tuple[str, Tensor]]], name: str, servers: Sequence[Server]):
        self._source.give = give
        self._source.metadata()
        states: dict[str, str | None] = {}
        failed: dict[str, str] = {}
        for _ in range(ATTEMPTS):
            self._source.begin()
            states = agreed(self._attempt(name, servers, failed))
            if any(why is None for why in states.values()):
                break
        return states

    def _attempt(self, name: str, servers: Sequence[Server], failed: dict[str, str]) -> dict[str, str | None]:
        """Send once, to those that answer; on other ranks gather alone. `failed`: {url: why} of those by which earlier
        attempts failed, and this one; they are left out while there are others."""
        states: dict[str, str | None] = {}
        try:
            if self._rank == 0:
                states = each(servers, self._examine)
                there = [server for server in servers if states[server.url] is None]
                there = [server for server in there if server.url not in failed] or there
                sent = {server.url for server in there}
                states |= {url: failed[url] for url, why in states.items() if why is None and url not in sent}
                if there:
                    self._transmit(name, there)
        except DeadlineError:
            raise  # the run ends, so nothing is tried or gathered any more
        except FAILURES as error:
            self._members = []
            what = f"the transfer of weights failed: {told(error)}"
            failed |= dict.fromkeys(self._who(error), what)
            states |= {url: what for url, why in states.items() if not why}
        self._source.drain()
        return states

    def _who(self, error: Exception) -> set[str]:
        """The servers by which a transfer failed; none where it does not say."""
        if isinstance(error, Absent):
            return self._control.servers_of(error.ranks)
        return {error.url} if isinstance(error, Failed) else set()

    def _transmit(self, name: str, servers: Sequence[Server]) -> None:
        members = [(server.url, server.instance) for server in servers]
        if members != self._members:
            self._connect(servers)
        self._control.name = name
        self._control.each("pause", mode="abort")
        self._transfer.send_weights()
        self._control.each("resume")
        self._members = members

    def _connect(self, servers: Sequence[Server]) -> None:
        """Open the group anew. A server that a failure left paused, in an update, closes that; all is sent again."""
        from align.rollout import weight_transfer

        self._control = Control(self._http, [server.url for server in servers], self._most)
        for server in servers:
            with blamed(server.url), understood():
                paused = self._http.get(server.url, "is_paused", "is_paused")
            if paused:
                with_no_answer(self._http.post, server.url, "finish_weight_update")
        self._control.each("pause", mode="abort")
        address = group_address([server.url for server in servers])
        with listening(address) as free:
            port = free.getsockname()[1]
        world = 1 + sum(self._control.workers)
        info = weight_transfer.trainer_info(self._backend, address, port, world, 0, self._seconds)
        self._transfer = weight_transfer.connect(info, self._control, self._source)

    def give(self, server, name):
        """As `Way.give`: one that was started again is `Behind` until the next sync, when all ranks can gather."""
        self._examine(server)
        version = self._http.get(server.url, "weight_info", "weight_version")
        if version != name:
            who = "of its files" if version == LOADED else f"{version} of another run or sync"
            raise Behind(f"it has the weights {who}; it gets the policy at the next sync")

    def proof(self, name):
        """As `Way.proof`."""
        return BASE, name

    def end(self, servers):
        """As `Way.end`: the weights stay, and the next run replaces them."""
        if self._transfer is not None:
            self._transfer.shutdown()
        for url, _ in self._members:
            with_no_answer(self._http.post, url, "shutdown_weight_transfer_engine", None, CONNECT_S)


def each(servers: Sequence[Server], do: Callable[[Server], None]) -> dict[str, str | None]:
    """{url: why something could not be done with a server; None where it was}, all at once."""

    def one(server: Server) -> str | None:
        try:
            do(server)
        except (httpx.HTTPError, ServerError) as error:
            return told(error)
        return None

    pool = ThreadPoolExecutor(len(servers))
    found = pool.map(one, servers)
    pool.shutdown(wait=False)  # whoever is interrupted waits for no server that hangs
    return dict(zip([server.url for server in servers], found, strict=True))


def agreed(states: dict[str, str | None]) -> dict[str, str | None]:
    """The states that the first rank found, on all of them. Collective."""
    return broadcast_object_list([states], from_process=0)[0]


def with_no_answer(ask: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """Ask for what need not be done."""
    try:
        ask(*arguments, **named)
    except (httpx.HTTPError, ServerError):
        return


def group_address(urls: Sequence[str]) -> str:
    """This machine's address for a group with all these servers: as those see it that are elsewhere, if any is, for
    those of this machine reach that one too."""
    hosts = [urlsplit(url).hostname for url in urls]
    return address_towards(next((host for host in hosts if not is_loopback(host)), hosts[0]))
