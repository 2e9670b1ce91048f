"""DeepSpeed for programs whose models are tiny."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from align.config.optim_keys import Optim
from align.learner.optimizer import configure


def accelerator_for(optim: Optim, dtype: str) -> Accelerator:
    """Join the processes of the program, configured as a run is; ZeRO-3 divides weights however small they are."""
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
    zero = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
    zero["stage3_param_persistence_threshold"] = 0  # else they stay whole
    configure(accelerator, optim, dtype)
    return accelerator
