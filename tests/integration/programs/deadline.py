"""A run whose last rank does not keep up. slow|hung RECIPE [key=value ...]: sampling takes too long, or the sync never
comes on that rank and the others wait for it inside a collective."""

import os
import sys
import time

from align.rollout.vllm_engine import VLLM
from align.train import main

how, *arguments = sys.argv[1:]
last = int(os.environ["LOCAL_RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
init = VLLM.__init__


def slow_engine(self, *arguments):
    init(self, *arguments)
    engine = self._llm.llm_engine
    step = engine.step

    def slow_step():
        time.sleep(0.5)
        return step()

    engine.step = slow_step


def never(self, model):
    time.sleep(600)


if last and how == "slow":
    VLLM.__init__ = slow_engine
if last and how == "hung":
    VLLM.sync = never
sys.exit(main(arguments))
