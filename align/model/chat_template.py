"""The chat template of the policy: the tokenizer's own, or the one that `model.chat_template` names."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from align.config.locations import near
from align.config.problems import nearest
from align.model.load import UNREADABLE, load_tokenizer
from align.model.locate import ModelError

TRL = "trl:"  # in front of the name of a template that TRL ships

QUESTION = "Is 1234567 prime?"  # a conversation's, which a template must write


def policy_tokenizer(path: str, template: str | None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a policy's folder, with the template that the recipe names in the place of its own.

    Raises `ModelError` where there is no tokenizer, where it has no end token, and where the template is no good.
    """
    tokenizer = load_tokenizer(path)
    if template:
        use(tokenizer, template)
    return tokenizer


def use(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Give a tokenizer the template that `model.chat_template` names. Raises `ModelError` where it is no good, and
    leaves the tokenizer as it was."""
    own, text = tokenizer.chat_template, read(template)
    tokenizer.chat_template = text
    try:
        _try(tokenizer, template)
    except ModelError:
        tokenizer.chat_template = own
        raise


def read(template: str) -> str:
    """The text of a template, `trl:NAME` or a file. Raises `ModelError` where there is none."""
    file = Path(template)
    if template.startswith(TRL):
        name, shipped = template.removeprefix(TRL), trl_templates()
        if name not in shipped:
            known = nearest(name, shipped)
            raise ModelError(f"{template}: TRL ships no template of this name; {known}; or name a .jinja file")
        file = shipped[name]
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        what = f"no such file{near(template, '')}; write trl:NAME, a template that TRL ships, or a .jinja file"
        raise ModelError(f"{template}: {what}") from error
    except (OSError, ValueError) as error:  # a folder; no UTF-8
        why = f"{type(error).__name__}: {error}"
        raise ModelError(f"{template}: cannot be read as text: {why}; name a .jinja file") from error


@cache
def trl_templates() -> dict[str, Path]:
    """{name: file} of the templates that TRL ships."""
    [folder] = find_spec("trl").submodule_search_locations
    return {file.stem: file for file in sorted(Path(folder, "chat_templates").glob("*.jinja"))}


def _try(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise `ModelError` where the tokenizer's template cannot write a question, alone and behind a system message.

    One may refuse system messages in words of its own, as Gemma's does: rows that have one are told so.
    """
    user, system = {"role": "user", "content": QUESTION}, {"role": "system", "content": "Answer in one word."}
    for messages in ([user], [system, user]):
        said, refused = _rendered(tokenizer, messages)
        roles = " and ".join(message["role"] for message in messages)
        if isinstance(refused, TemplateSyntaxError):
            raise ModelError(f"{name}: line {refused.lineno}: is no Jinja: {refused}; mend it there") from refused
        if type(refused) is TemplateError and system in messages:
            continue
        if refused:
            why = f"{type(refused).__name__}: {refused}"
            raise ModelError(f"{name}: cannot write a conversation of {roles}: {why}; mend it") from refused
        if QUESTION not in said:
            what = f"leaves out what the user says in a conversation of {roles}"
            raise ModelError(f"{name}: {what}; name the template of a text model")


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]) -> tuple[str, Exception | None]:
    """(what the template writes, None), or ("", what it raises)."""
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), None
    except (TemplateError, *UNREADABLE) as error:  # whatever the template's own expressions may raise
        return "", error
