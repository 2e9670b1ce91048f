"""The same on a terminal: where the tokens went, how two objectives agree, and responses with the credit of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from align.system.text import for_terminal
from align.xray.against import agreement
from align.xray.credits import PUT_IN, Credits
from align.xray.data import Look, Seen

UP, DOWN = (Style(color=colour, underline=under) for colour, under in (("bright_blue", True), ("orange3", False)))

LETTERS = 2_000  # of one response


def show(look: Look, groups: int = 3) -> Group:
    """The notes, a table for each objective and step, and the first groups of the last step, best reward first."""
    parts: list[RenderableType] = [Text(for_terminal(note), "italic") for note in look.notes]
    for seen in look.batches:
        for credits in (*seen.credits, *seen.against):
            parts.append(waterfall(seen, credits))
        for a in seen.credits:
            parts += [_agreement(a, b) for b in seen.against]
    if look.batches:
        parts += _groups(look.batches[-1], groups)
    return Group(*parts)


def waterfall(seen: Seen, credits: Credits) -> Group:
    """Generated tokens, those that each piece took, those that carry gradient."""
    where = "" if seen.step is None else f", step {seen.step}"
    source = "" if seen.source == "data" else f", {seen.source}"
    title = f"{credits.name}{where}{source}: {sum(credits.kept)} of {len(credits.kept)} responses take part"
    found = Table(box=None)
    for heading, side in (("", "left"), ("tokens", "right"), ("", "right")):
        found.add_column(heading, justify=side)
    rows, pairs = credits.waterfall(), next(iter(seen.rollouts.values())).chosen is not None
    whole = rows[0][1] or 1
    for name, count in rows:
        taken = name in credits.pieces
        name = "in the pairs" if name == "generated" and pairs else name
        shown = f"{-count if taken else count:,}"
        found.add_row(Text(for_terminal(name)), shown, f"{100 * count / whole:.1f} %")
    return Group(Text(f"\n{for_terminal(title)}", "italic"), found)


def _agreement(a: Credits, b: Credits) -> Group:
    """How much two objectives agree."""
    agreed = agreement(a, b)
    title = f"{a.name} against {b.name}"
    found = Table(box=None, show_header=False)
    found.add_row("sign flips", f"{agreed.flips:,}")
    found.add_row("carry gradient under both, of those under either", f"{agreed.both:,} of {agreed.either:,}")
    found.add_row("cosine of credit x weight", f"{agreed.cosine:.6f}")
    found.add_row("effective tokens", " and ".join(f"{value:.1f}" for value in agreed.effective))
    return Group(Text(f"\n{for_terminal(title)}", "italic"), found)


def _groups(seen: Seen, most: int) -> Iterator[Text]:
    """Responses of the first groups, each token by its credit under the first objective."""
    rows, places = list(seen.rollouts.values()), {}
    for place, row in enumerate(rows):
        places.setdefault(row.group, []).append(place)
    credits = next(iter((*seen.credits, *seen.against)), None)
    for name, index in list(places.items())[:most] if credits else ():
        yield Text(f"\ngroup {for_terminal(name)} under {for_terminal(credits.name)}", "bold")
        for place in sorted(index, key=lambda i: -np.inf if rows[i].reward is None else rows[i].reward, reverse=True):
            row, kept = rows[place], "" if credits.kept[place] else ", not kept"
            reward = "no reward" if row.reward is None else f"reward {row.reward:.4g}"
            judged = reward if row.chosen is None else "chosen" if row.chosen else "rejected"
            line = Text(f"{judged}{kept}: ", "dim")
            yield line.append_text(_response(row.token_text or row.response_ids, credits, place))


def _response(tokens: Sequence[str | int], credits: Credits, place: int) -> Text:
    """Blue and underlined above 0, orange below, struck through where a piece took the token, dim where the policy did
    not choose it."""
    line = Text()
    for token, credit, taken in zip(tokens, credits.credit[place], credits.taken_by[place], strict=True):
        style = UP if credit > 0 else DOWN if credit < 0 else Style(dim=bool(taken == PUT_IN))
        text = token if isinstance(token, str) else f"⟨{token}⟩"
        line.append(for_terminal(text[:LETTERS]).replace("\n", "↵"), style + Style(strike=bool(taken >= 0)))
        if len(line) > LETTERS:
            return line.append("…")
    return line
