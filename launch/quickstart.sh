#!/usr/bin/env bash
# Installs align in .venv and trains SmolLM2-135M with GFPO on one-digit sums. Arguments override keys: run.seed=1
cd "$(dirname "$0")/.."
source launch/setup.sh
launch=(python) # one process needs no launcher
if [ "$machine" = gpu ]; then
    gpus=$(python -c "import torch; print(torch.cuda.device_count())") # nvidia-smi -L lists slices of GPUs (MIG) too
    [ "$gpus" -gt 0 ] || { echo "nvidia-smi finds a GPU and torch none: its driver is too old, or this torch has no CUDA"; exit 1; }
    launch=(accelerate launch --config_file launch/zero2.yaml --num_processes "$gpus")
fi
exec "${launch[@]}" recipes/train.py recipes/gfpo_chain_sum.yaml "$@"
