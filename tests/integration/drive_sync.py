"""Does the sampler follow the trainer? RECIPE OUT [key=value ...]: gaps between their log-probabilities, as JSON."""

import json
import sys

import torch

from align import check, config, rollouts
from align.loop import Loop
from align.prepare import make_accelerator, prepare, set_threads
from align.train import quiet

recipe, out, *overrides = sys.argv[1:]
quiet()
set_threads()
experiment = config.load(recipe, overrides)
accelerator = make_accelerator(experiment)
loop = prepare(check.passed(experiment, accelerator), accelerator)


def gap(loop: Loop) -> float:
    """Largest difference in nats over freshly sampled responses to all prompts."""
    sampled = rollouts.sample(
        loop.sources["data"].train,
        loop.generator,
        loop.rank,
        n=4,
        temperature=0.7,
        max_tokens=12,
        seed=accelerator.process_index,
    )
    batch = rollouts.to_batch(
        rollouts.gather(rollouts.score(sampled, loop.workers, experiment, loop.tokenizer, len(sampled))), loop.tokenizer
    )
    trainer = loop.learner.score(batch, torch.ones_like(batch.kept))["logprob"]
    return float((trainer - batch.sampler_logprob)[batch.mask].abs().max())


gaps = {"start": gap(loop)}
for step in range(4):
    metrics, (taken,) = loop.step(step)
gaps["after four steps"] = gap(loop)
loop.learner.update([taken.credits], 4)
gaps["updated, not synced"] = gap(loop)
loop.generator.sync(loop.learner.model)
gaps["synced"] = gap(loop)
if accelerator.is_main_process:
    with open(out, "w") as file:
        json.dump({"gaps": gaps, "metrics": metrics, "threads": torch.get_num_threads()}, file)
accelerator.wait_for_everyone()  # as a run does: a rank that leaves early breaks the gathers of the others
loop.generator.close()
accelerator.end_training()
