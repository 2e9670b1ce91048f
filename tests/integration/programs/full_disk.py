"""Train where the disk is full when the result is written: RECIPE [key=value ...]."""

import resource
import signal
import sys

from align.learner import weights
from align.train import main

save = weights.save


def save_on_a_full_disk(*arguments, **named):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    save(*arguments, **named)


weights.save = save_on_a_full_disk
sys.exit(main(sys.argv[1:]))
