#!/usr/bin/env bash
# Installs align in .venv where it is missing and runs all tests. Arguments go to pytest: -m "not engine" is the fast half.
cd "$(dirname "$0")/.."
source launch/setup.sh
if [ $# -eq 0 ]; then set -- -m "engine or not engine"; fi
exec python -m pytest "$@"
