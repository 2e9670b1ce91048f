"""Does the sampler follow the trainer? RECIPE OUT [key=value ...]: gaps between their log-probabilities, as JSON."""

import json
import sys
from functools import partial

import torch
from accelerate.utils import gather_object

from align.check.check import check_run
from align.checkpoint.resume import Origin
from align.config.experiment import load_experiment
from align.rollout import rollouts, tensors
from align.rollout.rollouts import Scorer
from align.rollout.seeds import Draw
from align.run.processes import make_accelerator, set_threads
from align.run.setup import Run, load
from align.run.terminal import quiet
from align.system.clock import Clock

recipe, out, *overrides = sys.argv[1:]
quiet()
set_threads()
experiment = load_experiment(recipe, overrides)
accelerator = make_accelerator(experiment)
run = load(check_run(experiment, accelerator), Origin(), accelerator)


responses = []  # (text, truncated) of all
engine, sampled_ids = run.sampler.generator, []  # all that this rank's engine sampled
generate = engine.generate


def noted(*arguments, **settings):
    found = generate(*arguments, **settings)
    sampled_ids.append([response.ids for group in found for response in group])
    return found


engine.generate = noted


def gap(run: Run) -> float:
    """Largest difference in nats over freshly sampled responses to all prompts."""
    run.sampler.generator.forget()
    sampled = rollouts.sample(
        run.prompts["data"].train,
        partial(run.sampler.generator.generate, temperature=0.7),
        run.sampler.process,
        n=4,
        max_tokens=12,
        draw=Draw(0, 0, 0),
    )
    scorer = Scorer(run.workers, run.experiment, run.tokenizer)
    batch = tensors.to_batch(scorer.gather(scorer.score(sampled, len(sampled))), run.tokenizer)
    responses.extend((run.tokenizer.decode(response.ids), response.truncated) for *_, response in sampled)
    trainer = run.learner.score(batch, torch.ones_like(batch.kept))["logprob"]
    return float((trainer - batch.sampler_logprob)[batch.mask].abs().max())


if experiment.recipe.model.quantize:
    run.sampler.sync(run.learner, Clock())  # as at a run's start
gaps = {"start": gap(run)}
first = record = run.loop.step(0)
for step in range(1, 4):
    record = run.loop.step(step)
gaps["after four steps"] = gap(run)
run.learner.update(run.learner.plan([batch.credited for batch in record.batches]), 4)
gaps["updated, not synced"] = gap(run)
run.sampler.generator.sync(run.learner.model)
gaps["synced"] = gap(run)
engines = len({json.dumps(ids) for ids in gather_object([sampled_ids])})  # that sampled each something else
if accelerator.is_main_process:
    with open(out, "w") as file:
        found = {"gaps": gaps, "metrics": record.metrics, "threads": torch.get_num_threads(), "responses": responses}
        found["engines"] = engines
        json.dump({**found, "first": first.metrics}, file)
accelerator.wait_for_everyone()  # as a run does: a rank that leaves early breaks the gathers of the others
run.close()
accelerator.end_training()
