"""Host memory of each process while a model is loaded and saved under ZeRO-3, by one process and by two.

    python tests/bench/shards.py [RANKS ...]

A random Llama of 0.4 billion parameters, 1.5 GiB in float32. Of each part, GiB of each rank: `held` is the most that
the process had of its own (RssAnon, looked at every 2 ms) above what it had before any model, `left` what it has of it
afterwards. `mapped` are pages of the model's files at most (RssFile): the system takes them back when it needs them.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
POLL_S = 0.002
KINDS = {"RssAnon": "held", "RssFile": "mapped"}


def resident() -> dict[str, float]:
    """{held, mapped: GiB} of this process."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(rows[kind].split()[0]) / 2**20 for kind, name in KINDS.items()}


@contextmanager
def watched(start: dict[str, float], found: dict[str, float]):
    """Fill `found` with what the process had at most inside the block, and with what is `left`, above `start`."""
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            for name, value in resident().items():
                found[name] = max(found.get(name, 0.0), value - start[name])
            time.sleep(POLL_S)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        found["left"] = resident()["held"] - start["held"]


def save_model(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=65_536,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=20,
        num_attention_heads=16,
        num_key_value_heads=16,
        tie_word_embeddings=True,
        dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="512MB")


def rank(folder: str, out: str) -> None:
    """One rank of a launch: load and save; its memory goes into a file of `out`."""
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    from align.learner import weights
    from align.model.load import load_model

    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
    start, found = resident(), {"load": {}, "save": {}}
    with watched(start, found["load"]):
        model = load_model(folder, "float32")
    accelerator.wait_for_everyone()
    with watched(start, found["save"]):
        weights.save(model, Path(out, "saved"), write=accelerator.is_main_process)
        accelerator.wait_for_everyone()
    Path(out, f"rank_{accelerator.process_index}.json").write_text(json.dumps(found))
    accelerator.end_training()


def launched(folder: Path, ranks: int) -> list[dict]:
    with tempfile.TemporaryDirectory() as out:
        command = ["accelerate", "launch", "--config_file", str(ROOT / "launch/cpu_zero3.yaml")]
        command += ["--num_processes", str(ranks), "--main_process_port", "0", __file__, "rank", str(folder), out]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return [json.loads(Path(out, f"rank_{i}.json").read_text()) for i in range(ranks)]


def main(*ranks: str) -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))
        for count in map(int, ranks or ("1", "2")):
            for i, found in enumerate(launched(Path(folder), count)):
                for part, gib in found.items():
                    row = "  ".join(f"{name} {value:5.2f}" for name, value in gib.items())
                    print(f"{count} ranks  rank {i}  {part}  {row}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        rank(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
