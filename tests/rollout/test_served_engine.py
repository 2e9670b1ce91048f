"""The client's side of served generation, against stand-ins that fail in every way that vLLM's servers were seen to."""

import math
import threading
import time

import pytest
from accelerate import PartialState
from support.servers import WANTED, hurry, stand_ins
from torch import nn

from align.config.recipe import Recipe
from align.config.sampling_keys import Sampling
from align.rollout import fleet
from align.rollout.generator import asked
from align.rollout.seeds import Seeds
from align.rollout.served_engine import Served
from align.rollout.server_http import ServerError

PROMPTS = [[i, i + 1, i + 2] for i in range(20)]
SEEDS = Seeds(0, [100 * i for i in range(20)])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nothing waits for long; adapters are two files."""
    PartialState(cpu=True)
    hurry(monkeypatch)


def served(servers, tell=None, place=(0, 1), **keys):
    given = dict(liveness_s=0.6, deadline_s=5.0, max_sequences=64, tolerance=1e-3)
    sampling = Sampling(engine="server", servers=[one.url for one in servers], sync="adapter", **{**given, **keys})
    recipe = Recipe.model_construct(sampling=sampling)
    said = [] if tell is None else tell
    return Served(recipe, nn.Linear(1, 1), WANTED, place, "recipe.yaml", said.append)


def sample(engine, n=4, temperature=1.0, prompts=PROMPTS, seeds=SEEDS):
    found = engine.generate(prompts, n=n, temperature=temperature, max_tokens=8, seeds=seeds)
    return [[response.ids for response in group] for group in found]


@pytest.fixture
def two():
    with stand_ins(2) as servers:
        yield servers


@pytest.fixture
def right(two):
    """What the servers say where nothing fails."""
    engine = served(two)
    found = sample(engine)
    engine.close()
    for one in two:
        one.served.clear()
    return found


def test_ids_go_in_and_come_out_and_both_servers_work(two):
    engine = served(two)
    found = sample(engine)
    assert len(found) == 20 and all(len(group) == 4 for group in found)
    assert sorted(one for server in two for one in server.served) == sorted(map(tuple, PROMPTS))
    assert all(len(server.served) > 2 for server in two)
    assert engine.settings == asked(Sampling(), 1.0, 8)


def test_a_group_larger_than_the_server_takes_has_the_seeds_of_one_request(two):
    whole, parts = served(two), served(two, max_sequences=3)
    assert sample(whole, n=8) == sample(parts, n=8)


def test_settings_are_those_of_the_recipe_and_what_the_server_adds(two):
    support = dict(top_p=0.9, top_k=7, stop=["x"])
    engine = served(two, **support)
    sample(engine)
    assert engine.settings == asked(Sampling(**support), 1.0, 8)
    sample(engine, temperature=0.0, n=1)
    assert engine.settings == asked(Sampling(**support), 0.0, 8)
    two[0].facts["added"] = {"logits_processors": "['penalty']"}
    engine.sync(None)
    sample(engine)
    assert engine.settings["logits_processors"] == "['penalty']"


@pytest.mark.parametrize("fault", ["dead", "500", "hang", "abort"])
def test_requests_of_a_server_that_fails_go_elsewhere(fault, two, right):
    """The same tokens as without the fault; what was answered before it counts once."""
    told = []
    engine = served(two, told)
    engine._fleet.limits = fleet.Limits(0.6, 5.0, 8, 0, 1)  # few at once
    two[1].fault, two[1].after, two[0].seconds, two[1].seconds = fault, 2, 0.02, 0.02
    start = time.monotonic()
    assert sample(engine, n=4) == right
    assert time.monotonic() - start < 4
    assert any(two[1].url in line and "lost" in line for line in told)


def test_a_server_that_answers_again_is_asked_again(two, right):
    told = []
    engine = served(two, told)
    engine.sync(None)
    two[1].fault = "hang"
    threading.Timer(1.5, lambda: setattr(two[1], "fault", None)).start()
    two[0].seconds = 0.3
    engine._fleet.limits = fleet.Limits(0.6, 5.0, 8, 0, 1)  # few at once, so that there is work left for it
    assert sample(engine) == right
    assert any("is back" in line for line in told)


def test_a_server_that_was_restarted_gets_the_policy_before_it_is_asked(two, right):
    engine = served(two)
    engine.sync(None)
    two[1].restart()
    two[0].seconds, name = 0.1, engine._fleet.current
    engine._fleet.limits = fleet.Limits(0.6, 5.0, 8, 0, 1)
    assert sample(engine) == right  # it gives 404 for an adapter that it does not know
    assert name in two[1].adapters


def test_one_server_alone_is_waited_for(two, right):
    engine = served(two[:1])
    engine.sync(None)
    two[0].fault = "dead"
    threading.Timer(0.5, two[0].restart).start()
    assert sample(engine) == right


def test_a_server_that_comes_back_with_other_weights_is_refused(two):
    """What it says of the tokens of the newest check is compared with what the others said."""
    engine = served(two)
    engine.sync(None)
    assert set(engine.answers([1, 2, 3], temperature=1.0)) == {one.url for one in two}
    two[1].restart()
    two[1].gap, two[0].seconds = 0.5, 0.1
    engine._fleet.limits = fleet.Limits(0.6, 5.0, 8, 0, 1)
    sample(engine)
    [state] = [server for server in engine._fleet.servers if server.url == two[1].url]
    assert state.weights is None and "otherwise" in state.why


def test_where_no_server_is_left_each_is_named_with_the_command_that_starts_it(two):
    engine = served(two, deadline_s=1.0)
    two[0].fault, two[1].fault = "dead", "hang"
    with pytest.raises(ServerError) as raised:
        sample(engine)
    text = str(raised.value)
    assert "no server has answered for 0.9 s" in text
    for one in two:
        port = one.url.rpartition(":")[2]
        assert f"{one.url}: " in text and f"PORT={port} bash launch/serve.sh recipe.yaml" in text
    assert "--resume" in text


def test_a_request_that_no_server_takes_is_not_asked_again(two, monkeypatch):
    engine = served(two)
    for one in two:
        monkeypatch.setattr(one, "generate", lambda body: (400, {"error": {"message": "too long"}}))
    with pytest.raises(ServerError, match="too long"):
        sample(engine)


def test_a_server_that_was_restarted_too_small_is_lost_and_the_request_is_right(two, right):
    """It says 400 to a request that the others take."""
    told = []
    engine = served(two, told)
    two[1].facts["context"], two[0].seconds = 40, 0.02
    two[1].generate = lambda body: (400, {"error": {"message": "maximum context length is 40"}})
    assert sample(engine) == right
    assert any(f"{two[1].url}: lost: it takes 40 tokens" in line for line in told)


def test_a_busy_server_is_not_taken_for_one_that_hangs(two, right):
    """It comes to no probe in time, and gives tokens meanwhile."""
    told = []
    engine = served(two, told, liveness_s=0.3)
    stop = threading.Event()

    def count():
        while not stop.wait(0.02):
            two[1].tokens += 1

    threading.Thread(target=count, daemon=True).start()
    two[0].seconds = two[1].seconds = 0.8
    found = sample(engine, prompts=PROMPTS[:4], seeds=Seeds(0, SEEDS.requests[:4]))
    stop.set()
    assert found == right[:4]
    assert not [line for line in told if two[1].url in line]


@pytest.mark.parametrize(
    "facts, what",
    [
        ({"model": {"model_type": "llama", "vocab_size": 64}}, "another model: vocab_size 64 instead of 128"),
        ({"vllm": "0.33.1"}, "runs vLLM 0.33.1, and here is 0.32.0"),
        ({"dtype": "bfloat16"}, "its dtype is bfloat16 instead of float32"),
        ({"context": 40}, "takes 40 tokens"),
        ({"logprobs_mode": "raw_logprobs"}, "its logprobs_mode is raw_logprobs"),
        ({"max_logprobs": 20}, "tells 20 log-probabilities of a token, not 65"),
        ({"sequences": 4}, "works on 4 responses at once"),
        ({"in_parts": True}, "in parts"),
        ({"lora_rank": None}, "adapters of rank 4, and it takes none"),
        ({"lora_rank": 1}, "it takes up to rank 1"),
    ],
)
def test_another_server_than_the_recipe_needs_is_not_asked(facts, what, two):
    two[1].facts |= facts
    told = []
    engine = served(two, told)
    sample(engine)
    assert not two[1].served and any(what in line for line in told)
    with pytest.raises(ServerError, match="no server"):
        served(two[1:])


def test_a_server_to_which_another_run_gave_its_weights_is_not_asked(two, right):
    two[1].weights = "policy-other-v3"
    told = []
    engine = served(two, told)
    assert sample(engine) == right
    assert not two[1].served and any("policy-other-v3" in line for line in told)
    two[1].weights = "default"
    engine.sync(None)
    two[1].weights = "policy-other-v4"  # in the middle of a run
    assert sample(engine) == right
    assert any("it sampled from" in line and "policy-other-v4" in line for line in told)


def test_two_versions_of_an_adapter_stay_and_each_has_its_name(two):
    engine = served(two)
    names = []
    for _ in range(4):
        engine.sync(None)
        names.append(engine._fleet.current)
    assert [list(one.adapters) for one in two] == [names[-2:]] * 2
    engine.close()
    assert not two[0].adapters and not two[1].adapters


def test_the_token_of_the_environment_is_sent(two, monkeypatch):
    for one in two:
        one.token = "secret"
    with pytest.raises(ServerError, match="ALIGN_SERVER_TOKEN"):
        served(two)
    monkeypatch.setenv("ALIGN_SERVER_TOKEN", "secret")
    assert sample(served(two))


def test_what_was_computed_of_a_prompt_is_kept_until_it_is_forgotten(two, monkeypatch):
    salts, generate = [], two[0].generate

    def noted(body):
        salts.extend([body["cache_salt"]] if "cache_salt" in body else [])
        return generate(body)

    monkeypatch.setattr(two[0], "generate", noted)
    engine = served(two[:1])
    for _ in range(2):
        sample(engine)
    engine.forget()
    sample(engine)
    assert len(set(salts[:40])) == 1 and len(set(salts)) == 2


def test_log_probabilities_of_a_prompt_and_of_what_follows(two):
    engine = served(two)
    found = engine.logprobs([1, 2, 3], temperature=0.7)
    assert found.prompt == [-0.2, -0.3] and found.following[5] == -math.inf and len(found.following) == 2
    assert engine.score([[1, 2, 3], [4, 5]]) == [[-0.2, -0.3], [-0.5]]


def test_ranks_check_all_servers_together():
    with stand_ins(3) as servers:
        engine = served(servers)

        def part(rank, ranks):
            engine._rank, engine._ranks = rank, ranks
            return set(engine.answers([1, 2], temperature=1.0))

        assert part(0, 2) | part(1, 2) == {one.url for one in servers} and not part(0, 2) & part(1, 2)
        many = [part(rank, 5) for rank in range(5)]
        assert all(many) and set.union(*many) == {one.url for one in servers}


def test_generate_runs_in_a_thread_of_its_own(two, right):
    engine, found = served(two), []
    thread = threading.Thread(target=lambda: found.append(sample(engine)))
    thread.start()
    thread.join(10)
    assert found == [right]
