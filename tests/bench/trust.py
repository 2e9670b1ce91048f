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

    from align import check, config, rollouts
    from align.journal import Journal
    from align.prepare import make_accelerator, prepare, set_threads
    from align.runlog import RunLog
    from align.schema import load_object
    from align.scoring import arguments_of
    from align.watch import Watch

    set_threads()
    experiment = config.load(RECIPE, ["data.holdout=0", f"run.out={folder / 'run'}"])
    accelerator = make_accelerator(experiment)
    loop = prepare(check.passed(experiment, accelerator), accelerator)
    journal, before, after, calls = Journal(folder / "rollouts", [(0, "bench")]), Counted(), Counted(), []
    sampled, scored, judge_all = journal.sampled, journal.scored, rollouts.score

    class Timed(Journal):
        def sampled(self, place, prompts, sample):
            return before.outside(sampled)(place, prompts, before.inside(sample))

        def scored(self, place, responses, score):
            return after.outside(scored)(place, responses, after.inside(score))

    def judged(responses, workers, *rest):
        out = judge_all(responses, workers, *rest)
        arguments = arguments_of([r[2] for r in responses], [r[3] for r in responses], [r.text for r in out])
        start = time.perf_counter()
        for worker in workers:
            load_object(worker.reward.path)(**{**arguments, **worker.reward.args})
        calls.append(time.perf_counter() - start)
        return out

    rollouts.score = judged
    loop = replace(loop, journal=Timed(journal.folder, journal.lineage))
    watch = Watch(loop, RunLog(folder / "run", accelerator, 0))
    with (folder / "steps.jsonl").open("w") as file:
        for step in range(STEPS + 1):
            before.seconds, after.seconds, start = 0.0, 0.0, time.perf_counter()
            metrics, _ = loop.step(step)
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
    loop.generator.close()


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
