"""Ask for a token on every path of a vLLM server: its own --api-key leaves pausing and weights open to all.

A server imports it as middleware: nothing here loads torch.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

TOKEN = "ALIGN_SERVER_TOKEN"  # variable of the environment, of servers and trainer alike

GUARD = "align.rollout.server_token.Guard"


def token() -> str | None:
    """The token of the environment; None where it has none."""
    return os.environ.get(TOKEN, "").strip() or None


class Guard:
    """ASGI middleware that answers 401 to whoever does not say the token; without one it lets all pass."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self._app, needed = app, token()
        self._needed = f"Bearer {needed}".encode() if needed else None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Callable, send: Callable) -> None:
        """Hand the request on, or refuse it."""
        if self._needed is None or scope["type"] == "lifespan" or self._says(scope):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        body = b'{"error": "this server asks for the token of ' + TOKEN.encode() + b'"}'
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _says(self, scope: MutableMapping[str, Any]) -> bool:
        said = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return hmac.compare_digest(said, self._needed)
