"""Make text of others safe to show: what a model answered, what a stranger's record says, what an error quotes."""

from __future__ import annotations

import re
import unicodedata

_MARKUP = re.compile(r"[\\`*\[\]#|~!]")

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def for_terminal(text: object) -> str:
    """Return the text with its lines and tabs, and every other character that acts on a terminal or hides what is there
    (escapes, carriage returns, directions, joiners without glyph, lone surrogates) written as `\\x1b` or `\\u202e`."""
    return "".join(c if c in "\n\t" or not _acts(c) else _written(c) for c in str(text).replace("\r\n", "\n"))


def for_markdown(text: object) -> str:
    """Return the text as one line that neither Markdown nor HTML reads as markup: for headings, sentences, tables."""
    line = " ".join(for_terminal(text).split())
    return re.sub("[&<>]", lambda found: _ENTITIES[found[0]], _MARKUP.sub(r"\\\g<0>", line))


def for_code_span(text: object) -> str:
    """Return the text as a Markdown code span, in a sentence or in a table."""
    line = " ".join(for_terminal(text).split()).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if "`" in line else ""
    return f"{fence}{space}{line}{space}{fence}"


def _acts(character: str) -> bool:
    """Whether it is a control, a format (but the joiner of emoji and scripts), a separator of lines or no character."""
    kind = unicodedata.category(character)
    return kind in ("Cc", "Cs", "Zl", "Zp") or kind == "Cf" and character not in "\u200c\u200d"


def _written(character: str) -> str:
    """The escape of Python for it."""
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
