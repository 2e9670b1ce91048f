"""What checking a run while it goes on costs: the share of a quickstart step, at most 3 % is the aim.

    python tests/bench/trust.py --json FILE

Steps of the quickstart through `accelerate launch`, on all cores. Of each step: the proof of the sync, the journal of
rollouts, the sentinel, and what rewards in a process of their own take beyond the same call in this one. The check
before a run and checkpoints are no part of a step.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes/gfpo_chain_sum.yaml"
STEPS = 12  # after a first one, which is left out


class Counted:
    """Adds up the seconds of functions, without those of what they call through `inside`."""

    def __init__(self):
        self.seconds = 0.0

    def outside(self, fn):
        def call(*args):
            start = time.perf_counter()
            out = fn(*args)
            self.seconds += time.perf_counter() - start
            return out

        return call

    def inside(self, fn):
        def call():
            start = time.perf_counter()
            out = fn()
            self.seconds -= time.perf_counter() - start
            return out

        return call


def run(folder: Path) -> None:
    """In the launched process: writes one line of seconds a step."""
    from dataclasses import replace

    from align.check.check import check_run
    from align.checkpoint.resume import Origin
    from align.config.experiment import load_experiment
    from align.config.factories import load_object
    from align.rollout.journal import Journal
    from align.rollout.rollouts import Scorer
    from align.run.log import RunLog
    from align.run.processes import make_accelerator, set_threads
    from align.run.sentinel import Watch
    from align.run.setup import load
    from align.scoring.score import arguments_of

    set_threads()
    experiment = load_experiment(RECIPE, ["data.holdout=0", f"run.out={folder / 'run'}"])
    accelerator = make_accelerator(experiment)
    run = load(check_run(experiment, accelerator), Origin(), accelerator)
    before, after, calls = Counted(), Counted(), []

    class Timed(Journal):
        def sampled(self, call, prompts, sample):
            return before.outside(super().sampled)(call, prompts, before.inside(sample))

        def scored(self, call, responses, score):
            return after.outside(super().scored)(call, responses, after.inside(score))

    class Called(Scorer):
        def score(self, responses, total_rows):
            out = super().score(responses, total_rows)
            arguments = arguments_of([r[2] for r in responses], [r[3] for r in responses], [r.text for r in out])
            start = time.perf_counter()
            for worker in self.workers:
                load_object(worker.reward.path)(**{**arguments, **worker.reward.args})
            calls.append(time.perf_counter() - start)
            return out

    (source,) = run.loop.sources
    journal = Timed(folder / "rollouts", [(0, "bench")])
    scorer = Called(source.scorer.workers, source.scorer.experiment, source.scorer.tokenizer)
    loop = replace(run.loop, sources=[replace(source, scorer=scorer, journal=journal)])
    watch = Watch(run, RunLog(folder / "run", accelerator, 0))
    with (folder / "steps.jsonl").open("w") as file:
        for step in range(STEPS + 1):
            before.seconds, after.seconds, start = 0.0, 0.0, time.perf_counter()
            metrics = loop.step(step).metrics
            whole, start = time.perf_counter() - start - calls[-1], time.perf_counter()
            watch.judge(step + 1, metrics)
            found = {
                "step": whole,
                "proof": metrics["seconds/proof"],
                "journal": before.seconds + after.seconds,
                "sentinel": time.perf_counter() - start,
                "rewards": metrics["seconds/score"] - after.seconds - 2 * calls[-1],
            }
            file.write(json.dumps(found) + "\n")
    run.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.run:
        return run(wanted.run)
    with tempfile.TemporaryDirectory() as folder:
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / "launch/cpu.yaml")]
        subprocess.run([*launch, __file__, "--run", folder], check=True, cwd=ROOT)
        rows = [json.loads(line) for line in (Path(folder) / "steps.jsonl").read_text().splitlines()][1:]
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    shares = [sum(value for name, value in row.items() if name != "step") / row["step"] for row in rows]
    found = {"share": statistics.median(shares), "spread": [min(shares), max(shares)], "median_s": medians, "raw": rows}
    if wanted.json:
        wanted.json.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps({name: found[name] for name in ("share", "spread", "median_s")}, indent=2))


if __name__ == "__main__":
    main()
