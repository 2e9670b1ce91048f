"""The keys of a recipe's section `sampling`."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import MinLen
from pydantic import Field

from align.ranges import (
    Count,
    CountOrZero,
    Gib,
    GroupSize,
    Positive,
    Probability,
    RelativeProbability,
    Seconds,
    Section,
    ServerUrl,
    Several,
    Temperature,
)


class DynamicSampling(Section):
    """Drop groups whose responses are all correct or all wrong, and sample further prompts instead (DAPO)."""

    rounds: Several = Field(4, description="most times that a step samples; then it takes what there is")


class Sampling(Section):
    """How rollouts are sampled, and by which engine."""

    group_size: GroupSize = 8
    temperature: Temperature = Field(1.0, description="also that at which all log-probabilities are read, pairs' too")
    top_p: Probability = Field(
        1.0, description="sample from the likeliest tokens that together have this probability; the policy is cut alike"
    )
    top_k: CountOrZero = Field(0, description="sample from so many of the likeliest tokens; 0: from all")
    min_p: RelativeProbability = Field(
        0.0, description="sample from tokens at least this many times as likely as the likeliest"
    )
    stop: list[Annotated[str, MinLen(1)]] = Field(
        [], description="texts that end a response, which keeps them and does not count as truncated"
    )
    max_response_tokens: Count = Field(
        256, description="a longer response is cut and counts as truncated; of an episode: all that both sides say"
    )
    max_turn_tokens: Count | None = Field(None, description="of one turn of an episode; default: all that is left")
    engine: Literal["vllm", "server", "transformers"] = Field(
        "vllm",
        description="vllm: one in each process; server: those of servers; transformers: the trainer's own module",
    )
    servers: list[ServerUrl] = Field(
        [],
        description="addresses of vLLM servers, each started with PORT=8000 bash launch/serve.sh RECIPE; no other "
        "address is asked; the variable ALIGN_SERVER_TOKEN is their token, where it is set on both sides",
    )
    liveness_s: Seconds = Field(
        30.0,
        description="seconds in which a server must give one token, or part of the weights; else it counts as lost",
    )
    sync: Literal["adapter", "merged"] | None = Field(None, description="default: merged on CPU, adapter on GPUs")
    dynamic_sampling: DynamicSampling | None = None
    staleness: Literal[0, 1] = Field(
        0,
        description="1: a step is sampled while the one before it is updated, by a policy one step behind; only with "
        "engine: server, and an importance weight",
    )
    old_logprob: Literal["sampler", "trainer"] = Field("sampler", description="whose log-probabilities the ratio has")
    tensor_parallel: Count = Field(
        1,
        description="processes that share one engine, each with its part of every layer; a power of 2; of each server: "
        "its GPUs, which launch/serve.sh takes from here as it does cache_gib, compile and max_sequences",
    )
    cache_gib: Gib | None = Field(
        None,
        description="memory of the engine's key-value cache, for each process; default: 1 on a CPU, on GPUs a share "
        "of what the trainer leaves, and no more than max_sequences can fill",
    )
    compile: bool = Field(True, description="false: vLLM starts half a minute sooner and samples slower")
    max_sequences: Count | None = Field(
        None, description="responses that the engine works on at once; default: 64 on a CPU, 256 on GPUs"
    )
    sleep: bool | None = Field(
        None,
        description="leave the cache's memory to the update, and with sync: merged that of the weights; "
        "default: true on GPUs, the only place where vLLM can; not with servers, whose memory is their own",
    )
    tolerance: Positive | None = Field(
        None, description="mean nats a token that sampler and trainer may differ by; default: by model.dtype"
    )
    deadline_s: Seconds = Field(1800.0, description="seconds after which a generation or a sync counts as hung")
