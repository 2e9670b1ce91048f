"""What a chat template writes around the turns of an episode, and whether it only ever appends.

An episode's tokens are those that the policy chose, and in between those of what others said, each stretch tokenised by
itself. So only the text that a template writes behind a turn is asked for, never that of a whole conversation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import is_chat_template_prefix_preserving

from align.data.prompts import POLICY
from align.data.turns import behind, end_of

Message = Mapping[str, Any]

# what expressions of a template raise on messages that its author did not foresee, besides `TemplateError`
UNFORESEEN = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)

USER = {"role": "user", "content": "What is 12 + 34?"}

REWRITES = "changes earlier messages when others follow"

SAID = "I say 46."  # by the policy, where it calls nothing

THOUGHT = "first 2 and 4"  # by the policy, before an earlier turn


def end_texts(tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> list[str]:
    """The texts of the tokens that end a turn of the policy; one without a text is left out."""
    return [text for token in ends if (text := tokenizer.decode([token]))]


def heard(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    said_call: str | None,
    ends: Collection[str],
    variables: Mapping[str, Any],
) -> str:
    """The text behind the policy's turn, its end token, for what others say then: up to where the policy goes on.

    A made-up conversation is written twice, without `messages` and with them. The policy's turn in it calls the tool
    `said_call`, or none. `ends` are the texts of end tokens, `variables` those of the template.

    Raises `ValueError`, with the reason in words, where the template rewrites the turn once something follows, writes
    no end token behind it, leaves out the call, or refuses the messages.
    """
    spoken = [USER, _call(said_call) if said_call else {"role": POLICY, "content": SAID}]
    until = _until(_render(tokenizer, spoken, False, variables), spoken, said_call or SAID, ends)
    whole = _render(tokenizer, [*spoken, *messages], True, variables)
    return behind(until, whole, REWRITES)


def end_behind(tokenizer: PreTrainedTokenizerBase, *, ends: Collection[str], variables: Mapping[str, Any]) -> str:
    """The text of the token with which the template ends a turn of the policy, one of `ends`. Raises `ValueError`."""
    spoken = [USER, {"role": POLICY, "content": SAID}]
    until = _until(_render(tokenizer, spoken, False, variables), spoken, SAID, ends)
    return next(text for text in ends if until.endswith(text))


def append_only(
    tokenizer: PreTrainedTokenizerBase,
    tools: Sequence[Mapping[str, Any]],
    *,
    ends: Collection[str],
    variables: Mapping[str, Any],
) -> str | None:
    """Why the template is no good for several turns; None where it only appends.

    A conversation of three turns is written up to each of them: with calls of the first of `tools` and their results
    where there are any, else of texts, in which the policy thinks aloud before it answers.
    """
    if tools and not _preserving(tokenizer):
        return "the chat template changes a call of a tool once its result follows"
    variables = {**variables, "tools": [*tools]} if tools else variables
    name = str(tools[0]["function"]["name"]) if tools else None
    talk, written = [USER], ""
    follows = {"role": "tool", "name": name, "content": "It is 46."} if name else {"role": "user", "content": "Why?"}
    try:
        for turn in range(3):
            behind(written, _render(tokenizer, talk, True, variables), REWRITES)
            said, mark = _turn(turn, name)
            talk = [*talk, said]
            written = _until(_render(tokenizer, talk, False, variables), talk, mark, ends)
            heard(tokenizer, [follows], said_call=name, ends=ends, variables=variables)
            talk = [*talk, follows]
        whole = _render(tokenizer, talk, True, variables)
        behind(written, whole, REWRITES)
    except ValueError as error:
        return str(error)
    if not name and THOUGHT not in whole:
        return "the chat template drops what the policy thought in earlier turns"
    return None


def _turn(turn: int, name: str | None) -> tuple[Message, str]:
    """(a message of the policy, the last text of it that the template must write)."""
    if name:
        return _call(name), name
    content = f"{SAID} {turn}"
    return {"role": POLICY, "content": f"<think>\n{THOUGHT}\n</think>\n\n{content}"}, content


def _until(text: str, talk: Sequence[Message], mark: str, ends: Collection[str]) -> str:
    """A conversation up to the end token of its last message, the policy's, in which `mark` is the last text. Raises
    `ValueError` where what was said, before it or in it, is left out."""
    asked = text.rfind(talk[-2]["content"])
    if asked < 0:
        raise ValueError(f"the chat template leaves out what the {talk[-2]['role']} says")
    said = text.rfind(mark, asked)
    if said < 0:
        what = "calls of tools" if talk[-1].get("tool_calls") else "what the policy said"
        raise ValueError(f"the chat template leaves out {what}")
    return text[: said + end_of(text[said:], ends)]


def _call(name: str) -> Message:
    """A turn that is one call without arguments."""
    call = {"type": "function", "function": {"name": name, "arguments": {}}}
    return {"role": POLICY, "content": "", "tool_calls": [call]}


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], ask: bool, variables: Mapping[str, Any]
) -> str:
    """A conversation as text, with `ask` up to where the policy goes on. Raises `ValueError` where the template refuses
    it."""
    try:
        return tokenizer.apply_chat_template([*messages], tokenize=False, add_generation_prompt=ask, **variables)
    except (TemplateError, *UNFORESEEN) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(f"the chat template refuses messages of {roles}: {error}") from error


def _preserving(tokenizer: PreTrainedTokenizerBase) -> bool:
    """TRL's own word on it; False where the template refuses calls of tools."""
    try:
        return is_chat_template_prefix_preserving(tokenizer)
    except (TemplateError, *UNFORESEEN):
        return False
