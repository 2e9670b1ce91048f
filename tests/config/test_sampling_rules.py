"""Servers in a recipe: their addresses, and what goes with them. The other rules of `sampling`: test_rules."""

import pytest
from support.recipes import BASE

from align.config.recipe_file import ConfigError
from align.config.redact import scrub

LINE = BASE[: BASE.index("sampling:")].count("\n") + 4  # of the key `servers`
ONE = "http://127.0.0.1:8000"


def problems(recipe, *keys, engine="server", servers=(ONE,), **rest):
    """What is said of a recipe with these keys below its `sampling`."""
    given = {"engine": engine, "servers": f"[{', '.join(map(repr, servers))}]", **rest}
    lines = "".join(f"\n  {name}: {value}" for name, value in given.items())
    try:
        recipe(("group_size: 8", f"group_size: 8{lines}"), *keys)
    except ConfigError as error:
        return error.problems
    return []


@pytest.mark.parametrize(
    "given, kept",
    [
        (ONE, ONE),
        (f"{ONE}/", ONE),
        ("HTTP://LocalHost:8000", "http://localhost:8000"),
        ("http://node-2.cluster_a:08001", "http://node-2.cluster_a:8001"),
        ("https://10.0.0.5:443", "https://10.0.0.5:443"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_an_address_has_one_spelling(recipe, given, kept):
    found = recipe(("group_size: 8", f"group_size: 8\n  engine: server\n  servers: ['{given}']"))
    assert found.recipe.sampling.servers == [kept]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8000",
        "localhost",
        "http://h",
        "http://:80",
        "ftp://h:80",
        "http://h:0",
        "http://a b:80",
        "http://",
    ],
)
def test_what_is_no_address(recipe, url):
    [problem] = problems(recipe, servers=[url])
    assert f":{LINE}: sampling.servers.0: is no address of a server; write http://HOST:PORT" in problem


@pytest.mark.parametrize("url", ["http://h:99999", "http://h:-1", "http://h:x", "http://[::1:80"])
def test_a_port_or_a_host_that_cannot_be(recipe, url):
    [problem] = problems(recipe, servers=[url])
    assert "sampling.servers.0: " in problem and url in problem


@pytest.mark.parametrize(
    "url", ["http://me@h:80", "http://me:pa55w0rd@h:80", "http://:pa55w0rd@h:80", f"{ONE}/v1", f"{ONE}?a=1", f"{ONE}#a"]
)
def test_an_address_holds_nothing_but_an_address(recipe, url):
    [problem] = problems(recipe, servers=[url])
    assert "holds more than an address; write http://HOST:PORT, and a token as ALIGN_SERVER_TOKEN" in problem
    assert "pa55w0rd" not in scrub(problem)  # as commands print it


@pytest.mark.parametrize("value", ["http://127.0.0.1:8000", "{a: b}", "[1]", "[[http://127.0.0.1:8000]]", "null"])
def test_servers_are_a_list_of_addresses(recipe, value):
    with pytest.raises(ConfigError, match="sampling.servers"):
        recipe(("group_size: 8", f"group_size: 8\n  engine: server\n  servers: {value}"))


def test_an_engine_of_servers_needs_some(recipe):
    [problem] = problems(recipe, servers=())
    assert "sampling.servers: is empty; name those that sample" in problem
    with pytest.raises(ConfigError, match="sampling.servers: is empty"):
        recipe(("group_size: 8", "group_size: 8\n  engine: server"))


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_servers_need_the_engine_that_asks_them(recipe, engine):
    assert any("sampling.servers: need sampling.engine: server" in line for line in problems(recipe, engine=engine))


@pytest.mark.parametrize("twin", [ONE, f"{ONE}/", "http://127.0.0.1:08000"])
def test_a_server_stands_once(recipe, twin):
    [problem] = problems(recipe, servers=[ONE, "http://127.0.0.1:8001", twin])
    assert f"sampling.servers: {ONE} stands twice; keep one" in problem


def test_the_memory_of_servers_is_their_own(recipe):
    [problem] = problems(recipe, sleep="true")
    assert "sampling.sleep: the memory of servers is their own" in problem
    assert problems(recipe, sleep="false") == []


def test_servers_have_no_base_in_4_bits(recipe):
    base = ("policy: some/model", "policy: some/model\n  quantize: 4bit\n  adapter: {rank: 4}")
    said = problems(recipe, base)
    assert any("model.quantize: servers have the base as its files have it" in line for line in said), said


@pytest.mark.parametrize("seconds", ["0", "-1", "soon"])
def test_a_server_has_some_time_to_live(recipe, seconds):
    assert "sampling.liveness_s" in problems(recipe, liveness_s=seconds)[0]
