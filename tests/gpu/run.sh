#!/usr/bin/env bash
# What this project says of GPUs, run on one: bash tests/gpu/run.sh OUT [PATIENCE]. At most ten minutes, no network.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
exec "${PYTHON:-python3}" "$root/tests/gpu/run.py" "$@"
