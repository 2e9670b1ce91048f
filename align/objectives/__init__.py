"""Objectives: named chains of transforms with their losses, the way an optax optimiser is an alias for a chain.

The loop sees only `Objective` and never compares a name. To add one, write a function like `gfpo` and name it
here, or in YAML by its dotted path.
"""

from align.objectives.bonbon import bonbon
from align.objectives.cispo import cispo
from align.objectives.d3s import d3s
from align.objectives.dapo import dapo
from align.objectives.dpo import dpo, ipo, sft
from align.objectives.dr_grpo import dr_grpo
from align.objectives.gfpo import gfpo
from align.objectives.grpo import grpo
from align.objectives.gspo import gspo
from align.objectives.ktae import ktae
from align.objectives.negative import grpo_n, nsr, psr, w_reinforce
from align.objectives.objective import Objective
from align.objectives.ppo import ppo, rto
from align.objectives.rloo import reinforce, rloo
from align.objectives.simpo import simpo
from align.objectives.sparsepo import mapo, sparsepo
from align.objectives.tdpo import tdpo1, tdpo2
from align.objectives.tgdpo import tgdpo

POLICY = (
    *(grpo, gfpo, ktae, d3s, dapo, dr_grpo, gspo, cispo, rloo, reinforce, nsr, psr, w_reinforce, grpo_n),
    *(ppo, rto),
)
PAIRS = (dpo, ipo, simpo, tdpo1, tdpo2, tgdpo, sparsepo, mapo, bonbon, sft)
OBJECTIVES = {objective.__name__: objective for objective in (*POLICY, *PAIRS)}

__all__ = ["OBJECTIVES", "Objective", *OBJECTIVES]
