"""Turn a row into tokens: apply the chat template, tokenise, end the responses that the data brings along."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from trl.data_utils import is_conversational, maybe_apply_chat_template, maybe_extract_prompt

from align.config.data_keys import Data
from align.config.problems import nearest, shortened
from align.data.prompts import POLICY, Answer, DataError, Pair, Prompt
from align.data.templates import end_texts
from align.data.turns import cut, tokenise_turns

Ends = Collection[int]  # ids of the tokens that end a response

# arguments of a chat template that are no variables of it, or set here
OWN = {"messages", *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters} - {"tools", "documents"}


class LongPrompt(DataError):
    """A prompt has more tokens than `data.max_prompt_tokens`."""


def make_prompt(row: dict, i: int, source: str, data: Data, tokenizer: PreTrainedTokenizerBase, ends: Ends) -> Prompt:
    """Tokenise the prompt of row `i`, text or messages; `ends` is not used (see `make_pair`). Raises `DataError`."""
    prompt, given = row["prompt"], {}
    if is_conversational({"prompt": prompt}):
        if tokenizer.chat_template is None:
            raise DataError(f"{source}: row {i}: the prompt is a conversation, but the tokenizer has no chat template")
        _check_messages(prompt[:-1] if is_open(prompt) else prompt, f"{source}: row {i}: 'prompt'")
        prompt, given = _with_system(prompt, data), variables(row, data)
        text = _templated({"prompt": prompt}, tokenizer, f"{source}: row {i}", given)["prompt"]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    elif isinstance(prompt, str):
        text = prompt
        ids = tokenizer(text)["input_ids"]
    else:
        raise DataError(f"{source}: row {i}: a conversation is a list of {{role: ..., content: ...}}")
    if len(ids) > data.max_prompt_tokens:
        raise LongPrompt(
            f"{source}: row {i}: the prompt has {len(ids)} tokens and data.max_prompt_tokens is"
            f" {data.max_prompt_tokens}; raise it or drop the row (data.long_prompts: drop): {text[:80]!r}..."
        )
    if not ids:
        raise DataError(f"{source}: row {i}: the prompt has no tokens")
    columns = {name: value for name, value in row.items() if name not in ("prompt", "completion")}
    return Prompt(list(ids), text, prompt, columns, variables=given)


def opened(prompt: Prompt, said: str, tools: Sequence[Mapping], tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """The prompt with what an environment said first behind its last message, and with the environment's tools.

    Raises `DataError` where the chat template refuses them.
    """
    if not prompt.conversational:
        text = prompt.prompt + said
        return replace(prompt, ids=list(tokenizer(text, verbose=False)["input_ids"]), text=text, prompt=text)
    *before, last = prompt.prompt
    messages = [*before, {**last, "content": (last.get("content") or "") + said}]
    text = _templated({"prompt": messages}, tokenizer, "environment", {**prompt.variables, "tools": [*tools] or None})
    ids = tokenizer(text["prompt"], add_special_tokens=False, verbose=False)["input_ids"]
    return replace(prompt, ids=list(ids), text=text["prompt"], prompt=messages)


def _with_system(prompt: list[dict], data: Data) -> list[dict]:
    """The messages, the recipe's system message first where they have none."""
    if not data.system or prompt[0]["role"] == "system":
        return prompt
    return [{"role": "system", "content": data.system}, *prompt]


def make_pair(row: dict, i: int, source: str, data: Data, tokenizer: PreTrainedTokenizerBase, ends: Ends) -> Pair:
    """Tokenise a row with `prompt`, `chosen` and `rejected`: all text, or all messages (TRL's explicit-prompt form).

    Rows may have no `rejected`, for objectives that compare nothing, such as sft. Raises `DataError`.
    """
    shared = make_prompt(row, i, source, data, tokenizer, ends)
    if shared.conversational and row["prompt"][-1]["role"] == "assistant":
        raise DataError(f"{source}: row {i}: the prompt ends with an assistant message; that is the answers' place")
    chosen = _answer(row, "chosen", i, source, data, tokenizer, ends)
    rejected = _answer(row, "rejected", i, source, data, tokenizer, ends) if "rejected" in row else None
    if rejected is not None and chosen.ids == rejected.ids:
        where = f" in their first {data.max_response_tokens} tokens" if chosen.truncated else ""
        raise DataError(f"{source}: row {i}: chosen and rejected are the same response{where}; drop the row")
    return Pair(**vars(shared), chosen=chosen, rejected=rejected, row=i)


def _answer(
    row: dict, side: str, i: int, source: str, data: Data, tokenizer: PreTrainedTokenizerBase, ends: Ends
) -> Answer:
    """Tokenise a response as it would be sampled: what the template writes behind the prompt, up to an end token."""
    given = row.get(side)
    if not isinstance(given, type(row["prompt"])) or not given:
        kind = "text" if isinstance(row["prompt"], str) else "a list of messages"
        raise DataError(f"{source}: row {i}: {side!r} must be {kind} as the prompt is, but it is {given!r}")
    text = given
    if not isinstance(given, str):
        _check_messages(given, f"{source}: row {i}: {side!r}")
        if any(message["role"] != POLICY for message in given):
            return _turns(row, given, f"{source}: row {i}: {side!r}", data, tokenizer, ends)
        messages = {"prompt": row["prompt"], "completion": given}
        where = f"{source}: row {i}: {side!r}"
        text = _templated(messages, tokenizer, where, variables(row, data))["completion"]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    end = next((t for t, token in enumerate(ids) if token in ends), None)
    ids = [*ids, tokenizer.eos_token_id] if end is None else ids[: end + 1]
    long = len(ids) > data.max_response_tokens
    return Answer(ids[: data.max_response_tokens], tokenizer.decode(ids, skip_special_tokens=True), long)


