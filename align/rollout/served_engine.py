"""Sample with vLLM servers: token ids in, token ids and log-probabilities out. Nothing is decoded on the way."""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from align.config.recipe import Recipe
from align.data.prompts import Response
from align.rollout import fleet, server_facts
from align.rollout.fleet import Fleet, Limits, Server
from align.rollout.generator import LIKELIEST, Answer
from align.rollout.seeds import PROBE
from align.rollout.server_arguments import BASE, command, request, told_settings
from align.rollout.server_http import CONNECT_S, GENERATE, Http, ServerError, told, understood
from align.rollout.server_reply import Reply, read_reply
from align.rollout.server_token import token
from align.rollout.server_weights import Adapters, Way, Whole, each

AT_ONCE = 16  # rows that a server scores

PATIENCE = 0.9  # of sampling.deadline_s, so that what is wrong with the servers is told before that ends the step


@dataclass(frozen=True)
class Said:
    """What the servers that passed a check say of a few tokens with the policy of now."""

    ids: list[int]
    temperature: float
    prompt: list[float]


class Served:
    """A `Generator` over the vLLM servers of `sampling.servers`. Each rank posts its own requests.

    Of the collectives of all ranks only `__init__` and `sync` have any: `generate` may run beside an update, in any
    thread, but not beside a `sync`. `wanted` are the facts that a server must have, `recipe_file` what starts one,
    `tell` prints a line of this rank: what all know only the first one tells.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        wanted: Mapping[str, Any],
        place: tuple[int, int],
        recipe_file: str,
        tell: Callable[[str], None],
    ):
        sampling = self._sampling = recipe.sampling
        self.settings: dict[str, Any] = {}
        self._rank, self._ranks = place
        self._wanted, self._tell, self._number, self._said = wanted, tell, 0, None
        self._run = broadcast_object_list([uuid.uuid4().hex[:8]], from_process=0)[0]
        self._http = Http(token(), sampling.deadline_s / 3)
        limits = Limits(sampling.liveness_s, PATIENCE * sampling.deadline_s, sampling.max_sequences, *place)
        servers = [Server(url) for url in sampling.servers]
        start = partial(command, recipe_file)
        self._fleet = Fleet(servers, self._http, limits, self._examine, self._rejoin, start, tell)
        self._way = self._make_way(torch.device(next(model.parameters()).device).type)
        self.forget()
        self._has(self._name, self._way.start(model, self._name, servers))

    def _make_way(self, device: str) -> Way:
        if self._sampling.sync == "adapter":
            return Adapters(self._http, self._rank, self._examine)
        backend = "gloo" if device == "cpu" else "nccl"
        seconds, most = self._sampling.liveness_s, self._sampling.deadline_s / 3
        return Whole(self._http, self._rank, self._examine, backend, seconds, most)

    @property
    def _name(self) -> str:
        """The name of the newest policy, which no other run has."""
        return f"{BASE}-{self._run}-v{self._number}"

    def _examine(self, server: Server) -> None:
        """Raise `ServerError` where a server does not answer, or is not what the recipe needs."""
        current = server.weights is not None
        facts = self._http.call(server.url, "align_facts", self._sampling.liveness_s if current else CONNECT_S)
        with understood():
            if found := server_facts.problems({**facts, "added": {}}, self._wanted):
                raise ServerError("; ".join(found))
            server.instance, server.added = facts["instance"], facts["added"]

    def _has(self, name: str, states: Mapping[str, str | None]) -> None:
        """Note which servers have the newest policy, the same on all ranks. Raises `ServerError` where none has."""
        before = self._fleet.ready or self._fleet.servers
        self._fleet.current, self._said = name, None
        for server in self._fleet.servers:
            why = states[server.url]
            if self._rank == 0 and why and server in before:
                self._tell(f"{server.url}: it has not got the policy: {why}")
            elif self._rank == 0 and not why and server not in before:
                self._tell(f"{server.url}: it is back, and has the policy")
            server.weights, server.why, server.behind = None if why else name, why or "", False
        if not self._fleet.ready:
            raise ServerError(self._fleet.none_left())

    def forget(self):
        """Have the servers compute prompts anew, as `Generator.forget` says: other salt, other cache."""
        self._salt = uuid.uuid4().hex

    def generate(self, prompts, *, n, temperature, max_tokens, seeds):
        """Sample as `Generator.generate` says, a request for each prompt. A server takes no more responses at once than
        it works on, so a larger group is several requests: of n responses vLLM gives the i-th the seed plus i."""
        if not prompts:
            return []
        most = self._sampling.max_sequences
        parts = [(i, start) for i in range(len(prompts)) for start in range(0, n, most)]
        asked = dict(temperature=temperature, max_tokens=max_tokens, logprobs=0)
        bodies = [
            self._body(prompts[i], seeds.requests[i] + start, n=min(most, n - start), **asked) for i, start in parts
        ]
        found = self._fleet.answer(bodies, self._take, min(n, most))
        self.settings = told_settings(bodies[0], {k: v for s in self._fleet.servers for k, v in s.added.items()})
        out: list[list[Response]] = [[] for _ in prompts]
        for (i, _), reply in zip(parts, found, strict=True):
            out[i] += reply.responses
        return out

    def _body(self, ids: Sequence[int], seed: int, **settings: Any) -> dict[str, Any]:
        model, _ = self._way.proof(self._fleet.current)
        return request(ids, self._sampling, model=model, seed=seed, salt=self._salt, **settings)

    def _take(self, body: Mapping[str, Any], reply: Any) -> Reply:
        """What a reply says. Raises `ServerError` where it was not sampled from the newest policy, or is not whole."""
        return read_reply(body, reply, self._way.proof(self._fleet.current))

    def logprobs(self, ids, *, temperature):
        """Log-probabilities as `Generator.logprobs` says, of whichever server is free."""
        body = self._probe(ids, temperature)
        [reply] = self._fleet.answer([body], self._take)
        self.settings = told_settings(body, {})
        return reply.logprobs

    def _probe(self, ids: Sequence[int], temperature: float) -> dict[str, Any]:
        asked = dict(temperature=temperature, max_tokens=1, logprobs=LIKELIEST, prompt_logprobs=0)
        return self._body(ids, PROBE, n=1, **asked)

    def score(self, rows):
        """Log-probabilities as `Generator.score` says, of one server: after each sync of another one, and each rank has
        its own turn. Where it fails they are those of whichever servers are left, or come back in time."""
        asked = dict(n=1, temperature=1.0, max_tokens=1, prompt_logprobs=0)
        bodies, ready = [self._body(row, PROBE, **asked) for row in rows], self._fleet.ready
        if ready:
            server = ready[(self._rank + self._number) % len(ready)]
            try:
                with ThreadPoolExecutor(AT_ONCE) as pool:
                    return [reply.logprobs.prompt for reply in pool.map(partial(self._post, server), bodies)]
            except (httpx.HTTPError, ServerError) as error:
                self._fleet.lose(server, told(error))
        return [reply.logprobs.prompt for reply in self._fleet.answer(bodies, self._take)]

    def _post(self, server: Server, body: Mapping[str, Any]) -> Reply:
        return self._take(body, self._http.post(server.url, GENERATE, body, self._sampling.liveness_s))

    def vocabulary(self):
        """The rows of the tables of the first server that has the policy, as `Generator.vocabulary` says."""
        return self._tables(self._fleet.ready[0])

    def _tables(self, server: Server) -> dict[str, torch.Tensor]:
        found = self._http.call(server.url, "align_vocabulary", self._sampling.liveness_s)
        with understood():
            flat = {name: np.frombuffer(base64.b64decode(data), np.float32) for name, data in found.items()}
            return {name: torch.tensor(numbers.reshape(-1, 8)) for name, numbers in flat.items()}

    def answers(self, ids, *, temperature):
        """What this rank's part of the servers says, as `Generator.answers` says. One that fails is lost, and where
        none is left of the part, another one is asked. Raises `ServerError` where none comes back in time."""
        found: dict[str, Answer] = {}
        while not found:
            if not self._fleet.ready:
                self._fleet.answer([self._probe(ids, temperature)], self._take)
            ready = self._fleet.ready
            for server in ready[self._rank :: self._ranks] or [ready[self._rank % len(ready)]]:
                try:
                    found[server.url] = self._answer(server, ids, temperature)
                except (httpx.HTTPError, ServerError) as error:
                    self._fleet.lose(server, told(error))
        first = next(iter(found.values()))
        self._said, self.settings = Said(list(ids), temperature, first.logprobs.prompt), dict(first.settings)
        return found

    def _answer(self, server: Server, ids: Sequence[int], temperature: float) -> Answer:
        body = self._probe(ids, temperature)
        reply = self._post(server, body)
        return Answer(reply.logprobs, told_settings(body, server.added), self._tables(server))

    def sync(self, model):
        """Hand over the weights, merged or as an adapter. Collective."""
        self._number += 1
        if self._rank == 0:
            self._wait_for_one()
        self._has(self._name, self._way.send(model, self._name, self._fleet.servers))

    def _wait_for_one(self) -> None:
        """Wait until a server is what the recipe needs, a third of `sampling.deadline_s` at most: while the policy was
        updated, all may have ended and been started again."""
        until = time.monotonic() + self._sampling.deadline_s / 3
        states = each(self._fleet.servers, self._examine)
        if None not in states.values():
            self._tell("; ".join(f"{url}: {why}" for url, why in states.items()) + "; waiting for one of them")
        while None not in states.values() and time.monotonic() < until:
            time.sleep(fleet.AGAIN_S)
            states = each(self._fleet.servers, self._examine)

    def _rejoin(self, server: Server) -> None:
        """Give a server that answers again the newest policy. Raises `ServerError` where it does not say of the tokens
        of the last check what the servers say that passed it."""
        self._way.give(server, self._fleet.current)
        if self._said is None:
            return
        said = self._answer(server, self._said.ids, self._said.temperature).logprobs.prompt
        gaps = [abs(one - two) for one, two in zip(said, self._said.prompt, strict=True)]
        if gaps and not sum(gaps) / len(gaps) <= self._sampling.tolerance:
            what = f"by {sum(gaps) / len(gaps):.2g} nats a token"
            raise ServerError(f"it says otherwise of the tokens of the sync check, {what}; start it again")

    def sleep(self):
        """Do nothing: the servers' memory is their own."""

    def close(self):
        """Leave the servers as they were found, as far as they answer."""
        self._way.end(self._fleet.ready)
        self._http.close()
