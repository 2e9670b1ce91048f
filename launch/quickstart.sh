#!/usr/bin/env bash
# Installs align in .venv and trains SmolLM2-135M with GFPO on one-digit sums. Arguments override keys: run.seed=1
cd "$(dirname "$0")/.."
source launch/setup.sh
launch=(python) # one process needs no launcher
if [ "$machine" = gpu ]; then
    launch=(accelerate launch --config_file launch/zero2.yaml --num_processes "$(nvidia-smi -L | wc -l)")
fi
exec "${launch[@]}" recipes/train.py recipes/gfpo_chain_sum.yaml "$@"
