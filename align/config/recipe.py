"""Every key of a recipe with its type, range and default; the larger sections have a file each beside this one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import Discriminator, Field, FiniteFloat, Tag

from align.config.data_keys import Data
from align.config.environment_keys import Environment
from align.config.model_keys import Model
from align.config.optim_keys import Optim
from align.config.sampling_keys import Sampling
from align.config.sentinel import Sentinel
from align.ranges import (
    Count,
    CountOrZero,
    Epochs,
    Fraction,
    Gib,
    Name,
    Seconds,
    Section,
    Seed,
    Temperature,
)


@dataclass(frozen=True)
class RewardFunction:
    """A reward: a function with its own arguments, or what an environment gives. `name` is the attribute's name, made
    distinct within the recipe; that of one of several environments is its key."""

    name: str
    path: str  # package.module:attribute
    weight: float
    args: Mapping[str, Any] = field(default_factory=dict)
    key: tuple[str | int, ...] = ()  # where the recipe names it
    given_by: Literal["function", "environment"] = "function"


class Reward(Section):
    """A reward function and its weight in the sum."""

    fn: str
    weight: FiniteFloat = 1.0
    args: dict[str, Any] = {}


class RewardLimits(Section):
    """Time and memory that a call of a reward function may take, and how often one may fail."""

    seconds: Seconds = Field(60.0, description="of one call; of async functions, of one row")
    memory_gib: Gib = Field(8.0, description="address space of each process that calls them")
    processes: Count = Field(
        1, description="of each reward on each rank, which share its rows: more where a slow reward keeps GPUs waiting"
    )
    concurrency: Count = Field(16, description="rows that an async function works on at once, in each process")
    max_failed: Fraction = Field(
        0.5, description="a reward that fails on more of a step's rows than this stops the run"
    )


class Correct(Section):
    """When a response counts as correct, for pass@k and for objectives that look at it."""

    reward: str = Field(description="name of the reward function that decides")
    at_least: FiniteFloat = 1.0


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
    samples: Literal["all", "none"] | Count = Field(
        "all", description="responses a step and source that samples.jsonl has: a number takes whole groups at random"
    )
    samples_part_mib: Count = Field(
        1024, description="MiB from which on samples.jsonl becomes samples.00001.jsonl, ..., and a new one begins"
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


def _number(section: Any) -> str:
    """`several` where every value of `data` or `environment` is a source or an environment of its own, else `one`."""
    several = isinstance(section, Mapping) and section and all(isinstance(value, Mapping) for value in section.values())
    return "several" if several and not set(section) <= {"args", "eval_args"} else "one"


OneOrSeveral = Discriminator(_number)


class Recipe(Section):
    """A whole recipe."""

    model: Model
    data: Annotated[Annotated[Data, Tag("one")] | Annotated[dict[str, Data], Tag("several"), MinLen(1)], OneOrSeveral]
    environment: (
        Annotated[
            Annotated[Environment, Tag("one")] | Annotated[dict[str, Environment], Tag("several"), MinLen(1)],
            OneOrSeveral,
        ]
        | None
    ) = Field(None, description="what responses of several turns act in; of several {NAME: ...}, by the rows' column")
    sampling: Sampling = Sampling()
    rewards: dict[str, FiniteFloat] | list[Reward] = Field(
        {}, description="needed where responses are sampled and no environment rewards them"
    )
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

    def environments(self) -> dict[str, Environment]:
        """{name: environment}; where there is one it is called as the attribute that its path names."""
        if isinstance(self.environment, Environment):
            return {self.environment.name.partition(":")[2]: self.environment}
        return self.environment or {}

    def target(self) -> Hub | None:
        """Where the result is pushed; None where it is not."""
        return Hub(repo=self.hub) if isinstance(self.hub, str) else self.hub

    def reward_list(self) -> list[Reward]:
        """The reward functions, in whichever form the recipe gives them."""
        if isinstance(self.rewards, list):
            return self.rewards
        return [Reward(fn=fn, weight=weight) for fn, weight in self.rewards.items()]
