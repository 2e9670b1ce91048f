"""HTTP to vLLM servers: what is asked, what an answer is, and what counts as a failure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from align.rollout.server_token import TOKEN

CONNECT_S = 5.0  # seconds in which a server must take a connection, and one that was lost must answer

GENERATE = "inference/v1/generate"


class ServerError(RuntimeError):
    """A vLLM server does not do what the run asks of it."""


class Refused(ServerError):
    """A server says that the request itself is wrong; where it fits the recipe no other one is asked."""


class Unauthorized(ServerError):
    """A server asks for another token."""


class Behind(ServerError):
    """A server has other weights than the policy's, and only a sync of all ranks brings it those."""


class Http:
    """Requests to servers. It tells them the token, and nobody else: no proxy is asked."""

    def __init__(self, token: str | None, seconds: float):
        headers = {b"Authorization": f"Bearer {token}".encode()} if token else {}
        context = httpx.create_ssl_context(trust_env=False)
        # vLLM closes connections unannounced: behind an error, and after 5 s in which nothing was asked
        once = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._settings = dict(headers=headers, verify=context, trust_env=False, limits=once)
        self._client = httpx.Client(**self._settings, timeout=httpx.Timeout(seconds, connect=CONNECT_S))

    def asynchronous(self) -> httpx.AsyncClient:
        """A client for one event loop, whose requests wait for as long as they may."""
        return httpx.AsyncClient(**self._settings, timeout=httpx.Timeout(None, connect=CONNECT_S))

    def post(self, url: str, path: str, body: Any = None, seconds: float | None = None, **params: str) -> Any:
        """The answer to a request, as data. Raises `ServerError`, and httpx's errors."""
        limit = {"timeout": httpx.Timeout(seconds, connect=CONNECT_S)} if seconds else {}
        return read(self._client.post(f"{url}/{path}", json=body, params=params, **limit))

    def get(self, url: str, path: str, name: str) -> Any:
        """What has this name in the answer to a request without a body; raises likewise."""
        with understood():
            return read(self._client.get(f"{url}/{path}"))[name]

    def call(self, url: str, method: str, seconds: float | None = None, **arguments: Any) -> Any:
        """What the first worker of a server answers to a call of the extension. Raises `ServerError`."""
        found = self.post(url, "collective_rpc", {"method": method, "kwargs": arguments}, seconds)
        with understood():
            return found["results"][0] if found else None

    def close(self) -> None:
        """Close all connections."""
        self._client.close()


def read(reply: httpx.Response) -> Any:
    """The data of a reply. Raises `ServerError`, and `Refused` where it says that the request is wrong."""
    if reply.status_code == httpx.codes.OK:
        is_data = reply.headers.get("content-type", "").startswith("application/json")
        with understood():
            return reply.json() if is_data else reply.text
    if reply.status_code == httpx.codes.UNAUTHORIZED:
        raise Unauthorized(f"it asks for another token; set {TOKEN} to the same on both sides")
    what = f"{reply.request.url.path} gave {reply.status_code}: {' '.join(reply.text.split())[:300]}"
    wrong = reply.status_code in (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY)
    raise (Refused if wrong else ServerError)(what)


@contextmanager
def understood() -> Iterator[None]:
    """Raise `ServerError` where what a server said has another form than was expected of it."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ServerError(f"its answer cannot be read: {type(error).__name__}: {error}") from error


def told(error: Exception) -> str:
    """Why a request failed, in words."""
    text = " ".join(str(error).split())
    if isinstance(error, httpx.TimeoutException):
        return f"no answer in time ({type(error).__name__})"
    return text if isinstance(error, ServerError) else f"{type(error).__name__}{f': {text}' if text else ''}"
