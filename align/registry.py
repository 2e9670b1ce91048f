"""The names that YAML knows: objectives, and the transforms and losses that a chain can be spelled out with."""

from align import losses, objectives, transforms
from align.objectives.bonbon import best_of_n
from align.objectives.cispo import weighted_logprob
from align.objectives.d3s import max_variance_rows, top_tokens
from align.objectives.gfpo import keep_top
from align.objectives.ktae import key_tokens
from align.objectives.rto import guide_reward, returns_to_go
from align.objectives.simpo import pair_logistic_mean
from align.objectives.sparsepo import mask_l1, pair_logistic_masked
from align.objectives.tdpo import pair_logistic_kl
from align.objectives.tgdpo import pair_logistic_guided

POLICY = (
    *(objectives.grpo, objectives.gfpo, objectives.ktae, objectives.d3s, objectives.dapo, objectives.dr_grpo),
    *(objectives.gspo, objectives.cispo, objectives.rloo, objectives.reinforce, objectives.nsr, objectives.psr),
    *(objectives.w_reinforce, objectives.grpo_n, objectives.ppo, objectives.rto, objectives.rto_reinforce),
)
PAIRS = (
    *(objectives.dpo, objectives.ipo, objectives.simpo, objectives.tdpo1, objectives.tdpo2, objectives.tgdpo),
    *(objectives.sparsepo, objectives.mapo, objectives.bonbon, objectives.sft),
)
OBJECTIVES = {objective.__name__: objective for objective in (*POLICY, *PAIRS)}

# in the order of their stages
TRANSFORMS = {
    transform.__name__: transform
    for transform in (
        *(keep_top, transforms.keep_outcome, transforms.mask_truncated, transforms.best_and_worst),
        *(transforms.token_reward, guide_reward, transforms.gae, returns_to_go),
        *(transforms.group_advantage, transforms.leave_one_out_advantage, transforms.reward_advantage),
        transforms.turn_returns,
        *(transforms.outcome_advantage, transforms.sign_filter),
        *(max_variance_rows, key_tokens, transforms.anchor_advantage, top_tokens, transforms.importance_weight),
    )
}

POLICY_LOSSES = (
    *(losses.clipped_surrogate, losses.sequence_surrogate, weighted_logprob, losses.kl_policy_ref),
    *(losses.entropy_bonus, losses.value_loss),
)
PAIR_LOSSES = (
    *(losses.pair_logistic, pair_logistic_mean, losses.pair_squared, pair_logistic_kl, pair_logistic_guided),
    *(pair_logistic_masked, mask_l1, losses.chosen_nll, best_of_n),
)
LOSSES = {loss.__name__: loss for loss in (*POLICY_LOSSES, *PAIR_LOSSES)}
