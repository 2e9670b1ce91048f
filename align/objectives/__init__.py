"""Objectives: named chains of transforms with their losses, the way an optax optimiser is an alias for a chain.

The loop sees only `Objective` and never compares a name. To add one, write a function like `gfpo` and name it
in `OBJECTIVES`, or in YAML by its dotted path.
"""

from align.objectives.gfpo import gfpo
from align.objectives.grpo import grpo
from align.objectives.objective import Objective

OBJECTIVES = {"grpo": grpo, "gfpo": gfpo}

__all__ = ["OBJECTIVES", "Objective", "gfpo", "grpo"]
