"""The vLLM servers of a run as one rank sees them: who has which policy, who is busy, who is alive.

One call of `answer` has its own event loop: a request to a server that is lost is cancelled and asked of another one.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from align.rollout.server_arguments import BASE
from align.rollout.server_http import CONNECT_S, GENERATE, Behind, Http, Refused, ServerError, read, told

AGAIN_S = 2.0  # seconds between two tries of a server that was lost

MOST_AGAIN_S = 16.0  # the same at most: they double each time that it comes back

LOOKS = 3  # times in `liveness_s` that a server at work is looked at

SPARE = 1.5  # times as many responses as a server works on are asked of it, so that it never waits for the next one

ONE_TOKEN = {
    "model": BASE,
    "token_ids": [0],
    "sampling_params": {"max_tokens": 1, "temperature": 0, "detokenize": False},
}


@dataclass(eq=False)
class Server:
    """A server, and what this rank knows of it."""

    url: str
    weights: str | None = None  # the name of the policy that it has; None: unknown, so it is asked nothing
    why: str = "it was not asked yet"  # that was unknown when it was last; "": never since the last sync
    behind: bool = False  # whether it answered when it was tried last, and waits for a sync
    instance: str = ""  # which start of it is known
    added: Mapping[str, str] = field(default_factory=dict)  # settings that it adds to every request
    at_work: int = 0  # requests of this rank
    heard: float = 0.0  # when it answered last


@dataclass(frozen=True)
class Limits:
    """How long a rank waits, and how much it asks for at once."""

    liveness_s: float  # seconds in which a server must give one token
    patience_s: float  # seconds that a call waits for a server
    sequences: int  # responses that a server works on at once
    rank: int
    ranks: int

    def room(self, n: int) -> int:
        """How many requests for n responses a rank has at one server."""
        return max(1, round(SPARE * self.sequences / n / self.ranks))


class Call:
    """Requests that are answered by whichever server has the policy and is free; each exactly once."""

    def __init__(self, fleet: Fleet, bodies: Sequence[Mapping[str, Any]], take: Callable[[Any, Any], Any]):
        self._fleet, self._bodies, self._take = fleet, bodies, take
        self._left, self._found = deque(range(len(bodies))), {}

    async def answers(self, room: int) -> list[Any]:
        """What `take` makes of each reply, in the order of the requests. Raises `ServerError` where no server gives one
        in time."""
        self._changed, self._answered = asyncio.Condition(), time.monotonic()
        self._outcome = asyncio.get_running_loop().create_future()
        self._lost = {server: asyncio.Event() for server in self._fleet.servers}
        self._untried = {server for server in self._fleet.servers if server.weights != self._fleet.current}
        async with self._fleet.http.asynchronous() as self._client:
            start, servers = self._fleet.limits.rank % len(self._fleet.servers), self._fleet.servers
            turned = [*servers[start:], *servers[:start]]  # so that the first requests of the ranks go apart
            jobs = [self._work(server) for _ in range(room) for server in turned]
            jobs += [self._watch(server) for server in turned]
            tasks = [asyncio.create_task(job) for job in (*jobs, self._wait())]
            for task in tasks:
                task.add_done_callback(self._ended)
            try:
                await self._outcome
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return [self._found[i] for i in range(len(self._bodies))]

    def _ended(self, task: asyncio.Task) -> None:
        """End the call by what a task raised."""
        if not task.cancelled() and task.exception() and not self._outcome.done():
            self._outcome.set_exception(task.exception())

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _work(self, server: Server) -> None:
        """Take one request after the other to a server, while it has the policy."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._left and server.weights == self._fleet.current)
                number = self._left.popleft()
            server.at_work += 1
            try:
                body = self._bodies[number]
                self._found[number] = self._take(body, await self._ask(server, body))
                self._answered = time.monotonic()
            except Refused as error:
                self._left.appendleft(number)
                if not (why := await self._misfit(server)):
                    raise Refused(f"{server.url}: {error}") from error
                self._lose(server, why)
            except (httpx.HTTPError, ServerError) as error:
                self._left.appendleft(number)
                self._lose(server, told(error))
            finally:
                server.at_work -= 1
            if len(self._found) == len(self._bodies) and not self._outcome.done():
                self._outcome.set_result(None)
            await self._tell()

    async def _misfit(self, server: Server) -> str | None:
        """Why a server that refuses a request is not, or no longer, what the recipe needs; None where it is, so that
        the request is wrong."""
        try:
            await asyncio.to_thread(self._fleet.examine, server)
        except (httpx.HTTPError, ServerError) as error:
            return told(error)
        return None

    async def _ask(self, server: Server, body: Mapping[str, Any]) -> Any:
        """The reply to a request. Raises `ServerError` as soon as the server is lost."""
        reply = asyncio.ensure_future(self._client.post(f"{server.url}/{GENERATE}", json=body))
        lost = asyncio.ensure_future(self._lost[server].wait())
        try:
            await asyncio.wait({reply, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not reply.done():
                raise ServerError(server.why)
            server.heard = time.monotonic()
            return read(reply.result())
        finally:
            reply.cancel()
            lost.cancel()

    def _lose(self, server: Server, why: str) -> None:
        self._fleet.lose(server, why)
        self._lost[server].set()
        self._untried.add(server)

    async def _watch(self, server: Server) -> None:
        """Look at a server while it works, and for it once it is lost."""
        period, wait, again = self._fleet.limits.liveness_s / LOOKS, 0.0, AGAIN_S
        while True:
            if server.weights == self._fleet.current:
                await asyncio.sleep(period)
                if server.at_work and time.monotonic() - server.heard > period:
                    await self._look(server, period)
            else:
                await asyncio.sleep(wait)
                await self._try(server)
                self._untried.discard(server)
                self._end_if_behind()
                wait = AGAIN_S
                if server.weights == self._fleet.current:
                    wait, again = again, min(2 * again, MOST_AGAIN_S)
            await self._tell()

    async def _look(self, server: Server, period: float) -> None:
        """Ask for one token; lose a server that gives neither that nor any other one. One that has many requests may
        not come to it."""
        why = await self._why_not(server, self._fleet.limits.liveness_s)
        if why is None:
            return
        before = await self._tokens(server)
        await asyncio.sleep(period)
        if before is None or not (await self._tokens(server) or 0) > before:
            self._lose(server, why)

    async def _why_not(self, server: Server, seconds: float) -> str | None:
        """Why a server gives no token in so many seconds; None where it gives one."""
        try:
            async with asyncio.timeout(seconds):
                read(await self._client.post(f"{server.url}/{GENERATE}", json=ONE_TOKEN))
        except TimeoutError:
            return f"it hangs: one token takes more than {seconds:g} s"
        except (httpx.HTTPError, ServerError) as error:
            return told(error)
        return None

    async def _tokens(self, server: Server) -> float | None:
        """The tokens that a server has given so far; None where it does not say."""
        try:
            async with asyncio.timeout(CONNECT_S):
                reply = await self._client.get(f"{server.url}/metrics")
        except (TimeoutError, httpx.HTTPError):
            return None
        lines = [line for line in reply.text.splitlines() if line.startswith("vllm:generation_tokens_total")]
        try:
            return sum(float(line.rpartition(" ")[2]) for line in lines) if lines else None
        except ValueError:
            return None

    async def _try(self, server: Server) -> None:
        """Take a lost server back where it answers and has the policy, or gets it."""
        if why := await self._why_not(server, CONNECT_S):
            server.why, server.behind = why, False
            return
        try:
            await asyncio.to_thread(self._fleet.rejoin, server)
        except (httpx.HTTPError, ServerError) as error:
            server.why, server.behind = told(error), isinstance(error, Behind)
            return
        self._lost[server].clear()
        server.heard = time.monotonic()
        self._fleet.gain(server)

    def _end_if_behind(self) -> None:
        """Raise `ServerError` where a sync alone would help, which comes only after this call: no server has the
        policy, each was tried since it was lost, and there are some that answer."""
        if not self._fleet.ready and not self._untried and any(server.behind for server in self._fleet.servers):
            raise ServerError(self._fleet.none_left())

    async def _wait(self) -> None:
        """Raise `ServerError` once no request was answered for as long as a call waits: also where a server comes back
        again and again, and fails each time."""
        patience = self._fleet.limits.patience_s
        while (left := self._answered + patience - time.monotonic()) > 0:
            await asyncio.sleep(left)
        raise ServerError(self._fleet.none_left(patience))


@dataclass
class Fleet:
    """The servers of a run."""

    servers: Sequence[Server]
    http: Http
    limits: Limits
    examine: Callable[[Server], None]  # raises `ServerError` where one is not what the recipe needs
    rejoin: Callable[[Server], None]  # gives one that answers again the policy, or raises `ServerError`
    start: Callable[[str], str]  # {its address: the command that starts it}
    tell: Callable[[str], None]  # a line for the console
    current: str = ""  # the name of the policy that the next request is for

    @property
    def ready(self) -> list[Server]:
        """Those that have it."""
        return [server for server in self.servers if server.weights == self.current]

    def answer(self, bodies: Sequence[Mapping[str, Any]], take: Callable[[Any, Any], Any], n: int = 1) -> list[Any]:
        """What `take(body, reply)` makes of the reply to each request, each for n responses. A server that fails, or
        whose reply makes `take` raise `ServerError`, is lost, and its requests go elsewhere. Raises `ServerError`."""
        return asyncio.run(Call(self, bodies, take).answers(self.limits.room(n))) if bodies else []

    def lose(self, server: Server, why: str) -> None:
        """Ask a server nothing until it is taken back."""
        if server.weights is not None:
            self.tell(f"{server.url}: lost: {why}; its requests go to the other servers")
        server.weights, server.why, server.behind = None, why, False

    def gain(self, server: Server) -> None:
        """Ask a server again."""
        server.weights, server.behind = self.current, False
        self.tell(f"{server.url}: it is back, and has the policy")

    def none_left(self, seconds: float = 0.0) -> str:
        """Say of each server why it is asked nothing, and what to do; after so many seconds of waiting."""
        slow = "it has the policy, and gives no answer; where it is only slow, raise sampling.deadline_s; else"
        lines = []
        for server in self.servers:
            start = f"{server.why + ';' if server.why else slow} start it with {self.start(server.url)}"
            lines.append(f"  {server.url}: {server.why + ', or by --resume' if server.behind else start}")
        what = f"no server has answered for {seconds:g} s" if seconds else "no server has the policy"
        return "\n".join([f"{what}:", *lines, "then go on with --resume: what was sampled is in the run's journal"])
