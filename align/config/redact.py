"""Keep secrets out of what a run writes: the resolved recipe, the command, the card, the terminal.

Hub tokens come from the environment alone; a key of another service that stands in a recipe's `args` is replaced.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from align.config.recipe_file import KeyPath

HIDDEN = "[redacted]"

SHORTEST = 6  # characters; shorter secrets would be found by chance in other words

# The last word of a key that holds a secret. Counts are none: max_tokens, and per_token: 0.1, which is no text.
_WORD = (
    r"(?<![a-z])(?:api|access|auth)?"
    r"(?:token|keys?|secrets?|passwords?|passwd|passphrase|credentials?|authorization)"
)

_NAME = re.compile(rf".*{_WORD}", re.IGNORECASE)

_NAME_OF_ANY = re.compile(r".*(?:secret|password|passwd|passphrase|credential|api_?key)s?", re.IGNORECASE)

_COLON = r":(?!\s+[a-z]{1,15}(?:[\s;,.]|$))"  # in a message words follow it, no secret: `hub.token: unknown key`

_ASSIGNED = re.compile(
    rf"([\w.-]*{_WORD}['\"]?\s*(?:=|{_COLON})\s*)(?![{{\[(])(['\"]?)([^\s'\",}}\])]+)", re.IGNORECASE
)

_KNOWN = re.compile(  # by their form: Hugging Face, OpenAI and others, GitHub, Slack, AWS, Google; in headers and URLs
    r"\b(?:hf_\w{8,}|api_org_\w{8,}|sk-[\w-]{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|xox[abprs]-[\w-]{10,}"
    r"|AKIA[A-Z0-9]{16}|AIza[\w-]{30,})|(?<=Bearer )\S+|(?<=://)[^\s/@]+(?=@)"
)

_IN_URL = re.compile(r"([?&][\w-]*(?:key|token|secret|password)=)[^&\s]+", re.IGNORECASE)

_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")


def redact(config: Any) -> Any:
    """Replace the secrets in plain data by `[redacted]`: values under a key that is named like a secret, texts with the
    form of one, and wherever they stand, values that the environment holds under such a name."""
    return _replaced(config, _known(config))


def scrub(text: str, config: Any = ()) -> str:
    """Replace in a text, such as a command line, the secrets of `config` and whatever looks like a secret."""
    return _ASSIGNED.sub(rf"\1\2{HIDDEN}", _clean(text, _known(config)))


def hub_tokens(value: Any, key: KeyPath = ()) -> Iterator[KeyPath]:
    """The keys of plain data under which a hub token stands."""
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from hub_tokens(item, (*key, name))
    elif isinstance(value, str) and _HUB_TOKEN.search(value):
        yield key


def _replaced(value: Any, known: list[str]) -> Any:
    if isinstance(value, dict):
        return {
            _replaced(key, known): _hidden(item) if _is_secret(key, item) else _replaced(item, known)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_replaced(item, known) for item in value]
    return _clean(value, known) if isinstance(value, str) else value


def _hidden(value: Any) -> str | list[str]:
    return [HIDDEN] * len(value) if isinstance(value, list | tuple) else HIDDEN


def _clean(text: str, known: list[str]) -> str:
    for secret in known:
        text = text.replace(secret, HIDDEN)
    return _IN_URL.sub(rf"\1{HIDDEN}", _KNOWN.sub(HIDDEN, text))


def _known(config: Any) -> list[str]:
    """Secrets to look for in every text, those that contain others first."""
    environment = [value for name, value in os.environ.items() if _NAME.fullmatch(name)]
    found = {secret for secret in (*_named(config), *environment) if len(secret) >= SHORTEST}
    return sorted(found, key=len, reverse=True)


def _named(value: Any) -> Iterator[str]:
    """Values under keys that are named like secrets."""
    if isinstance(value, dict):
        for key, item in value.items():
            if _is_secret(key, item):
                yield from map(str, item if isinstance(item, list | tuple) else [item])
            else:
                yield from _named(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _named(item)


def _is_secret(key: Any, value: Any) -> bool:
    """Whether a value is secret by its key's name: a text, a list of texts, and under some names a number."""
    if not isinstance(key, str) or isinstance(value, bool):
        return False
    if isinstance(value, int | float):
        return bool(_NAME_OF_ANY.fullmatch(key))
    texts = value if isinstance(value, list | tuple) else [value]
    return bool(texts) and all(isinstance(text, str) for text in texts) and bool(_NAME.fullmatch(key))
