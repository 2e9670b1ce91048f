"""Served generation with servers that answer, and wrongly; and with all of them gone for a while."""

import threading
import time
from itertools import count

import pytest
from accelerate import PartialState
from support.servers import WANTED, hurry, stand_ins
from torch import nn

from align.config.recipe import Recipe
from align.config.sampling_keys import Sampling
from align.rollout import server_weights
from align.rollout.seeds import Seeds
from align.rollout.served_engine import Served
from align.rollout.server_http import ServerError

FEW = WANTED | {"sequences": 8}
PROMPTS = [[i, i + 1, i + 2] for i in range(12)]
SEEDS = Seeds(0, [100 * i for i in range(12)])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    PartialState(cpu=True)
    hurry(monkeypatch)


def served(servers, lines=None, **keys):
    given = dict(liveness_s=0.6, deadline_s=6.0, max_sequences=8, tolerance=1e-3)
    sampling = Sampling(engine="server", servers=[one.url for one in servers], sync="adapter", **{**given, **keys})
    tell = (lambda line: None) if lines is None else lines.append
    return Served(Recipe.model_construct(sampling=sampling), nn.Linear(1, 1), FEW, (0, 1), "recipe.yaml", tell)


def sample(engine):
    found = engine.generate(PROMPTS, n=4, temperature=1.0, max_tokens=8, seeds=SEEDS)
    return [[(response.ids, response.logprobs) for response in group] for group in found]


@pytest.fixture
def two():
    with stand_ins(2) as servers:
        yield servers


def token(choice):
    return choice["logprobs"]["content"][0]


SPOILS = {
    "a response less": lambda reply: reply["choices"].pop(),
    "no token ids": lambda reply: reply["choices"][0].pop("token_ids"),
    "a token less": lambda reply: reply["choices"][0]["token_ids"].pop(),
    "no log-probabilities": lambda reply: reply["choices"][0].update(logprobs=None),
    "-inf": lambda reply: token(reply["choices"][0]).update(logprob=-9999.0),
    "another model": lambda reply: reply.update(model="other"),
    "an error in place of it": lambda reply: (reply.clear(), reply.update(error={"message": "busy"})),
}


def spoil(server, change, asked=lambda reply: len(reply["choices"]) == 4):
    """Change each reply to a request for four responses; probes stay right."""

    def spoilt(reply):
        if asked(reply):
            change(reply)
        return reply

    server.spoil = spoilt


@pytest.mark.parametrize("change", SPOILS.values(), ids=SPOILS)
def test_a_reply_that_is_not_whole_is_asked_of_another_server(change, two):
    lines = []
    engine = served(two, lines)
    right = sample(engine)
    two[0].seconds = 0.02
    spoil(two[1], change)
    assert sample(engine) == right
    assert any(line.startswith(f"{two[1].url}: lost: ") for line in lines)


def test_a_server_whose_replies_are_never_whole_is_named_in_time(two):
    engine = served(two[:1], deadline_s=1.2)
    spoil(two[0], SPOILS["no token ids"])
    start = time.monotonic()
    with pytest.raises(ServerError, match=f"{two[0].url}: its answer cannot be read"):
        sample(engine)
    assert time.monotonic() - start < 4


@pytest.mark.parametrize("facts", [None, "text", {}, {"vllm": "0.32.0"}])
def test_a_server_that_does_not_say_what_it_is_is_not_asked(facts, two):
    lines = []
    two[1].facts = facts
    sample(served(two, lines))
    assert not two[1].served and any(line.startswith(f"{two[1].url}: ") for line in lines)


def test_a_group_larger_than_a_server_takes_is_asked_in_parts(two):
    """vLLM refuses a request for more responses than max_num_seqs."""
    sizes, before = [], two[0].generate

    def noted(body):
        sizes.append(body["sampling_params"].get("n", 1))
        return before(body)

    two[0].generate = noted
    found = served(two[:1]).generate(PROMPTS[:1], n=19, temperature=1.0, max_tokens=8, seeds=Seeds(0, [5]))
    assert sorted(sizes) == [3, 8, 8] and len(found[0]) == 19


def test_scores_come_from_another_server_where_one_fails_on_the_way(two):
    engine = served(two)
    right = engine.score(PROMPTS)
    before, asked = two[0].generate, count()
    two[0].generate = lambda body: (500, {"error": "ill"}) if next(asked) == 3 else before(body)
    assert engine.score(PROMPTS) == right
    assert not engine.score([])


@pytest.mark.parametrize("ask", ["score", "answers"])
def test_a_check_waits_for_a_server_that_is_started_again(ask, two):
    engine = served(two[:1])
    engine.sync(None)
    right = engine.score(PROMPTS[:2])
    two[0].fault = "dead"
    threading.Timer(0.6, two[0].restart).start()
    if ask == "score":
        assert engine.score(PROMPTS[:2]) == right
    else:
        assert engine.answers(PROMPTS[0], temperature=1.0)[two[0].url].logprobs.prompt == right[0]


def test_a_sync_waits_for_a_server_that_is_started_again(two):
    lines = []
    engine = served(two, lines)
    two[0].fault = two[1].fault = "dead"
    threading.Timer(0.6, two[1].restart).start()
    engine.sync(None)
    assert [server.url for server in engine._fleet.ready] == [two[1].url]
    assert len([line for line in lines if "waiting for one of them" in line]) == 1
    assert sample(engine)


def test_a_sync_without_any_server_names_each_in_time(two):
    engine = served(two, deadline_s=1.8)
    two[0].fault, two[1].fault = "dead", "hang"
    start = time.monotonic()
    with pytest.raises(ServerError) as raised:
        engine.sync(None)
    assert 0.5 < time.monotonic() - start < 5
    assert all(f"{one.url}: " in str(raised.value) for one in two) and "launch/serve.sh" in str(raised.value)


def test_another_rank_looks_at_no_server_before_a_sync(two):
    engine = served(two)
    two[0].seen.clear()
    engine._rank = engine._way._rank = 1
    with pytest.raises(KeyError):  # the states that the first rank would tell
        engine.sync(None)
    assert not two[0].seen


def test_tables_that_are_not_whole_lose_the_server(two):
    before = two[1].call
    two[1].call = lambda method, arguments: (
        {"head": "AAAA"} if method == "align_vocabulary" else before(method, arguments)
    )
    assert set(served(two).answers([1, 2], temperature=1.0)) == {two[0].url}


@pytest.mark.parametrize("fault", ["dead", "hang"])
def test_a_run_ends_though_a_server_does_not_answer(fault, two, monkeypatch):
    monkeypatch.setattr(server_weights, "CONNECT_S", 0.1)
    engine = served(two, deadline_s=60.0)
    engine.sync(None)
    two[1].fault, start = fault, time.monotonic()
    engine.close()
    assert time.monotonic() - start < 3 and not two[0].adapters


def test_what_all_ranks_know_the_first_one_tells_and_each_tells_what_it_lost(two):
    lines = []
    engine = served(two, lines)
    engine._rank = 1
    engine._has("v2", {two[0].url: None, two[1].url: "it is ill"})
    assert not lines
    engine._fleet.lose(engine._fleet.servers[0], "it hangs")
    assert lines == [f"{two[0].url}: lost: it hangs; its requests go to the other servers"]
