#!/usr/bin/env bash
# Installs align in .venv and trains SmolLM2-135M with GFPO on one-digit sums. Arguments override keys: run.seed=1
cd "$(dirname "$0")/.."
source launch/setup.sh
launch=(--config_file launch/cpu.yaml)
if [ "$machine" = gpu ]; then launch=(--config_file launch/zero2.yaml --num_processes "$(nvidia-smi -L | wc -l)"); fi
exec accelerate launch "${launch[@]}" recipes/train.py recipes/gfpo_chain_sum.yaml "$@"
