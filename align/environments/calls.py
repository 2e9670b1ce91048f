"""Calls of tools as a model writes them: whether they can be read with its chat template, and how."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

from pydantic_core import to_jsonable_python
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import add_response_schema, parse_response, supports_tool_calling

from align.data.templates import append_only
from align.environments.contract import Call
from align.model.chat_template import TRL, read, trl_templates

# of a text that a template writes: <|im_start|>, <|turn>, <turn|>, <start_of_turn>, [INST], <s>
SPECIAL = re.compile(r"<[|｜][^<>\s]*>|<[^<>\s]*[|｜]>|</?(?:start|end)_of_\w+>|\[/?(?:INST|gMASK)\]|</?s>")

# A tool of no template's, and a conversation that calls it.
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add one.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "description": "What to add to."}},
            "required": ["a"],
        },
    },
}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 1 + 1?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
    },
    {"role": "tool", "name": "add", "content": "2"},
]


def response_schema_problem(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Why calls of tools cannot be read with the tokenizer's chat template, with those that TRL ships which would do;
    None where they can.

    The tokenizer stays as it is: `add_response_schema` of TRL gives it the schema that `parse_reply` needs.
    """
    if not supports_tool_calling(tokenizer):
        why = "the chat template writes no calls of tools"
    elif not _readable(tokenizer):
        why = "TRL has no schema by which calls of tools are read from what this chat template makes a model write"
    else:
        return None
    fit = [f"{TRL}{name}" for name in fitting(tokenizer)]
    fix = f"write model.chat_template: {' or '.join(fit)}" if fit else "none that TRL ships fits this tokenizer"
    return f"{why}; {fix}"


def fitting(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Names of the templates that TRL ships with which this tokenizer's model can call tools in several turns, the one
    that writes least first.

    Their special tokens are single ones of its vocabulary, a turn ends with its end token, and TRL reads their calls.
    """
    out, vocabulary = {}, tokenizer.get_vocab()
    for name in trl_templates():
        other = copy(tokenizer)
        other.chat_template = read(f"{TRL}{name}")
        if not _readable(other) or not supports_tool_calling(other):
            continue
        text = other.apply_chat_template(TALK, tools=[ADD], tokenize=False, add_generation_prompt=True)
        known = all(token in vocabulary for token in SPECIAL.findall(text))
        if known and append_only(other, [ADD], ends=[tokenizer.eos_token], variables={}) is None:
            out[name] = len(text)
    return sorted(out, key=out.get)


def parse_reply(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    prompt_ids: Sequence[int],
    tools: Sequence[Mapping[str, Any]],
) -> tuple[str, tuple[Call, ...]]:
    """(text, calls) of a turn of the policy, `ids` behind `prompt_ids`; what cannot be read as calls is all text.

    The tokenizer has the schema that TRL's `add_response_schema` gives it.
    """
    if not ids:  # TRL takes an empty list for several responses
        return "", ()
    try:
        found = parse_response(tokenizer, [*ids], prefix=[*prompt_ids], tools=[*tools])
        calls = tuple(_call(call) for call in found.get("tool_calls") or ())
        pickle.dumps(calls)  # as they travel to the environment
        to_jsonable_python(calls)  # and as they are kept
    except (KeyError, RecursionError, ValueError):  # a call lacks a key of the schema; JSON is nested too deep
        return tokenizer.decode([*ids], skip_special_tokens=True), ()
    return found["content"], calls


def _call(found: Mapping[str, Any]) -> Call:
    """A call as TRL's loop takes it: one that is no function's is named by itself."""
    kind = found.get("type")
    if kind != "function":
        return Call(str(found.get("name", "unknown")), {}, str(kind))
    function = found.get("function", found)
    return Call(function["name"], function["arguments"])


def _readable(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether TRL has a schema for the tokenizer's chat template."""
    try:
        add_response_schema(copy(tokenizer))
    except ValueError:
        return False
    return True
