"""Ask several vLLM servers at once for what a transfer of whole weights needs, and know which one failed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

import httpx

from align.rollout.server_http import Http, ServerError, told, understood


class Failed(ServerError):
    """One server, of those in a transfer, that did not do what was asked."""

    def __init__(self, url: str, why: str):
        super().__init__(f"{url}: {why}")
        self.url = url


class Absent(TimeoutError):
    """Workers that did not come to the trainer's group, by their ranks in it."""

    def __init__(self, what: str, ranks: Collection[int]):
        super().__init__(what)
        self.ranks = ranks


@contextmanager
def blamed(url: str) -> Iterator[None]:
    """Raise `Failed` for a server where a request to it fails."""
    try:
        yield
    except (httpx.HTTPError, ServerError) as error:
        raise Failed(url, told(error)) from error


class Control:
    """What vLLM's transfer asks of one engine (`VLLMWeightSyncClient`), of several servers at once."""

    def __init__(self, http: Http, urls: Sequence[str], seconds: float):
        self._http, self._urls, self._seconds, self.name = http, urls, seconds, ""
        self.workers = [self._workers(url) for url in urls]

    def _workers(self, url: str) -> int:
        with blamed(url), understood():
            return int(self._http.get(url, "get_world_size", "world_size"))

    def servers_of(self, ranks: Collection[int]) -> set[str]:
        """Whose workers have these ranks in the group; the trainer has 0."""
        whose = [url for url, count in zip(self._urls, self.workers, strict=True) for _ in range(count)]
        return {whose[rank - 1] for rank in ranks}

    def each(self, path: str, body: Any = None, **params: str) -> None:
        """Ask all of them the same. Raises what the first failed one raises."""
        self._all([(path, body)] * len(self._urls), params)

    def _all(self, asked: Sequence[tuple[str, Any]], params: Mapping[str, str]) -> None:
        def one(url: str, path: str, body: Any) -> None:
            with blamed(url):
                self._http.post(url, path, body, self._seconds, **params)

        pool = ThreadPoolExecutor(len(self._urls))
        jobs = [pool.submit(one, url, *found) for url, found in zip(self._urls, asked, strict=True)]
        pool.shutdown(wait=False)  # where one fails the others may wait for it
        for job in as_completed(jobs):
            job.result()

    def init_weight_transfer_engine(self, info: dict[str, Any]) -> None:
        """Have the workers join, each server's behind those of the servers before it."""
        before = [sum(self.workers[:i]) for i in range(len(self.workers))]
        bodies = [{"init_info": info | {"rank_offset": info["rank_offset"] + n}} for n in before]
        self._all([("init_weight_transfer_engine", body) for body in bodies], {})

    def start_weight_update(self) -> None:
        """Have them get ready."""
        self.each("start_weight_update")

    def update_weights(self, info: Any) -> None:
        """Have them receive."""
        self.each("update_weights", {"update_info": info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Have them use what they received, under the policy's name."""
        self.each("finish_weight_update", {"weight_version": weight_version or self.name})
