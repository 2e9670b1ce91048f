"""A step's worth of ragged rollouts for the tests of the update, and what objectives make of them."""

from dataclasses import replace

import torch

from align.batch import Batch
from align.losses import entropy_bonus, kl_policy_ref
from align.objectives import (
    Objective,
    bonbon,
    d3s,
    dpo,
    gfpo,
    gspo,
    ipo,
    ktae,
    mapo,
    nsr,
    ppo,
    rto,
    rto_reinforce,
    sft,
    simpo,
    sparsepo,
    tdpo1,
    tdpo2,
    tgdpo,
)
from align.objectives.d3s import CountSchedule, FractionSchedule
from align.objectives.gfpo import keep_top
from align.registry import POLICY
from align.transforms import best_and_worst

VOCABULARY = 90


def batch() -> Batch:
    """3 groups of 4, prompts of 3 to 17 tokens, responses of 1 to 40, one of them empty; the long ones have two turns
    with 8 tokens of a tool between them."""
    generator = torch.Generator().manual_seed(7)

    def ids(n):
        return torch.randint(3, VOCABULARY, (n,), generator=generator).tolist()

    prompts = [ids(n) for n in (3, 17, 9)]
    lengths = [12, 1, 40, 7, 5, 5, 23, 0, 2, 31, 16, 9]
    responses = [ids(n) for n in lengths]
    turns = [[0] * 9 + [-1] * 8 + [1] * (n - 17) if n > 20 else [0] * n for n in lengths]
    rewards = torch.rand(12, generator=generator)
    whole = Batch.of(
        [i // 4 for i in range(12)],
        responses,
        prompt_ids=[prompts[i // 4] for i in range(12)],
        turns=turns,
        token_text=[["."] * n for n in lengths],
        reward=rewards,
        correct=rewards > 0.5,
        truncated=torch.arange(12) == 2,
        progress=0.5,
    )
    # off-policy on purpose: some tokens are clipped
    return replace(whole, sampler_logprob=-4.0 - torch.rand(whole.mask.shape, generator=generator))


def twins(groups: int) -> Batch:
    """The same two responses again and again, of which one has reward: any number of groups has the same gradient."""
    generator = torch.Generator().manual_seed(3)
    prompt, *responses = torch.randint(3, VOCABULARY, (3, 9), generator=generator).tolist()
    group = [i // 2 for i in range(2 * groups)]
    reward = torch.tensor([1.0, 0.0]).repeat(groups)
    made = Batch.of(group, responses * groups, prompt_ids=[prompt] * len(group), reward=reward)
    return replace(made, sampler_logprob=torch.where(made.mask, -3.0, 0.0))


def gfpo_with_kl() -> Objective:
    """GFPO with a KL term over all rows, dropped ones included."""
    base = gfpo(k=3, aggregation="seq-mean-token-mean")
    return replace(base, losses=(*base.losses, kl_policy_ref(coef=0.1, rows="all")))


def from_rollouts(objective: Objective) -> Objective:
    return replace(objective, chain=(best_and_worst(), *objective.chain))


def policy_side() -> list[Objective]:
    """Every objective of the policy side that trains no head; selections are on."""
    given = {
        "gfpo": {"k": 3},
        "d3s": {"rows": CountSchedule(start=2, end=4), "share": FractionSchedule(start=0.2, end=1.0)},
        "dr_grpo": {"tokens_per_row": 20.0},
    }
    plain = [make(**given.get(make.__name__, {})) for make in POLICY if make not in (ppo, rto, rto_reinforce)]
    composed = ktae()
    transform, advantage, key = keep_top(k=3), *composed.chain
    rows, tokens = d3s(rows=2, share=0.5).chain[1:]
    composed = replace(composed, name="composed", chain=(transform, advantage, rows, key, tokens))
    sequence = gspo(form="token", denominator="selected")
    on_gspo = replace(sequence, name="d3s_on_gspo", chain=(*sequence.chain, rows, tokens))
    entropy = nsr()
    return [*plain, composed, on_gspo, replace(entropy, losses=(*entropy.losses, entropy_bonus(coef=0.1)))]


# arguments of the preference objectives
GIVEN = {
    "dpo": {"label_smoothing": 0.1},
    "tgdpo": {"alpha": 2.0},
    "sparsepo": {"masks": "independent", "l1_reward": 0.01, "l1_kl": 0.02},
    "bonbon": {"n": 4, "alpha": 0.1},
}

RATES = {"policy": 0.03, "pairs": 0.001}  # of SGD, else 0.1: many large steps would measure rounding

# family -> the objectives of one update after another, in one engine
FAMILIES = {
    "gfpo": lambda: [[gfpo_with_kl()], [gfpo_with_kl()]],
    "policy": lambda: [[objective] for objective in policy_side()],
    "pairs": lambda: [
        [from_rollouts(make(**GIVEN.get(make.__name__, {})))]
        for make in (dpo, ipo, simpo, tdpo1, tdpo2, tgdpo, mapo, sft, bonbon)
    ],
    "masks": lambda: [[from_rollouts(sparsepo(**GIVEN["sparsepo"]))]] * 3,
    "value": lambda: [[ppo(value_hidden="shared", value_lr=0.05)], [rto(value_hidden="shared", value_lr=0.05)]],
    # two objectives on one batch: rows of pairs stay together, the others go where they fit
    "both": lambda: [[replace(gfpo_with_kl(), weight=0.5), from_rollouts(tgdpo())]],
}
