"""Read the reply of a vLLM server to a request for tokens: whole, or an error that says what it lacks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align.data.prompts import Response
from align.rollout.generator import SamplerLogprobs
from align.rollout.server_http import ServerError, understood

NEVER = -9999.0  # what a server says instead of -inf and NaN, which JSON does not have


@dataclass(frozen=True)
class Reply:
    """What a server says; nothing of what it was not asked for."""

    responses: list[Response]  # in order
    logprobs: SamplerLogprobs  # of the prompt, and of what follows it


def read_reply(body: Mapping[str, Any], reply: Any, proof: tuple[str, str]) -> Reply:
    """The reply to a request, sampled from `proof`: (the model, the version of its weights). Raises `ServerError` where
    it was sampled from another one, or is not whole."""
    params = body["sampling_params"]
    with understood():
        choices = sorted(reply["choices"], key=lambda choice: choice["index"])
        if [choice["index"] for choice in choices] != list(range(params["n"])):
            raise ServerError(f"it gave {len(choices)} responses, or not each once; asked for {params['n']}")
        for choice in choices:
            _check(choice, params["max_tokens"], reply["model"], proof)
        logged = [_content(choice) for choice in choices] if "logprobs" in params else []
        following = _following(logged[0][0]) if logged and params["logprobs"] else {}
        responses = [_response(choice, said) for choice, said in zip(choices, logged, strict=True)] if logged else []
        prompt = _prompt(body["token_ids"], reply["prompt_logprobs"]) if "prompt_logprobs" in params else []
    return Reply(responses, SamplerLogprobs(prompt, following))


def _check(choice: Mapping[str, Any], most: int, model: str, proof: tuple[str, str]) -> None:
    """Raise `ServerError` where a response was not ended as one is, or not sampled from the policy."""
    if choice["finish_reason"] not in ("stop", "length"):
        raise ServerError(f"a response was ended by {choice['finish_reason']}")
    versions = {span["version"] for span in choice["weight_versions"] or ()}
    if (model, versions) != (proof[0], {proof[1]}):
        had = ", ".join(sorted(versions)) or "nobody knows what"
        raise ServerError(f"it sampled from {model} with the weights {had}, not {proof[0]} with {proof[1]}")
    if not 0 < len(choice["token_ids"]) <= most:
        raise ServerError(f"a response has {len(choice['token_ids'])} tokens, not 1 to {most}")


def _content(choice: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What is said of each token of a response."""
    content = choice["logprobs"]["content"]
    if [said["token_id"] for said in content] != choice["token_ids"]:
        raise ServerError(f"it has log-probabilities of {len(content)} tokens, not of the response's own")
    return content


def _response(choice: Mapping[str, Any], content: Sequence[Mapping[str, Any]]) -> Response:
    logprobs = [said["logprob"] for said in content]
    if not all(NEVER < value < math.inf for value in logprobs):
        raise ServerError(f"it gave the log-probability {min(logprobs)} to a token that it sampled")
    return Response(choice["token_ids"], logprobs, choice["finish_reason"] == "length")


def _following(said: Mapping[str, Any]) -> dict[int, float]:
    return {one["token_id"]: _nats(one["logprob"]) for one in (said, *said["top_logprobs"])}


def _prompt(ids: Sequence[int], said: Sequence[Mapping[str, Any]]) -> list[float]:
    return [_nats(position[str(token)]["logprob"]) for token, position in zip(ids[1:], said[1:], strict=True)]


def _nats(said: float) -> float:
    return -math.inf if said <= NEVER else said
