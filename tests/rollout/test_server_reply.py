"""A server's reply is read whole, or refused with what it lacks."""

import copy
import math

import pytest

from align.rollout.server_http import ServerError
from align.rollout.server_reply import read_reply

PROOF = ("policy", "v1")


def body(ids=(7, 8, 9), **params):
    return {"token_ids": list(ids), "sampling_params": {"n": 2, "max_tokens": 3, "logprobs": 0, **params}}


def choice(index, ids, logprobs, reason="stop"):
    content = [{"token_id": one, "logprob": nats} for one, nats in zip(ids, logprobs, strict=True)]
    spans = [{"version": "v1", "start": 0, "end": len(ids)}]
    logged = {"logprobs": {"content": content}}
    return {"index": index, "token_ids": ids, "finish_reason": reason, "weight_versions": spans, **logged}


def whole():
    """In no order, as servers answer."""
    return {"model": "policy", "choices": [choice(1, [4, 5, 6], [-0.1, -0.2, 0.0], "length"), choice(0, [3], [-0.5])]}


def test_responses_are_in_the_order_of_their_seeds():
    found = read_reply(body(), whole(), PROOF)
    assert [one.ids for one in found.responses] == [[3], [4, 5, 6]]
    assert [one.logprobs for one in found.responses] == [[-0.5], [-0.1, -0.2, 0.0]]
    assert [one.truncated for one in found.responses] == [False, True]
    assert found.logprobs.prompt == [] and found.logprobs.following == {}


def spoilt(change):
    reply = copy.deepcopy(whole())
    change(reply)
    return reply


SPOILS = {
    "a response less": (lambda r: r["choices"].pop(), "gave 1 responses"),
    "one more": (lambda r: r["choices"].append(choice(2, [1], [-1.0])), "gave 3 responses"),
    "one twice": (lambda r: r["choices"][0].update(index=0), "not each once"),
    "none": (lambda r: r.update(choices=[]), "gave 0 responses"),
    "no choices": (lambda r: r.pop("choices"), "cannot be read: KeyError: 'choices'"),
    "choices are null": (lambda r: r.update(choices=None), "cannot be read: TypeError"),
    "no model": (lambda r: r.pop("model"), "cannot be read: KeyError: 'model'"),
    "another model": (lambda r: r.update(model="other"), "sampled from other with the weights v1, not policy with v1"),
    "other weights": (
        lambda r: r["choices"][0]["weight_versions"][0].update(version="v0"),
        "sampled from policy with the weights v0, not policy with v1",
    ),
    "weights that changed": (
        lambda r: r["choices"][0]["weight_versions"].append({"version": "v2"}),
        "the weights v1, v2, not",
    ),
    "weights unknown": (lambda r: r["choices"][0].update(weight_versions=None), "nobody knows what"),
    "broken off": (lambda r: r["choices"][0].update(finish_reason="abort"), "ended by abort"),
    "under way": (lambda r: r["choices"][0].update(finish_reason=None), "ended by None"),
    "no ids": (lambda r: r["choices"][0].update(token_ids=None), "cannot be read: TypeError"),
    "no tokens": (lambda r: r["choices"].__setitem__(1, choice(0, [], [])), "has 0 tokens, not 1 to 3"),
    "too many tokens": (lambda r: r["choices"].__setitem__(1, choice(0, [1] * 4, [-1.0] * 4)), "has 4 tokens"),
    "a token less": (lambda r: r["choices"][0]["token_ids"].pop(), "log-probabilities of 3 tokens, not"),
    "a log-probability less": (lambda r: r["choices"][0]["logprobs"]["content"].pop(), "of 2 tokens, not"),
    "those of other tokens": (
        lambda r: r["choices"][0]["logprobs"]["content"][0].update(token_id=99),
        "not of the response's own",
    ),
    "no log-probabilities": (lambda r: r["choices"][0].update(logprobs=None), "cannot be read: TypeError"),
    "-inf": (lambda r: r["choices"][0]["logprobs"]["content"][1].update(logprob=-9999.0), "-9999.0 to a token that it"),
    "nan": (lambda r: r["choices"][0]["logprobs"]["content"][1].update(logprob=math.nan), "to a token that it sampled"),
    "text": (lambda r: r["choices"][0]["logprobs"]["content"][1].update(logprob="-1"), "cannot be read: TypeError"),
}


@pytest.mark.parametrize("change, what", SPOILS.values(), ids=SPOILS)
def test_a_reply_that_is_not_whole_is_refused(change, what):
    with pytest.raises(ServerError, match=what):
        read_reply(body(), spoilt(change), PROOF)


@pytest.mark.parametrize("reply", ["Not Found", None, [], 3, {"error": "busy"}])
def test_what_is_no_reply_at_all_is_refused(reply):
    with pytest.raises(ServerError, match="cannot be read"):
        read_reply(body(), reply, PROOF)


def probe():
    one = choice(0, [5], [-0.3])
    one["logprobs"]["content"][0]["top_logprobs"] = [
        {"token_id": 6, "logprob": -1.0},
        {"token_id": 7, "logprob": -9999.0},
    ]
    said = [None, {"8": {"logprob": -0.8}, "1": {"logprob": -0.1}}, {"9": {"logprob": -9999.0}}]
    return {"model": "policy", "choices": [one], "prompt_logprobs": said}


def test_a_probe_tells_of_the_prompt_and_of_what_follows():
    found = read_reply(body(n=1, logprobs=2, prompt_logprobs=0), probe(), PROOF)
    assert found.logprobs.prompt == [-0.8, -math.inf]
    assert found.logprobs.following == {5: -0.3, 6: -1.0, 7: -math.inf}


def test_scores_need_no_log_probabilities_of_the_response():
    asked = body(n=1, prompt_logprobs=0)
    del asked["sampling_params"]["logprobs"]
    reply = probe()
    reply["choices"][0]["logprobs"] = None
    found = read_reply(asked, reply, PROOF)
    assert found.logprobs.prompt == [-0.8, -math.inf] and found.responses == []


@pytest.mark.parametrize(
    "change, what",
    [
        (lambda r: r.update(prompt_logprobs=None), "TypeError"),
        (lambda r: r["prompt_logprobs"].pop(), "ValueError"),
        (lambda r: r["prompt_logprobs"][1].pop("8"), "KeyError: '8'"),
        (lambda r: r["choices"][0]["logprobs"]["content"][0].pop("top_logprobs"), "KeyError: 'top_logprobs'"),
    ],
)
def test_a_probe_that_is_not_whole_is_refused(change, what):
    reply = probe()
    change(reply)
    with pytest.raises(ServerError, match=what):
        read_reply(body(n=1, logprobs=2, prompt_logprobs=0), reply, PROOF)
