"""What the check says of the servers of a recipe, before anything expensive starts."""

from types import SimpleNamespace

import pytest
from support import tiny_model
from support.servers import WANTED, stand_ins
from support.tiny_task import RECIPE

from align.check import check
from align.check import servers as module
from align.check.check import survey
from align.check.servers import look, try_servers
from align.config.experiment import examine
from align.config.launch import Launch
from align.rollout import server_facts
from align.rollout.server_http import Http
from align.system.hardware import here


@pytest.fixture
def one():
    with stand_ins(1) as [server]:
        yield server


def said(server, seconds=1.0, token=None, **wanted):
    http = Http(token, seconds)
    try:
        return look(http, server.url, WANTED | wanted)[1]
    finally:
        http.close()


def test_a_right_server_has_nothing_wrong(one):
    assert said(one) == []
    assert "/inference/v1/generate" in one.seen and not one.served  # one token was asked for


@pytest.mark.parametrize(
    "fault, what",
    [("dead", "it cannot be reached: "), ("hang", "it hangs: no answer in time"), ("500", "it gives no token: ")],
)
def test_a_server_that_fails(one, fault, what):
    one.fault = fault
    [problem] = said(one, 0.3)
    assert problem.startswith(what)


def test_a_server_that_answers_and_gives_no_token(one):
    one.seconds = 1.0
    assert said(one, 0.3) == ["it hangs: it gives no token in time (sampling.liveness_s)"]


@pytest.mark.parametrize("ours, theirs", [("secret", None), (None, "secret"), ("other", "secret")])
def test_a_token_on_one_side(one, ours, theirs):
    one.token = theirs
    problems = said(one, token=ours)
    if theirs:
        assert problems == ["it asks for another token; set ALIGN_SERVER_TOKEN to the same on both sides"]
    else:
        assert problems == []  # who asks for none takes any


@pytest.mark.parametrize("facts", [None, "a page", [], {}, {"instance": "1"}, {"instance": "1", "vllm": "0.32.0"}])
def test_another_program_or_release_is_no_server_of_align(one, facts):
    one.facts = facts
    [problem] = said(one)
    assert "not started by launch/serve.sh" in problem or "another release of align" in problem


def test_plain_vllm_is_no_server_of_align(one, monkeypatch):
    monkeypatch.setattr(one, "answer", lambda path, body: (404, {"detail": "Not Found"}))
    [problem] = said(one)
    assert "it was not started by launch/serve.sh: /collective_rpc gave 404" in problem


def test_what_another_run_left_there(one):
    one.weights = "policy-ab-v3"
    assert said(one) == ["another run has put the weights policy-ab-v3 in place of the base's"]
    merged = {name: value for name, value in WANTED.items() if name != "lora_rank"} | {"backend": None}
    one.facts["backend"] = "gloo"
    assert look(Http(None, 1.0), one.url, merged) == ("1", [])  # all weights are brought anyway


def test_a_paused_server_is_not_asked_for_a_token(one):
    one.paused = True
    assert said(one) == ["it is paused, as a run leaves it that ends while it sends weights"]
    assert "/inference/v1/generate" not in one.seen


@pytest.fixture
def problems(tmp_path, monkeypatch):
    """What is said of servers for the tiny recipe."""
    folder = tiny_model.save_model(tmp_path / "model")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder, out=tmp_path / "run", adapter=", adapter: {rank: 4, alpha: 8}"))
    monkeypatch.setattr(server_facts, "version", lambda: "0.32.0")

    def found(urls, *keys, **launch):
        keys = [f"sampling.servers=[{', '.join(urls)}]", "sampling.engine=server", "sampling.sync=adapter", *keys]
        experiment = examine(path, keys)
        assert not experiment.problems
        return try_servers(survey(experiment, Launch(hardware=here(), **launch)))

    return found


def test_each_problem_has_the_servers_line_and_the_command_that_starts_it(problems):
    with stand_ins(2) as servers:
        servers[1].fault = "dead"
        said = problems([one.url for one in servers], "sampling.liveness_s=1")
    assert len(said) == 2  # the stand-in has another model
    for i, line in enumerate(said):
        port = servers[i].url.rpartition(":")[2]
        assert f"sampling.servers.{i}: {servers[i].url}: " in line
        assert f"start it with PORT={port} bash launch/serve.sh " in line
    assert "another model" in said[0] and "cannot be reached" in said[1]


def test_each_machine_asks_for_itself_and_says_who_it_is(problems, monkeypatch):
    """A server of this machine would be another one on each."""
    monkeypatch.setattr(module, "machine_of", lambda: "node-1 (ranks 2 to 3)")
    monkeypatch.setattr(module, "look", lambda http, url, wanted: (url, ["it hangs"]))
    local, distant = problems(["http://127.0.0.1:8000", "http://10.1.2.3:8000"], machines=2, processes=4)
    assert "sampling.servers.0: http://127.0.0.1:8000: each of 2 machines would ask a server of its own" in local
    assert "start it with HOST=ADDRESS PORT=8000 bash launch/serve.sh " in local and "hangs" not in local
    assert "sampling.servers.1: http://10.1.2.3:8000: from node-1 (ranks 2 to 3): it hangs; start it" in distant


def test_one_server_under_two_addresses(problems, monkeypatch):
    monkeypatch.setattr(server_facts, "problems", lambda facts, wanted: [])
    with stand_ins(2) as servers:
        servers[1].facts["instance"] = "2"
        port = servers[0].url.rpartition(":")[2]
        said = problems([servers[0].url, servers[1].url, f"http://localhost:{port}"])
    [problem] = said
    assert f"sampling.servers.2: http://localhost:{port}: it is the same server as {servers[0].url}" in problem


def test_servers_are_asked_for_by_no_other_engine(problems, monkeypatch):
    monkeypatch.setattr(module, "look", lambda *_: pytest.fail("asked"))
    assert problems([], "sampling.engine=vllm", "sampling.sync=merged") == []


@pytest.mark.parametrize("first, asked", [(True, 1), (False, 0)])
def test_the_first_process_of_each_machine_asks(first, asked, monkeypatch):
    """Also where it is not the run's main one: what one machine reaches another may not."""
    found = SimpleNamespace(problems=[], missing_stages=[], notes=[], launch=None, experiment=None)
    monkeypatch.setattr(check, "survey", lambda *_: found)
    monkeypatch.setattr(check, "of_accelerator", lambda accelerator: None)
    monkeypatch.setattr(check, "try_servers", lambda found: ["no way there"])
    gathered = []
    monkeypatch.setattr(check, "gather_object", lambda problems: gathered.extend(problems) or ["of another rank"])
    with pytest.raises(check.CheckError, match="of another rank"):
        check.check_run(None, SimpleNamespace(is_main_process=False, is_local_main_process=first))
    assert gathered == ["no way there"] * asked
