"""Size of the page of 2,000 responses of 200 tokens, and seconds until it is drawn: `python tests/bench/xray.py`.

CPU seconds are those of the process that shows the page, all of its threads: they count where other work delays it.
The worst case: every stream of every token is noise, as no run has it, under two objectives with three transforms.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from support import browser  # noqa: E402

from align.result.samples import RecordedRollout  # noqa: E402
from align.xray.credits import CARRIES, Credits  # noqa: E402
from align.xray.data import Look, Seen  # noqa: E402
from align.xray.page import write  # noqa: E402

ROWS, TOKENS, OPENINGS = 2000, 200, 5
STREAMS = ("sampler_logprob", "old_logprob", "logprob", "entropy", "ref_logprob")


def look() -> Look:
    """A run of 10 steps of 25 groups of 8."""
    draw = np.random.default_rng(0)
    words = [f" w{i}" for i in range(5000)]
    seen = []
    for step in range(1, 11):
        rows = {f"x:{i}": row(draw, step, i, words) for i in range(ROWS // 10)}
        seen.append(Seen(rows, [credits(draw, "one", len(rows)), credits(draw, "other", len(rows))]))
    metrics = [{"step": step, "loss": float(draw.normal()), "reward/mean": step / 10} for step in range(1, 11)]
    return Look("bench", seen, metrics)


def row(draw, step, i, words):
    ids = draw.zipf(1.3, TOKENS) % len(words)
    streams = {name: (-draw.exponential(1.0, TOKENS)).tolist() for name in STREAMS}
    return RecordedRollout.model_construct(
        version=1, step=step, source="data", group=f"{step}-{i // 8}", prompt=f"question {i // 8} of step {step}",
        response_ids=ids.tolist(), token_text=[words[j] for j in ids], reward=float(draw.random() < 0.5), **streams,
    )  # fmt: skip


def credits(draw, name, rows):
    values = [draw.normal(size=TOKENS).astype(np.float32).astype(float) for _ in range(rows)]
    taken = [np.where(draw.random(TOKENS) < 0.5, CARRIES, draw.integers(0, 3, TOKENS)) for _ in range(rows)]
    after = {1: [draw.normal(size=TOKENS) for _ in range(rows)]}
    return Credits(name, ("keep", "advantage", "top"), [True] * rows, taken, after, values, [np.ones(TOKENS)] * rows)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        page, start = Path(folder) / "page.html", time.perf_counter()
        size = write(look(), page)
        told = {"MiB": round(size / 2**20, 2), "seconds to write": round(time.perf_counter() - start, 2)}
        opened, busy = [], []
        for number in range(OPENINGS):
            with browser.chromium(Path(folder) / f"profile{number}") as tab:
                opened.append(tab.open(page))
                busy.append(tab.cpu_seconds())
        told |= {"seconds to open": round(statistics.median(opened), 2), "all": [round(s, 2) for s in opened]}
        told |= {"CPU seconds of the page's process": round(statistics.median(busy), 2)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
