"""Train: `python recipes/train.py RECIPE [key=value ...]`; on several processes
`accelerate launch --config_file launch/cpu_zero2.yaml recipes/train.py RECIPE [key=value ...]`."""

import sys

if __name__ == "__main__":
    from align.run.environment import prepare

    prepare(sys.argv[1:])  # what torch, DeepSpeed and vLLM read when they are imported

    from align.train import main

    sys.exit(main(sys.argv[1:]))
