"""Turn an answer of several turns into tokens: what the policy said, and what others said in between.

Each stretch is tokenised by itself, as it is when an episode is sampled, and the template only ever appends: what the
policy reads before its third turn begins with exactly what it read before its second.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import pairwise

import torch
from torch import Tensor

from align.data.prompts import POLICY, Turn

Message = Mapping[str, str]


def tokenise_turns(
    prompt: Sequence[Message],
    answer: Sequence[Message],
    *,
    render: Callable[[list[Message], bool], str],
    encode: Callable[[str], list[int]],
    ends: Collection[str],
) -> tuple[list[int], list[Turn]]:
    """(tokens, turns) of an answer that begins and ends with messages of the policy, others' in between.

    `render(messages, ask)` writes a conversation, with `ask` up to where the policy would go on. `ends` are the texts
    of the tokens that end a turn of the policy. Raises `ValueError` where the template changes what it wrote
    before, and where it writes no such token behind a turn.
    """
    ids: list[int] = []
    turns: list[Turn] = []

    def add(role: str, text: str, tokens: list[int]) -> None:
        turns.append(Turn(role, len(ids), len(ids) + len(tokens), text))
        ids.extend(tokens)

    places = [-1, *(i for i, message in enumerate(answer) if message["role"] == POLICY)]
    written = render([*prompt], True)
    for last, place in pairwise(places):
        asked = render([*prompt, *answer[:place]], True)
        if heard := behind(written, asked, "changes earlier messages when others follow"):
            add(answer[place - 1]["role"] if place - last > 1 else "template", heard, encode(heard))
        said = behind(asked, render([*prompt, *answer[: place + 1]], False), "writes a turn otherwise than it asks")
        said = said[: end_of(said, ends)]
        add(POLICY, said, encode(said))
        written = asked + said
    return ids, turns


def cut(ids: list[int], turns: Sequence[Turn], limit: int) -> tuple[list[int], list[Turn]]:
    """The first tokens of an answer, `limit` at most, up to the last one that the policy chose, and their turns."""
    kept = [replace(turn, end=min(turn.end, limit)) for turn in turns if turn.start < limit]
    while kept and kept[-1].role != POLICY:
        kept.pop()
    return ids[: kept[-1].end if kept else 0], kept


def turn_columns(
    response_ids: Sequence[Sequence[int]],
    numbers: Sequence[Sequence[int]] | None,
    turns: Sequence[Sequence[Turn]],
) -> dict[str, Tensor]:
    """{turn_reward, turn_state: [B,T]} of responses, the numbers of their tokens' turns (None: each is one turn) and
    what is known of the turns.

    A turn without a state has the tokens before it for one.
    """
    shape = len(response_ids), max([1, *map(len, response_ids)])
    reward, state = torch.zeros(shape), torch.zeros(shape, dtype=torch.int64)
    some = torch.tensor([len(ids) > 0 for ids in response_ids], dtype=torch.bool)
    state[some, 0] = hash_of([])  # of one turn, which has nothing before it
    for row, (ids, of_tokens) in enumerate(zip(response_ids, numbers or (), strict=numbers is not None)):
        if not turns[row] and not any(of_tokens):
            continue
        state[row, 0] = 0
        last = {number: t for t, number in enumerate(of_tokens) if number >= 0}
        first = {number: t for t, number in reversed([*enumerate(of_tokens)]) if number >= 0}
        known = dict(enumerate(turn for turn in turns[row] if turn.role == POLICY))
        for number, t in first.items():
            turn = known.get(number)
            reward[row, last[number]] = (turn and turn.reward) or 0.0
            state[row, t] = turn.state if turn and turn.state is not None else hash_of(ids[:t])
    return {"turn_reward": reward, "turn_state": state}


def hash_of(state: str | Sequence[int]) -> int:
    """64 bits, as an int64 has them, of a text or of tokens."""
    told = state if isinstance(state, str) else ",".join(map(str, state))
    return int.from_bytes(blake2b(told.encode(), digest_size=8).digest(), "big", signed=True)


def behind(start: str, whole: str, what: str) -> str:
    """What a conversation has behind its start. Raises `ValueError` where it does not begin with it, for the template
    does `what`."""
    if not whole.startswith(start):
        where = f"the chat template {what}"
        raise ValueError(f"{where}, so the policy would not read what it said; take a template that only appends")
    return whole[len(start) :]


def end_of(said: str, ends: Collection[str]) -> int:
    """Where the text of the policy's turn ends, its end token included. Raises `ValueError` where it has none."""
    found = [said.index(text) + len(text) for text in ends if text in said]
    if not found:
        raise ValueError(f"the chat template writes no end token ({', '.join(sorted(ends))}) behind the policy's turn")
    return min(found)
