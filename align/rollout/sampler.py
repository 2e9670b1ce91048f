"""Sample from the policy: hand each new one to the engine, and check that it arrived."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from align.config.sampling_keys import Sampling
from align.data.prompts import Prompt
from align.learner.learner import Learner
from align.rollout import rollouts
from align.rollout.environments import Environments
from align.rollout.episodes import play
from align.rollout.generator import Generator, asked
from align.rollout.rollouts import Process, Sampled
from align.rollout.seeds import Draw
from align.rollout.sync_check import SyncCheck
from align.rollout.sync_faults import SyncError, other_settings
from align.rollout.sync_gate import rollouts_agree
from align.system.clock import Clock
from align.system.deadline import deadline


@dataclass(frozen=True)
class Sampler:
    """This rank's engine with its limits: what takes longer than `sampling.deadline_s` raises `DeadlineError`."""

    generator: Generator
    sync_check: SyncCheck
    process: Process
    sampling: Sampling
    environments: Environments | None = None  # None where every response is one turn
    limit: Callable[[str, float], AbstractContextManager] = deadline  # of a generation

    def sample(self, prompts: Sequence[Prompt], *, n: int, temperature: float, draw: Draw, clock: Clock) -> Sampled:
        """Sample n responses to each prompt of this rank's part, or play as many episodes; temperature 0 is greedy.

        Raises `SyncError` where the engine had other settings than the recipe's.
        """
        self.generator.forget()
        generate = partial(self._generate, temperature=temperature, clock=clock)
        if self.environments:
            return play(prompts, generate, self.process, self.environments, n=n, draw=draw, clock=clock)
        most = self.sampling.max_response_tokens
        return rollouts.sample(prompts, generate, self.process, n=n, max_tokens=most, draw=draw)

    def _generate(self, ids: Sequence[Sequence[int]], *, temperature: float, max_tokens: int, clock: Clock, **rest):
        """Generate in time, as the recipe says. Raises `SyncError`."""
        with clock("generate"), self.limit("generation", self.sampling.deadline_s):
            found = self.generator.generate(ids, temperature=temperature, max_tokens=max_tokens, **rest)
        wanted = asked(self.sampling, temperature, max_tokens)
        if found and (wrong := other_settings(self.generator.settings, wanted)):
            raise SyncError(wrong.kind, f"the sampler does not sample as the recipe says: {wrong.what}. {wrong.mend}")
        return found

    def sync(self, learner: Learner, clock: Clock) -> dict[str, float]:
        """Hand over the policy and check that it arrived; the metrics of `check`. Collective. Raises `SyncError`."""
        with clock("sync"), deadline("sync", self.sampling.deadline_s):
            self.generator.sync(learner.model)
        return self.check(learner, clock)

    def check(self, learner: Learner, clock: Clock) -> dict[str, float]:
        """Check that the engine has the policy; the metrics of `SyncCheck.check`. Collective. Raises `SyncError`."""
        with clock("proof"), deadline("sync check", self.sampling.deadline_s):
            return self.sync_check.check(self.generator, learner)

    def agree(self, update: Mapping[str, float]) -> dict[str, float]:
        """Check by a step's first update that the engine sampled its rollouts from the policy; the metrics that told.
        Raises `SyncError`."""
        return rollouts_agree(update, self.sampling.tolerance)

    def sleep(self) -> None:
        """Leave the engine's memory to the trainer until the next sync."""
        self.generator.sleep()

    def close(self) -> None:
        """Release the engine's memory and process groups, and end the environments."""
        self.generator.close()
        if self.environments:
            self.environments.close()
