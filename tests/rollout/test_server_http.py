"""What an answer over HTTP is taken for."""

import asyncio
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from align.rollout.server_http import Http, Refused, ServerError, Unauthorized, told, understood


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open

    def do_POST(self):
        self.server.callers.append(self.client_address)
        self.server.seen.append((self.path, dict(self.headers)))
        self.rfile.read(int(self.headers.get("content-length") or 0))
        status, kind, text, *more = self.server.answer
        self.send_response(status)
        for name, value in (("content-type", kind), ("content-length", str(len(text))), *more):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_POST

    def log_message(self, *_):
        pass


@contextmanager
def answering(status, text, kind="application/json", *more):
    """A server that always says the same."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.answer, http.seen, http.daemon_threads = (status, kind, text, *more), [], True
    http.callers = []
    http.url = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield http
    finally:
        http.shutdown()
        http.server_close()


@pytest.fixture
def http():
    found = Http(None, 5.0)
    yield found
    found.close()


def test_data_is_read_and_text_is_left(http):
    with answering(200, '{"a": [1]}', "application/json; charset=utf-8") as server:
        assert http.post(server.url, "x") == {"a": [1]} and http.get(server.url, "x", "a") == [1]
    with answering(200, "Success", "text/plain") as server:
        assert http.post(server.url, "x") == "Success"


@pytest.mark.parametrize(
    "status, error, what",
    [
        (400, Refused, "/x/y gave 400: too long"),
        (422, Refused, "gave 422"),
        (401, Unauthorized, "ALIGN_SERVER_TOKEN"),
        (403, ServerError, "gave 403"),
        (404, ServerError, "gave 404"),
        (500, ServerError, "gave 500: too long"),
        (503, ServerError, "gave 503"),
    ],
)
def test_a_status_tells_whether_the_request_or_the_server_is_wrong(status, error, what, http):
    with answering(status, "too\n long", "text/plain") as server, pytest.raises(ServerError, match=what) as raised:
        http.post(server.url, "x/y")
    assert type(raised.value) is error


def test_a_long_page_of_an_error_is_cut(http):
    with answering(500, "x" * 5000, "text/html") as server, pytest.raises(ServerError) as raised:
        http.post(server.url, "x")
    assert len(str(raised.value)) < 400


def test_no_connection_is_kept_that_a_server_closes_unannounced(http):
    async def twice(url):
        async with http.asynchronous() as client:
            for _ in range(2):
                await client.post(url)

    with answering(200, "{}") as server:
        asyncio.run(twice(server.url))
        for _ in range(2):
            http.post(server.url, "x")
        assert len(set(server.callers)) == 4


@pytest.mark.parametrize("text", ["<html>", "", "{", "\x00"])
def test_data_that_is_none_is_no_answer(text, http):
    with answering(200, text) as server, pytest.raises(ServerError, match="cannot be read: JSONDecodeError"):
        http.post(server.url, "x")


@pytest.mark.parametrize("data", [{}, [], "text", None])
def test_an_answer_without_what_was_asked_for_is_none(data, http):
    with answering(200, json.dumps(data)) as server, pytest.raises(ServerError, match="cannot be read"):
        http.get(server.url, "x", "weight_version")


@pytest.mark.parametrize("data", [{"results": []}, {"results": None}, {"other": 1}, "text"])
def test_a_call_that_no_worker_answered_is_a_failure(data, http):
    with answering(200, json.dumps(data)) as server, pytest.raises(ServerError, match="cannot be read"):
        http.call(server.url, "align_facts")


def test_a_call_gives_what_the_first_worker_says(http):
    with answering(200, json.dumps({"results": [{"a": 1}, {"a": 2}]})) as server:
        assert http.call(server.url, "align_facts") == {"a": 1}


def test_nobody_is_asked_whom_the_recipe_does_not_name(http, monkeypatch):
    """Neither where a server points elsewhere nor a proxy."""
    with answering(200, "{}") as other:
        monkeypatch.setenv("HTTP_PROXY", other.url)
        monkeypatch.setenv("ALL_PROXY", other.url)
        answer = 307, "", "text/plain", ("location", f"{other.url}/x")
        with answering(*answer) as server, pytest.raises(ServerError, match="gave 307"):
            Http("secret", 5.0).post(server.url, "x")
        assert len(server.seen) == 1 and not other.seen


@pytest.mark.parametrize("token", ["secret", "schlüssel"])
def test_the_token_is_said(token):
    with answering(200, "{}") as server:
        Http(token, 5.0).post(server.url, "x")
        Http(None, 5.0).post(server.url, "x")
    said, none = (headers.get("Authorization") for _, headers in server.seen)
    assert said.encode("latin-1") == f"Bearer {token}".encode() and none is None


def test_an_error_is_told_in_words(http):
    assert told(httpx.ReadTimeout("")) == "no answer in time (ReadTimeout)"
    assert told(httpx.ConnectError("all\n connections failed")) == "ConnectError: all connections failed"
    assert told(ServerError("it is ill")) == "it is ill"
    assert told(httpx.ReadError("")) == "ReadError"


def test_only_the_form_of_an_answer_is_translated():
    for error in (KeyError("a"), IndexError(), TypeError(), ValueError(), AttributeError(), UnicodeDecodeError):
        with pytest.raises(ServerError, match="cannot be read"), understood():
            raise error if isinstance(error, Exception) else UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")
    for error in (Refused("no"), httpx.ReadTimeout("late"), RuntimeError("own"), OSError("disk")):
        with pytest.raises(type(error), match=str(error)), understood():
            raise error
