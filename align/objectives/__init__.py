"""Objectives: one paper, one file, with its transform, its loss and the function that YAML calls by name.

The loop sees only `Objective` and never compares a name. To add one, write a function like `gfpo` and name it in
`align/registry.py`, or name it in YAML by its dotted path.
"""

from align.objectives.bonbon import bonbon
from align.objectives.cispo import cispo
from align.objectives.d3s import d3s
from align.objectives.dapo import dapo
from align.objectives.dpo import dpo
from align.objectives.dr_grpo import dr_grpo
from align.objectives.gfpo import gfpo
from align.objectives.grpo import grpo
from align.objectives.grpo_n import grpo_n
from align.objectives.gspo import gspo
from align.objectives.ipo import ipo
from align.objectives.ktae import ktae
from align.objectives.mapo import mapo
from align.objectives.nsr import nsr, psr, w_reinforce
from align.objectives.objective import Objective
from align.objectives.ppo import ppo
from align.objectives.reinforce import reinforce
from align.objectives.rloo import rloo
from align.objectives.rto import rto, rto_reinforce
from align.objectives.sft import sft
from align.objectives.simpo import simpo
from align.objectives.sparsepo import sparsepo
from align.objectives.tdpo import tdpo1, tdpo2
from align.objectives.tgdpo import tgdpo
