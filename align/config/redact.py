"""Keep secrets out of what a run writes: the resolved recipe, the command, the card, messages, the terminal.

Hub tokens come from the environment alone; a key of another service that stands in a recipe's `args` is replaced.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any
from urllib.parse import quote, quote_plus

from align.config.recipe_file import KeyPath

HIDDEN = "[redacted]"

SHORTEST = 6  # characters; shorter secrets would be found by chance in other words


class Level(IntEnum):
    """How surely a key holds a secret."""

    NONE = 0
    MAYBE = 1  # a text under it is taken for one, a number only where it is as long as a secret
    SURE = 2


_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

_SURE = re.compile(  # anywhere in a name without its separators
    "secret|passwo?r?d|passphrase|passcode|credential|authorization|webhook|connectionstring"
    "|(?:api|access|auth|account|private|signing|encryption)key|(?:api|access|auth|bearer|refresh|session)token"
)

_MAYBE = ("token", "key", "keys", "pwd", "pw", "pass", "auth", "jwt", "bearer", "cookie", "cookies")

_GLUED = re.compile(r"[a-z0-9]+(?:token|pwd|pass|key)")

_WORDS_ALIKE = re.compile(r"\w*(?:monkey|donkey|turkey|hockey|jockey|whiskey|hotkey|bypass|compass|trespass|surpass)")

_PARTS = (
    "value",
    "values",
    "text",
    "string",
    "str",
    "raw",
    "plain",
    "v",
    "old",
    "new",
    "prod",
    "dev",
    "test",
    "default",
)

_OF_TEXT = ("pad", "eos", "bos", "unk", "mask", "sep", "cls", "end", "start", "stop", "special", "image")  # tokens

_COUNTED = ("per", "max", "min", "num", "n", "total")

_NO_SECRET = ("PWD", "OLDPWD", "SSH_ASKPASS", "GIT_ASKPASS")  # of the environment: folders and programs

_KNOWN = re.compile(
    r"""-----BEGIN[ A-Z]*PRIVATE\ KEY-----.*?(?:-----END[ A-Z]*PRIVATE\ KEY-----|\Z)
    |(?<![A-Za-z0-9])(?:hf_\w{8,}|api_org_\w{8,}|sk-[\w-]{16,}|[rsp]k_(?:live|test)_\w{10,}|whsec_\w{10,}
    |gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abeprs]-[\w-]{10,}|xapp-[\w-]{10,}|A[KS]IA[A-Z0-9]{16}
    |AIza[\w-]{30,}|ya29\.[\w-]{20,}|npm_\w{30,}|pypi-[\w-]{30,}|SG\.[\w-]{16,}\.[\w-]{16,}|gsk_\w{20,}|nvapi-[\w-]{20,}
    |r8_\w{20,}|dop_v1_\w{20,}|eyJ[\w-]{8,}\.[\w-]{4,}\.[\w-]*|\d{6,20}:[\w-]{30,})
    |(?i:(?<=Bearer\ )[^\s'",}]+|(?<=Basic\ )[A-Za-z0-9+/=]{8,})
    |(?<=://)[^\s/@'"]+(?=@)""",
    re.VERBOSE | re.DOTALL,
)

_DSN = re.compile(
    r"(://[^\s/:@'\"]{0,200}:)(?!\d{1,5}(?:[/?#]|$))([^\s'\"]{1,500})@(?=[\w.\[-])"
)  # scheme://user:password@host

_IN_URL = re.compile(
    r"([?&#;][\w.-]{0,80}(?:key|token|secret|passw(?:or)?d|pwd|pass|sig|signature|credential|auth)=)[^&\s'\"]+",
    re.IGNORECASE,
)

_HOOK = re.compile(  # the path is the secret
    r"(https?://(?:[^\s/'\"]{0,200}hooks?\b[^\s/'\"]{0,200}/|[^\s'\"]{0,200}?/(?:web)?hooks?\w*/|api\.telegram\.org/bot))[^\s'\"]+",
    re.I,
)

_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")

_STEMS = "token|key|secret|pass|pwd|pw|auth|jwt|cookie|cred|bearer|hook|connection|pat"

_HEAD = re.compile(  # what stands in front of a value: `x.api_key=`, `"token": `, `--token `
    rf"""(?P<open>['"]?)(?<![\w.-])(?:(?P<option>--[\w.-]{{0,99}}(?:{_STEMS})[\w.-]{{0,99}})[ ]+(?!-)
    |(?P<name>[\w.-]{{0,199}}(?:{_STEMS})[\w.-]{{0,99}})(?P<middle>\\*['"]?\s*[=:]\s*))""",
    re.VERBOSE | re.IGNORECASE,
)

_VALUE = re.compile(
    r"""\\+".{0,4000}?\\+"|\\+'.{0,4000}?\\+'|"(?:\\.|[^"\\]){0,8000}"|'(?:\\.|[^'\\]){0,8000}'
    |\[[^\]\n]{0,2000}\]|\{[^}\n]{0,2000}\}|(?:(?![;&][\w.-]{1,99}=)[^\s'",}\])])+""",
    re.VERBOSE | re.DOTALL,
)

_REST = {  # of a word that a shell or Python quotes
    "'": re.compile(r"""(?:[^'\\]|'"'"'|\\.){1,8000}(?=')""", re.DOTALL),
    '"': re.compile(r"""(?:[^"\\]|\\.){1,8000}(?=")""", re.DOTALL),
}

_PLACEHOLDER = re.compile(r"(?:value|\.\.\.|<.*|\$.*|null|none|true|false|x{3,}|\*+|\[redacted\])[.;,:]?", re.I | re.S)

# With these our messages on a key begin: `hub.token: unknown key; there are: repo`
_SAYS = re.compile(
    r"unknown|missing|holds|must|is|are|not|input|stands|does|needs?|expected|invalid|value|takes|wrong|has|cannot|should"
    r"|was|no|required|expired|denied|refused|given|empty|too|unset|found|there|it|the|a|an|this|field|extra|set|use|list",
    re.IGNORECASE,
)

_MORE = re.compile(r" +\w")


_QUOTED = re.compile(r"(.{0,500}?(?:but it is|not a YAML value:) )(.+)")  # messages that quote what stands at a key


def redact(config: Any) -> Any:
    """Replace the secrets in plain data by `[redacted]`: values under a key that is named like a secret, texts with the
    form of one, and wherever they stand, values that the environment holds under such a name."""
    return _replaced(config, _known(config))


def scrub(text: str, config: Any = ()) -> str:
    """Replace in a text, such as a message, the secrets of `config` and whatever looks like a secret."""
    text = _QUOTED.sub(_without_quoted, _clean(text, _known(config)))
    return _without_assigned(text)


def scrub_command(words: Sequence[str], config: Any = ()) -> str:
    """Put the words of a command together, without its secrets: those of `config`, and values of keys and options that
    are named like one."""
    out, option = [], Level.NONE
    for word in words:
        name, equals, value = word.partition("=")
        if equals and level(name.lstrip("-")) and not _is_count(value, level(name)):
            word = f"{name}={HIDDEN}"
        elif option and not word.startswith("-"):
            word = HIDDEN
        option = level(word.lstrip("-")) if word.startswith("--") and not equals else Level.NONE
        out.append(scrub(word, config))
    return shlex.join(out)


def scrub_tracebacks(config: Any = ()) -> None:
    """Have Python print no secret with an error that nobody caught, in any thread."""

    def show(kind: type[BaseException], error: BaseException | None, trace: Any) -> None:
        sys.stderr.write(scrub("".join(traceback.format_exception(kind, error, trace)), config))

    sys.excepthook = show
    threading.excepthook = lambda what: show(what.exc_type, what.exc_value, what.exc_traceback)


def hub_tokens(value: Any, key: KeyPath = ()) -> Iterator[KeyPath]:
    """The keys of plain data under which a hub token stands."""
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from hub_tokens(item, (*key, name))
    elif isinstance(value, str) and _HUB_TOKEN.search(value):
        yield key


def level(name: Any) -> Level:
    """How surely the key of this name, which may be a path with dots, holds a secret."""
    if not isinstance(name, str) or ":" in name or "/" in name:  # a function, as in rewards
        return Level.NONE
    words = [word.lower() for word in _WORDS.findall(name)]
    while words and (words[-1] in _PARTS or words[-1].isdigit()):
        words.pop()
    joined = "".join(_WORDS.findall(name.rpartition(".")[2])).lower() or "".join(words)
    if _SURE.search(joined) or _SURE.search("".join(words[-2:])):
        return Level.SURE
    if not words or len(words) > 1 and words[-2] in (*_OF_TEXT, *_COUNTED):
        return Level.NONE
    last, alone = words[-1], words[:-1] in ([], ["hub"], ["hf"])
    if last in _MAYBE or last == "pat" and not alone or last == "tokens" and alone:
        return Level.MAYBE
    return Level.MAYBE if _GLUED.fullmatch(last) and not _WORDS_ALIKE.fullmatch(last) else Level.NONE


def _replaced(value: Any, known: list[str]) -> Any:
    if isinstance(value, dict):
        named = any(level(value.get(key)) for key in ("name", "key", "header"))  # {name: api_key, value: ...}
        return {
            _replaced(key, known): _hidden(item, sure)
            if (sure := max(level(key), Level.MAYBE if named and key == "value" else Level.NONE))
            else _replaced(item, known)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_replaced(item, known) for item in value]
    return _clean(value, known) if isinstance(value, str) else value


def _hidden(value: Any, sure: Level) -> Any:
    """The same data without texts, and without numbers that may be a secret."""
    if isinstance(value, dict):
        return {key: _hidden(item, sure) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(item, sure) for item in value]
    return value if _is_count(value, sure) else HIDDEN


def _is_count(value: Any, sure: Level) -> bool:
    """Whether a value is too plain for a secret: nothing, yes or no, and a number where a text is expected."""
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, str) and not re.fullmatch(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?|[\s\d.,\[\]]+", value):
        return False
    return sure < Level.SURE and not re.fullmatch(rf"\d{{{SHORTEST},}}", str(value))


def _clean(text: str, known: list[str]) -> str:
    for secret in known:
        text = text.replace(secret, HIDDEN)
    text = _KNOWN.sub(HIDDEN, _DSN.sub(rf"\1{HIDDEN}@", text))
    return _HOOK.sub(rf"\1{HIDDEN}", _IN_URL.sub(rf"\1{HIDDEN}", text))


def _without_quoted(message: re.Match) -> str:
    """The line of a message without what it quotes, where it is about a secret."""
    secret = any(map(level, message[1].split(": ")))
    return message[1] + (HIDDEN if secret else message[2])


def _without_assigned(text: str) -> str:
    """The text with `[redacted]` for each value that is assigned to a name of a secret."""
    out, done, at = [], 0, 0
    while head := _HEAD.search(text, at):
        at = head.end()
        sure = level((head["option"] or head["name"]).lstrip("-"))
        quoted = head["open"] and head["middle"] and head["middle"].strip() in "=:"
        value = (quoted and _REST[head["open"]].match(text, at)) or _VALUE.match(text, at)
        if not sure or not value or _is_said(text, head, value[0], sure):
            continue
        ends = value[0][0] if value[0][0] in "'\"" and value[0][-1] == value[0][0] else ""
        out += [text[done:at], ends, HIDDEN, ends]
        at = done = value.end()
    return "".join([*out, text[done:]])


def _is_said(text: str, head: re.Match, value: str, sure: Level) -> bool:
    """Whether what looks like a value is none: a number, a placeholder, or words that a message says of a key."""
    bare = value.strip("'\"\\")
    if _is_count(bare, sure) or _PLACEHOLDER.fullmatch(bare) or bare.startswith(HIDDEN):
        return True
    if head["option"] or value[0] in "'\"\\" or head["middle"].strip()[0] in "'\"\\":
        return False
    plain = bool(re.fullmatch(r"[a-z]{1,15}[;.,]?", bare))
    if "=" in head["middle"]:
        return plain and head["name"] in ("key", "keys")  # of Python: sorted(..., key=len)
    if _SAYS.fullmatch(bare.rstrip(";.,")):
        return True
    before = text[max(0, head.start() - 2) : head.start()]  # of a key that a message is about: its place, or nothing
    starts = before in ("", ": ") or before.endswith("\n")
    return sure < Level.SURE and plain and starts and bool(_MORE.match(text, head.end() + len(value)))


def _known(config: Any) -> list[str]:
    """Secrets to look for in every text, those that contain others first."""
    environment = {name: value for name, value in os.environ.items() if name not in _NO_SECRET}
    found = {form for secret in (*_named(config), *_named(environment)) for form in _forms(secret)}
    return sorted((form for form in found if len(form) >= SHORTEST), key=len, reverse=True)


def _forms(secret: str) -> Iterator[str]:
    """A secret as it may stand in a text: as it is, escaped, quoted, in a URL, each of its lines."""
    yield from (secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1])
    yield from (shlex.quote(secret).strip("'"), quote(secret), quote(secret, safe=""), quote_plus(secret))
    yield from map(str.strip, secret.splitlines())


def _named(value: Any, sure: Level = Level.NONE) -> Iterator[str]:
    """Values under keys that are named like secrets, and passwords within URLs. A plain word is none: it may be the
    name of a column."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _named(item, max(sure, level(key)))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _named(item, sure)
    elif sure and not _is_count(value, sure) and (sure == Level.SURE or not re.fullmatch("[a-z_]+", str(value))):
        yield str(value)
    elif isinstance(value, str):
        yield from (password for _, password in _DSN.findall(value))
