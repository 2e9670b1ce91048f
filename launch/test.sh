#!/usr/bin/env bash
# Installs align in .venv where it is missing and runs all tests, the fast ones first. Arguments go to pytest instead:
# -m "not engine" is the fast half.
cd "$(dirname "$0")/.."
source launch/setup.sh
if [ $# -gt 0 ]; then exec python -m pytest "$@"; fi

said=$(mktemp)
trap 'rm -f "$said"' EXIT
color=()
if [ -t 1 ]; then color=(--color=yes); fi
status=0
# two at a time, each with one thread
OMP_NUM_THREADS=1 python -m pytest "${color[@]}" -n 2 --dist worksteal -m "not engine" | tee "$said" || status=1
# a line for each of these: its name when it begins, its seconds when it ends
python -m pytest -vv -o console_output_style=times -m engine || status=1
tail -n 1 "$said" # how the fast ones ended
exit $status
