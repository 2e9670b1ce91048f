"""The held-out evaluation of a run: responses that the rewards judge, and pairs that the objectives measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase

from align.config.experiment import Experiment
from align.credit import assign
from align.data.prompts import Pair, Prompt, Prompts, pairs_in
from align.learner.learner import Learner
from align.learner.passes import ForwardPasses
from align.metrics.evaluation import drift, pair_summary, summarise
from align.rollout import tensors
from align.rollout.rollouts import Rollout, Scorer
from align.rollout.sampler import Sampler
from align.rollout.seeds import Draw
from align.rollout.sources import GREEDY, SAMPLED, PairSource
from align.system.clock import Clock


def eval_prompts(experiment: Experiment, prompts: Mapping[str, Prompts]) -> list[Prompt]:
    """Held-out prompts whose responses the rewards judge; those of pairs where there are no others and none is sampled
    in training."""
    held_out = [prompt for source in prompts.values() for prompt in source.held_out]
    others = [prompt for prompt in held_out if not isinstance(prompt, Pair)]
    return others if others or has_rollouts(experiment) else held_out


def has_rollouts(experiment: Experiment) -> bool:
    """Whether training steps sample responses; else a sampler only serves evaluations."""
    return any(data.sampled for data in experiment.recipe.sources().values())


@dataclass(frozen=True)
class ResponseEvaluation:
    """Samples responses to held-out prompts and has the rewards judge them. The same random numbers every time."""

    experiment: Experiment
    prompts: Sequence[Prompt]
    tokenizer: PreTrainedTokenizerBase
    learner: Learner
    sampler: Sampler
    scorer: Scorer
    synced: bool  # whether each step leaves the policy with the sampler; else it is handed over here

    def run(self) -> tuple[dict[str, float], list[Rollout]]:
        """(metrics, greedy responses). Collective."""
        recipe = self.experiment.recipe
        sync = {} if self.synced else self.sampler.sync(self.learner, Clock())
        settings = {SAMPLED: (recipe.eval.samples, recipe.eval.temperature), GREEDY: (1, 0.0)}
        found = {}
        for purpose, (n, temperature) in settings.items():
            draw = Draw(recipe.run.seed, 0, purpose)
            sampled = self.sampler.sample(self.prompts, n=n, temperature=temperature, draw=draw, clock=Clock())
            found[purpose] = self.scorer.gather(self.scorer.score(sampled, n * len(self.prompts)))
        if not self.synced:
            self.sampler.sleep()  # nothing else wakes it
        metrics = {**summarise(found[SAMPLED], found[GREEDY], recipe.eval.pass_at), **sync}
        refers = any("ref_logprob" in objective.needs for objective in self.experiment.objectives)
        if refers and self.learner.has_reference and recipe.eval.temperature == recipe.sampling.temperature:
            metrics |= drift([rollout.group for rollout in found[SAMPLED]], self._kl(found[SAMPLED]))
        return metrics, found[GREEDY]

    def _kl(self, sampled: Sequence[Rollout]) -> list[float]:
        """log p(response) of the policy less that of the reference: their mean is KL(policy || reference)."""
        batch = tensors.to_batch([replace(rollout, reward=0.0) for rollout in sampled], self.tokenizer)
        ref = self.learner.score(batch, batch.kept, who="reference")["logprob"]
        return torch.where(batch.mask, batch.sampler_logprob - ref, 0.0).sum(1).tolist()


@dataclass(frozen=True)
class Evaluation:
    """Everything that is measured on what was held out."""

    responses: ResponseEvaluation | None  # None where no response is judged
    pair_sources: Sequence[PairSource]  # those with held-out pairs
    learner: Learner
    old_logprob: str

    @property
    def has_eval(self) -> bool:
        """Whether there is anything to evaluate on."""
        return self.responses is not None or bool(self.pair_sources)

    def run(self) -> tuple[dict[str, float], list[Rollout]]:
        """(metrics, greedy responses). Collective."""
        metrics, greedy = self.responses.run() if self.responses else ({}, [])
        for source in self.pair_sources:
            prefix = f"eval/pairs/{source.name}" if len(self.pair_sources) > 1 else "eval/pairs"
            metrics |= {f"{prefix}/{name}": value for name, value in self._measure_pairs(source).items()}
        return metrics, greedy

    def _measure_pairs(self, source: PairSource) -> dict[str, float]:
        """{measure: value} of the objectives that learn from these pairs, their loss among them."""
        batch = source.batch(pairs_in(source.prompts.held_out), progress=0.0)
        forward = ForwardPasses(self.learner, self.old_logprob, Clock())
        annotate = forward.for_batch({name for objective in source.objectives for name in objective.reads})
        # nothing is updated here, so the policy of now is the old one
        credited = [assign(objective, batch, annotate, ("old_logprob",)) for objective in source.objectives]
        credited = [one for one in credited if one.objective.preference]
        return pair_summary(*self.learner.measure([credited])) if credited else {}
