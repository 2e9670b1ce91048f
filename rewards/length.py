"""Penalties on the length of a response, in tokens."""


def length_penalty(prompts, completions, completion_ids, *, per_token: float, **columns):
    """Return -per_token * tokens. Raises ValueError for a negative `per_token`."""
    if per_token < 0:
        raise ValueError(f"per_token must not be negative, but is {per_token}")
    return [-per_token * len(ids) for ids in completion_ids]


def soft_overlong(
    prompts,
    completions,
    completion_ids,
    *,
    max_tokens: int,
    buffer: int,
    factor: float = 1.0,
    **columns,
):
    """Penalise responses that come within `buffer` tokens of `max_tokens`.

    0 up to max_tokens - buffer tokens, then falling linearly to -factor at max_tokens (and on
    beyond it): min(-(L - (max_tokens - buffer)) / buffer * factor, 0). DAPO (arXiv 2503.14476),
    equation 13. Raises ValueError unless 0 < buffer <= max_tokens and factor >= 0.
    """
    if not 0 < buffer <= max_tokens:
        raise ValueError(f"buffer must be in 1..max_tokens ({max_tokens}), not {buffer}")
    if factor < 0:
        raise ValueError(f"factor must not be negative, but is {factor}")
    free = max_tokens - buffer
    return [-max(len(ids) - free, 0) / buffer * factor for ids in completion_ids]
