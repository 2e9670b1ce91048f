"""A source of rollouts, whose engine is right where a plan says so."""

import tempfile
from pathlib import Path
from types import SimpleNamespace

from align.config.recipe import RewardLimits
from align.config.sampling_keys import DynamicSampling, Sampling
from align.data.prompts import Prompt, Prompts, Response
from align.rollout.journal import Journal
from align.rollout.rollouts import Process, Scorer
from align.rollout.sampler import Sampler
from align.rollout.sources import RolloutSource
from support.rollouts import WORDS


class Engine:
    """An engine whose responses to prompt [n] are right with the outcomes that `plan` gives to n."""

    def __init__(self, plan):
        self.plan, self.asked, self.settings = plan, [], {"temperature": 1.0, "max_tokens": 1}

    def forget(self):
        pass

    def generate(self, prompts, *, n, temperature, max_tokens, seeds):
        self.asked.append([prompt[0] for prompt in prompts])
        return [[Response([int(right)], [-1.0], False) for right in self.plan[prompt[0]]] for prompt in prompts]


def make_source(right, worker, folder, plan, rounds):
    """(source, its engine): prompt [n] has the outcomes `plan[n]`; `rounds` of dynamic sampling, or None."""
    dynamic = DynamicSampling(rounds=rounds) if rounds else None
    sampling = Sampling(group_size=2, max_response_tokens=1, dynamic_sampling=dynamic)
    recipe = SimpleNamespace(
        sources=lambda: {"data": SimpleNamespace(prompts_per_step=2)},
        run=SimpleNamespace(seed=0, steps=1),
        optim=SimpleNamespace(schedule_steps=1),
        reward_limits=RewardLimits(),
        sampling=sampling,
    )
    experiment = SimpleNamespace(recipe=recipe, rewards=(right,), correct=SimpleNamespace(reward="right", at_least=1))
    prompts = Prompts([Prompt([n], str(n), str(n), {}) for n in range(len(plan))], [])
    engine = Engine(plan)
    sampler, scorer = Sampler(engine, None, Process(0, 1), sampling), Scorer([worker], experiment, WORDS)
    journal = Journal(Path(tempfile.mkdtemp(dir=folder)), [(0, "test")])
    return RolloutSource("data", 0, prompts, (), recipe, WORDS, sampler, scorer, journal), engine
