"""Transforms that decide which rows and tokens take part."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from align.batch import Batch
from align.transforms.transform import Stage, Transform


def keep_outcome(*, outcome: Literal["correct", "wrong"]) -> Transform:
    """Keep the responses of one outcome: PSR learns from correct ones, NSR from wrong ones (arXiv 2506.01347)."""

    def apply(batch: Batch) -> Batch:
        correct = batch.need("correct", "keep_outcome")
        return replace(batch, kept=batch.kept & (correct if outcome == "correct" else ~correct))

    return Transform("keep_outcome", apply, stage=Stage.FILTER, needs=("correct",), scope="group")


def mask_truncated() -> Transform:
    """Take out the tokens of responses that were cut at the limit: their reward says nothing about their end.

    DAPO's overlong filtering (arXiv 2503.14476, sec. 3.4). The rows stay in their group's statistics.
    """

    def apply(batch: Batch) -> Batch:
        truncated = batch.need("truncated", "mask_truncated")
        return replace(batch, selected=batch.selected & ~truncated[:, None])

    return Transform("mask_truncated", apply, stage=Stage.TOKENS, needs=("truncated",), scope="group")
