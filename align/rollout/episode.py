"""An episode under way: its tokens only grow, by what the policy says and by what its environment answers.

What was sampled is never tokenised again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from align.data.prompts import POLICY, Ended, Episode, Prompt, Response, Turn
from align.data.templates import end_behind, end_texts, heard
from align.data.turns import hash_of
from align.environments.calls import parse_reply
from align.environments.contract import Message, Observation, Outcome, Reply
from align.environments.nursery import Instance
from align.rollout.environments import Environment, Environments


def said(reply: Reply) -> dict[str, Any]:
    """A turn of the policy as a message, with its calls as TRL has them."""
    calls = [{"type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in reply.calls]
    return {"role": POLICY, "content": reply.text, **({"tool_calls": calls} if calls else {})}


def heard_as(message: Message) -> dict[str, Any]:
    """What an environment said as a message."""
    return {"role": message.role, **({"name": message.name} if message.name else {}), "content": message.content}


def text_behind(
    told: Sequence[dict[str, Any]], prompt: Prompt, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]
) -> str:
    """What stands behind a turn of the policy where an environment said these messages, of a prompt of text as it is.

    Raises `ValueError` where the chat template does not take them.
    """
    if not prompt.conversational:
        return "".join(message["content"] for message in told)
    texts = end_texts(tokenizer, ends)
    return heard(tokenizer, told, said_call=told[0].get("name"), ends=texts, variables=prompt.variables)


@dataclass
class Live:
    """One episode."""

    group: int
    index: int
    prompt: Prompt
    environment: Environment
    instance: Instance
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    anchor: str | None = None  # name of the state before the next turn, where the environment names it
    rewards: list[float] = field(default_factory=list)  # of turns, before the weight
    outcome: Outcome | None = None
    success: bool | None = None
    calls: int = 0
    failed_calls: int = 0
    cut: bool = False  # the newest turn, by a limit on tokens
    ended: Ended | None = None
    why: str | None = None

    def fail(self, where: str, why: str) -> None:
        """Break off: the episode takes no part."""
        self.ended, self.why = "failed", f"{where}: {why}"

    def say(self, response: Response, tokenizer: PreTrainedTokenizerBase) -> Reply:
        """Append what the policy said in a turn; the reply that the environment gets."""
        start, offers = len(self.ids), self.environment.offers
        state = None if self.anchor is None else hash_of(self.anchor)
        text = tokenizer.decode(response.ids, skip_special_tokens=False)
        if offers.contract == "tools":
            reply = Reply(*parse_reply(tokenizer, response.ids, [*self.prompt.ids, *self.ids], offers.tools))
        else:
            reply = Reply(tokenizer.decode(response.ids, skip_special_tokens=True))
        self.cut = response.truncated
        self.ids += response.ids
        self.logprobs += response.logprobs
        self.turns.append(Turn(POLICY, start, len(self.ids), text, state=state))
        self.messages.append(said(reply))
        return reply

    def hear(self, answer: Observation, environments: Environments) -> None:
        """Take in what the environment answered: append it for the next turn, or end the episode."""
        keys, budget = self.environment.keys, environments.sampling.max_response_tokens
        if answer.reward is not None:
            self.rewards.append(answer.reward)
            self.turns[-1] = replace(self.turns[-1], reward=keys.weight * answer.reward)
        told = [heard_as(message) for message in answer.messages]
        self.messages += told
        self.calls += answer.calls
        self.failed_calls += answer.failed_calls
        self.anchor = answer.anchor
        self.success = self.success if answer.success is None else answer.success
        if answer.ended:  # of tools by a turn without a call, which one that was cut did not come to
            self.ended = "budget" if self._unfinished else answer.ended
        elif sum(turn.role == POLICY for turn in self.turns) == keys.max_turns:
            self.ended = "max_turns"
        elif len(self.ids) == budget:
            self.ended = "budget"
        else:
            self._append(told, environments)

    @property
    def _unfinished(self) -> bool:
        """Whether the newest turn was cut and is not what the policy meant to say: an environment of text hears any."""
        return self.cut and self.environment.offers.contract == "tools"

    def _append(self, told: Sequence[dict[str, Any]], environments: Environments) -> None:
        """Append the tokens of what the environment said; where no token would fit behind them, end instead."""
        tokenizer, ends, prompt = environments.tokenizer, environments.ends, self.prompt
        try:
            text = text_behind(told, prompt, tokenizer, ends)
            if prompt.conversational and self.ids[-1] not in ends:  # cut, so the policy did not choose its end
                text = end_behind(tokenizer, ends=end_texts(tokenizer, ends), variables=prompt.variables) + text
        except ValueError as error:
            self.fail("step", f"the chat template does not take what it said: {error}")
            return
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(self.ids) + len(ids) >= environments.sampling.max_response_tokens:
            self.ended = "budget"
            return
        self.turns.append(Turn(told[-1]["role"], len(self.ids), len(self.ids) + len(ids), text))
        self.ids += ids
        self.logprobs += [0.0] * len(ids)

    def response(self) -> Response:
        """The episode as a response."""
        earned = self.outcome.reward if self.outcome else None
        reward = sum(self.rewards) if self.rewards else earned
        episode = Episode(
            environment=self.environment.name,
            ended=self.ended,
            messages=self.messages,
            reward=None if self.why else reward,
            success=self.success,
            calls=self.calls,
            failed_calls=self.failed_calls,
            attributes=self.outcome.attributes if self.outcome else {},
            why=self.why,
        )
        cut = self.ended in ("budget", "truncated") or (self._unfinished and self.why is None)
        return Response(self.ids, self.logprobs, cut, tuple(self.turns), episode)
