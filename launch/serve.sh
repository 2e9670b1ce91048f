#!/usr/bin/env bash
# Starts a vLLM server that fits a recipe with sampling.engine: server, on this machine's CPU or GPUs:
#   PORT=8000 bash launch/serve.sh RECIPE [key=value ...]
# HOST is 127.0.0.1. Another one needs ALIGN_SERVER_TOKEN, here and for the trainer, or an address that the recipe names.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
[ $# -gt 0 ] || { sed -n '2,4s/^# //p' "$0"; exit 2; }
if [ -d "$root/.venv" ]; then export PATH="$root/.venv/bin:$PATH"; fi
export PYTHONPATH="$root:$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec python -m align.commands.serve "$@"