def _turns(
    row: dict, given: list[dict], where: str, data: Data, tokenizer: PreTrainedTokenizerBase, ends: Ends
) -> Answer:
    """Tokenise an answer of several turns. Raises `DataError`."""
    if given[0]["role"] != POLICY or given[-1]["role"] != POLICY:
        what = "must begin and end with an assistant message; leave out the prompt that it repeats, and what follows"
        raise DataError(f"{where} {what}")
    prompt = _with_system(row["prompt"], data)

    def render(messages: list[dict], ask: bool) -> str:
        chosen = variables(row, data)
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask, **chosen)

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    try:
        ids, turns = tokenise_turns(prompt, given, render=render, encode=encode, ends=end_texts(tokenizer, ends))
    except (TemplateError, ValueError) as error:
        raise DataError(f"{where}: several turns: {error}") from error
    long = len(ids) > data.max_response_tokens
    ids, turns = cut(ids, turns, data.max_response_tokens)
    return Answer(ids, tokenizer.decode(ids, skip_special_tokens=True), long, tuple(turns))


def with_prompt(row: Any) -> Any:
    """A row whose chosen and rejected conversations begin alike, which is their prompt (TRL's implicit-prompt form), as
    one with a `prompt`; any other row as it is."""
    if not isinstance(row, dict) or not all(_conversation(row.get(side)) for side in ("chosen", "rejected")):
        return row
    found = maybe_extract_prompt(row)
    prompts = found is not row and any(message["role"] != "assistant" for message in found["prompt"])
    return {**row, **found} if prompts else row


def variables(row: dict, data: Data) -> dict[str, Any]:
    """Variables of the chat template: the recipe's, those of a column `chat_template_kwargs`, and the tools of a column
    `tools`, both as in TRL.

    Raises `TypeError` where a column holds anything else, and `ValueError` for tools as text that is no JSON.
    """
    own = row.get("chat_template_kwargs") or {}
    if not isinstance(own, dict):
        raise TypeError(f"'chat_template_kwargs' must be {{name: value}}, but it is {own!r}")
    if taken := sorted(OWN & own.keys()):
        raise TypeError(f"'chat_template_kwargs' holds {taken[0]!r}, which is no variable of a template; leave it out")
    own = {name: value for name, value in own.items() if value is not None}
    return data.chat_template_kwargs | own | _tools(row.get("tools"))


def _tools(column: Any) -> dict[str, list[dict]]:
    """{"tools": schemas} of a column `tools`, a list or JSON text; nothing where there are none.

    A table has one form for all schemas: what another one has besides is None in it, which no template may write.
    """
    schemas = json.loads(column) if isinstance(column, str) else column
    if not schemas:
        return {}
    if not isinstance(schemas, list) or not all(isinstance(schema, dict) for schema in schemas):
        raise TypeError(f"'tools' must be a list of JSON schemas, but it is {shortened(column)}")
    return {"tools": _without_none(schemas)}


def _without_none(value: Any) -> Any:
    """A value of JSON without the None in its dictionaries."""
    if isinstance(value, dict):
        return {name: _without_none(inner) for name, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value


def check_variables(data: Data, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `DataError` for a variable in `data.chat_template_kwargs` that the tokenizer's template does not read."""
    words = set(re.findall(r"[A-Za-z_]\w*", str(tokenizer.chat_template or "")))
    for name in data.chat_template_kwargs:
        if name in OWN:
            raise DataError(f"data.chat_template_kwargs: {name} is no variable of a template; leave it out")
        if not words:
            raise DataError("data.chat_template_kwargs: the tokenizer has no chat template; leave it out")
        if name not in words:
            close = nearest(name, words) if get_close_matches(name, words) else "leave it out"
            raise DataError(f"data.chat_template_kwargs: the tokenizer's chat template does not read {name!r}; {close}")


def _conversation(value: Any) -> bool:
    """Whether a value is a list of messages."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(message, dict) and {"role", "content"} <= message.keys() for message in value)
    )


def _templated(
    messages: dict[str, list], tokenizer: PreTrainedTokenizerBase, where: str, variables: dict[str, Any]
) -> dict[str, str]:
    """Apply the chat template with its variables. Raises `DataError`."""
    if variables.get("tools") and "tools" not in str(tokenizer.chat_template):
        what = "the tokenizer's chat template writes no tools, so the policy would not know them"
        raise DataError(f"{where}: {what}; take a template that does, such as model.chat_template: trl:qwen2_5")
    try:
        return maybe_apply_chat_template(messages, tokenizer, **variables)
    except TemplateError as error:  # templates refuse what they do not foresee, such as a system message
        what = f"the tokenizer's chat template refuses it: {error}; change the messages, or data.system"
        raise DataError(f"{where}: {what}") from error


def is_open(messages: list) -> bool:
    """Whether the last message is left empty for an environment to fill."""
    last = messages[-1]
    return isinstance(last, dict) and last.get("role") == "user" and last.get("content") == ""


def _check_messages(messages: list, where: str) -> None:
    """Raise `DataError` unless each message has a role and a content of text."""
    for message in messages:
        fine = isinstance(message, dict) and isinstance(message.get("role"), str)
        said = fine and (message.get("content") or bool(message.get("tool_calls")))
        if not said or not isinstance(message.get("content") or "", str):
            what = "a message is {role: ..., content: text}, without text only where it has tool_calls"
            raise DataError(f"{where}: {what}, but one is {message!r}")
