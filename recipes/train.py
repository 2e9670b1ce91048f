"""Train: `accelerate launch --config_file launch/cpu.yaml recipes/train.py RECIPE [key=value ...]`."""

import sys

from align.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
