"""Whoever does not say the token gets nothing of a server, whatever path is asked."""

import asyncio

import pytest

from align.rollout.server_token import Guard, token


def answered(headers, kind="http", path="/inference/v1/generate"):
    """What the guard sends for a request, and whether the server behind it was asked."""
    sent, asked = [], []

    async def app(scope, receive, send):
        asked.append(scope["path"])

    async def send(message):
        sent.append(message)

    asyncio.run(Guard(app)({"type": kind, "path": path, "headers": headers}, None, send))
    return sent, asked


@pytest.fixture
def secret(monkeypatch):
    monkeypatch.setenv("ALIGN_SERVER_TOKEN", "secret")


@pytest.mark.parametrize("value", ["", " ", "\n"])
def test_without_a_token_all_pass(value, monkeypatch):
    monkeypatch.delenv("ALIGN_SERVER_TOKEN", raising=False)
    assert token() is None
    monkeypatch.setenv("ALIGN_SERVER_TOKEN", value)
    assert token() is None and answered([]) == ([], ["/inference/v1/generate"])


def test_a_line_end_behind_a_token_is_none_of_it(monkeypatch):
    """No header can have one: `TOKEN=$(cat file)` and a file of an environment differ by it."""
    monkeypatch.setenv("ALIGN_SERVER_TOKEN", " secret\n")
    assert token() == "secret"


@pytest.mark.parametrize("path", ["/health", "/inference/v1/generate", "/pause", "/collective_rpc", "/metrics", "/"])
def test_the_token_opens_every_path_and_nothing_else_does(secret, path):
    assert answered([(b"host", b"h"), (b"authorization", b"Bearer secret")], path=path) == ([], [path])
    for said in (b"Bearer other", b"Bearer secre", b"Bearer secrett", b"secret", b"Basic secret", b""):
        sent, asked = answered([(b"authorization", said)], path=path)
        assert sent[0]["status"] == 401 and not asked
    sent, asked = answered([], path=path)
    assert sent[0]["status"] == 401 and not asked


def test_a_refusal_names_the_variable_and_not_the_token(secret):
    sent, _ = answered([])
    body = sent[1]["body"]
    assert b"ALIGN_SERVER_TOKEN" in body and b"secret" not in body
    assert dict(sent[0]["headers"])[b"content-length"] == str(len(body)).encode()


def test_a_websocket_is_closed_and_the_start_of_a_server_is_let_pass(secret):
    assert answered([], kind="websocket")[0] == [{"type": "websocket.close", "code": 1008}]
    assert answered([], kind="lifespan") == ([], ["/inference/v1/generate"])
