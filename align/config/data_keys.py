"""The keys of a recipe's section `data`, or of one of its sources."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from align.ranges import Count, CountOrZero, Name, Section


class Data(Section):
    """A source of prompts to sample responses to, or of preference pairs."""

    prompts: Name | None = Field(
        None, description="hub name, local .jsonl/.json/.parquet/.csv file, or module:name of rows"
    )
    pairs: Name | None = Field(None, description="likewise, of rows with prompt, chosen and rejected")
    episodes: Count | None = Field(
        None, description="instead of rows: episodes with an empty prompt and the seeds 0, 1, ...; holdout has others"
    )
    bank: Name | None = Field(None, description="folder of `python -m align annotate`: the pairs' log-probabilities")
    args: dict[str, Any] = Field({}, description="arguments of module:name, or of datasets.load_dataset (split, name)")
    holdout: CountOrZero = Field(0, description="distinct prompts kept out of training, for evaluation")
    holdout_by: Name | None = Field(None, description="column whose values may not stand on both sides of the holdout")
    eval_prompts: Name | None = Field(
        None, description="evaluation prompts from a source of their own, not a holdout; of pairs, besides it"
    )
    eval_args: dict[str, Any] = {}
    system: str | None = Field(None, description="system message for conversational prompts that have none")
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="variables of the chat template, such as enable_thinking: false"
    )
    prompts_per_step: Count = Field(8, description="of pairs: pairs")
    max_prompt_tokens: Count = 512
    long_prompts: Literal["error", "drop"] = Field("error", description="drop leaves such rows out, and counts them")
    max_response_tokens: Count = Field(512, description="longer responses of pairs are cut")

    @model_validator(mode="after")
    def _one_source(self):
        if sum(value is not None for value in (self.prompts, self.pairs, self.episodes)) != 1:
            raise ValueError("write one of prompts, pairs and episodes")
        if self.episodes and (self.args or self.holdout_by):
            raise ValueError("episodes have neither args nor holdout_by; leave them out")
        if self.bank and not self.pairs:
            raise ValueError("a bank goes with pairs")
        return self

    @property
    def sampled(self) -> bool:
        """Whether the policy writes the responses, and the data does not bring them along."""
        return self.pairs is None
