#!/usr/bin/env bash
#SBATCH --job-name=align
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --output=slurm-%j.log
# Trains a recipe on the nodes of a SLURM job: one `accelerate launch` a node by srun, no pdsh, no shared folder needed.
#   sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh RECIPE [key=value ...] [--resume]
# LAUNCH=launch/nodes_zero3.yaml is another launch file, PORT another port. A job that SLURM starts again resumes. Read
# and tried with stand-ins for srun and scontrol; nobody has run it under SLURM yet.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?this script is for sbatch}"
if [ -d .venv ]; then export PATH="$PWD/.venv/bin:$PATH"; fi # of launch/quickstart.sh; on a folder that all nodes see
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [[ " $* " != *" --resume "* ]]; then set -- "$@" --resume; fi

each=${SLURM_GPUS_ON_NODE:-1} # without GPUs one process a node
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export LAUNCH=${LAUNCH:-launch/nodes_zero2.yaml} PORT=${PORT:-29517} FIRST=${FIRST:-$first}
export PROCESSES=$((SLURM_JOB_NUM_NODES * each))
# a node that ends leaves the others time to say which one that was
exec srun --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=180 bash -c 'exec accelerate launch --config_file "$LAUNCH" \
    --num_machines "$SLURM_JOB_NUM_NODES" --num_processes "$PROCESSES" --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$FIRST" --main_process_port "$PORT" --deepspeed_multinode_launcher standard \
    --rdzv_conf timeout=300 recipes/train.py "$@"' launch/slurm.sh "$@"
