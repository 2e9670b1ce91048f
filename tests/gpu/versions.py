"""Part 1: what is installed, and what it runs on."""

import importlib.metadata
import platform

from report import device, main, say

PACKAGES = ("torch", "triton", "transformers", "accelerate", "peft", "deepspeed", "trl", "datasets", "vllm", "pydantic")


def part() -> None:
    import torch

    found = {"device": device(), "python": platform.python_version(), "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "gib": round(properties.total_memory / 2**30, 1)}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    say(**found)


if __name__ == "__main__":
    main(part)
