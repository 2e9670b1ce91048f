"""Length-aware accuracy, as the GFPO paper describes it for Phi-4-reasoning-plus."""

import math
import pkgutil


def accuracy(
    prompts,
    completions,
    completion_ids,
    *,
    truncated,
    correct: str = "rewards.gym:correct",
    max_tokens: int = 31744,
    positive_tokens: int = 25600,
    negative_tokens: int = 3702,
    **columns,
):
    """Turn a correctness reward into one that also weighs the response's length L in tokens.

        correct:   0.5 + 0.25 (1 + cos(pi rho)),  rho = min(1, max(L - L_pos, 0) / (L_max - L_pos))
        wrong:    -0.5 - 0.25 (1 + cos(pi rho)),  rho = min(1, L / L_neg)
        truncated: -0.5

    with L_max `max_tokens`, L_pos `positive_tokens`, L_neg `negative_tokens`: from 1 down to 0.5
    for correct responses, which are free up to L_pos, and from -1 up to -0.5 for wrong ones, where
    a longer attempt costs less.

    Source: GFPO (arXiv 2508.09726), after Phi-4-reasoning. The constants come from third-party
    notes, and the cosine form is recalled, not read in the paper. The paper's full reward is
    8/13 of this plus 1/13 of a repetition penalty: list both rewards, with those weights.

    `correct` is the dotted path of the reward that decides: a response is correct where it gives
    1 (to 1e-6; a part of 1 is wrong). Its None stays None, truncated or not. `truncated` is the
    trainer's column: the response was cut at the token limit.

    Raises ValueError unless 0 <= positive_tokens < max_tokens and 0 < negative_tokens, and what
    `pkgutil.resolve_name` raises for a path that leads nowhere.
    """
    if not 0 <= positive_tokens < max_tokens:
        raise ValueError(f"positive_tokens must be in 0..max_tokens ({max_tokens}), not {positive_tokens}")
    if negative_tokens <= 0:
        raise ValueError(f"negative_tokens must be positive, not {negative_tokens}")
    values = pkgutil.resolve_name(correct)(prompts, completions, completion_ids, truncated=truncated, **columns)

    def shaped(value, length, cut):
        if value is None:
            return None
        if cut:
            return -0.5
        if value >= 1 - 1e-6:
            return 0.5 + _cosine(max(length - positive_tokens, 0) / (max_tokens - positive_tokens))
        return -0.5 - _cosine(length / negative_tokens)

    lengths = map(len, completion_ids)
    return [shaped(*row) for row in zip(values, lengths, truncated, strict=True)]


def _cosine(rho: float) -> float:
    """Half a cosine wave, from 0.5 at 0 down to 0 at 1 and beyond."""
    return 0.25 * (1 + math.cos(math.pi * min(1, rho)))
