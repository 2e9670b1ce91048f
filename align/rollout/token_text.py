"""The text of each token of responses; those of a response joined are its text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from os.path import commonprefix

from transformers import PreTrainedTokenizerBase

PARTIAL = "\ufffd"  # what a tokenizer writes for a part of a character
LONGEST = 8  # tokens that spell characters together: more are no text

Decode = Callable[[Sequence[int]], str]
Span = Callable[[int, int], str]  # the text of the tokens from one place of a response up to another


def token_texts(responses: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
    """The text of each token, as `spelled` gives it."""
    return list(spelled(lambda: responses, tokenizer))


def spelled(
    responses: Callable[[], Iterable[Sequence[int]]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[list[str]]:
    """Response by response the text of each token; `responses` goes through them, and is called twice.

    Of a character that several tokens spell the last one has it, and the others nothing.

    Each distinct token is decoded twice, alone and behind another one: some tokenizers take the space before a word
    away where the text begins with it. Only responses with parts of characters are decoded token by token.
    """
    alone = {token: tokenizer.decode([token]) for token in dict.fromkeys(chain.from_iterable(responses()))}
    behind = _behind(alone, tokenizer)
    later = {token: behind([token]) for token in alone}
    return (_texts(ids, alone, later, behind, tokenizer) for ids in responses())


def _behind(alone: dict[int, str], tokenizer: PreTrainedTokenizerBase) -> Decode:
    """What gives the text of tokens that do not begin a text: behind a plain one, where there is any."""
    special = set(tokenizer.all_special_ids)
    plain = (token for token, text in alone.items() if text.strip() and PARTIAL not in text and token not in special)
    first = next(plain, None)

    def decode(ids: Sequence[int]) -> str:
        whole = "" if first is None else tokenizer.decode([first, *ids])
        begins = first is not None and whole.startswith(alone[first])
        return whole[len(alone[first]) :] if begins else tokenizer.decode([*ids])

    return decode


def _texts(
    ids: Sequence[int], alone: dict[int, str], later: dict[int, str], behind: Decode, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """The text of each token of one response."""
    out = [*(alone[token] for token in ids[:1]), *(later[token] for token in ids[1:])]
    if not any(PARTIAL in text for text in out):
        return out

    def span(start: int, end: int) -> str:
        return behind(ids[start:end]) if start else tokenizer.decode([*ids[:end]])

    mixed = [place for place, text in enumerate(out) if len(text) < 2 or PARTIAL in text]
    _join_parts(out, span)
    if "".join(out) != span(0, len(ids)):  # parts that are no text, of which a tokenizer makes one mark or several
        for start, end in _runs(mixed):
            out[start:end] = _mended(out[start:end], span(start, end))
    return out


def _join_parts(out: list[str], span: Span) -> None:
    """Give each character that several tokens spell to the one that completes it."""
    start, told = None, ""
    for place, text in enumerate(out):
        if start is None:
            start, told = (place, text) if text.endswith(PARTIAL) else (None, "")
            continue
        now = span(start, place + 1)
        same = len(commonprefix([told, now]))
        out[start:place] = _without_end(out[start:place], len(told) - same)
        out[place], told = now[same:], now
        if not now.endswith(PARTIAL) or place + 1 - start == LONGEST:
            start = None


def _without_end(texts: Sequence[str], count: int) -> list[str]:
    """The texts without so many of their last characters."""
    out = []
    for text in reversed(texts):
        cut = min(count, len(text))
        out.append(text[: len(text) - cut])
        count -= cut
    return out[::-1]


def _runs(places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of each run of places that follow each other."""
    start = 0
    for i in range(1, len(places) + 1):
        if i == len(places) or places[i] != places[i - 1] + 1:
            yield places[start], places[i - 1] + 1
            start = i


def _mended(texts: Sequence[str], whole: str) -> list[str]:
    """The texts as far as `whole` begins with them; the last one has the rest of it, and those between nothing."""
    out, position = [], 0
    for text in texts:
        if not whole.startswith(text, position):
            break
        out.append(text)
        position += len(text)
    rest = whole[position:]
    if len(out) == len(texts):
        return [*out[:-1], out[-1] + rest]
    return [*out, *[""] * (len(texts) - len(out) - 1), rest]
