"""The sentinel's rules: each recognises one way in which a run goes wrong, from the metrics of its steps alone.

A rule is a section of the recipe with its thresholds, its action, and `finds`, a pure function of what was measured. It
reads only metrics that are the same on all ranks, so all ranks find the same. `run/sentinel.py` acts on what is found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from pydantic import Field

from align.ranges import Count, Factor, Fraction, Positive, Section

Step = Mapping[str, float]  # a line of metrics.jsonl, with its `step`

Action = Literal["ignore", "warn", "stop", "rollback"]

# {what leaves tokens without gradient: why, and what to do}
CAUSES = {
    "group_advantage": "the responses of a group had the same reward; raise sampling.group_size, mix in easier or"
    " harder prompts, or write sampling.dynamic_sampling: {}",
    "dynamic_sampling": "groups were all correct or all wrong; mix in easier or harder prompts",
    "unrated": "the rewards returned None for them",
    "mask_truncated": "they were cut at the token limit; raise sampling.max_response_tokens",
    "clipped": "the policy is too far from the one that sampled; lower optim.lr or optim.updates_per_step",
}


@dataclass(frozen=True)
class Seen:
    """The steps that a rule looks at, the newest one last."""

    steps: Sequence[Step]  # all since the run started, or since the sentinel stopped it or rolled it back
    last: Sequence[Step]  # as many of them as the rule looks at
    decides: str | None = None  # the reward that says what is correct; None where there is none


class Rule(Section):
    """One way in which a run goes wrong: its thresholds, and what is done about it."""

    for_steps: Count = Field(5, description="newest steps that must all show it, or their mean")
    action: Action = "warn"

    def finds(self, seen: Seen) -> str | None:
        """Say what is wrong and how to mend it; None where nothing is."""
        raise NotImplementedError


class AllTruncated(Rule):
    """Finds that nearly all responses are cut at the token limit."""

    share: Fraction = Field(0.95, description="of the responses, cut at the token limit")

    def finds(self, seen: Seen) -> str | None:
        cut = column(seen.last, "response/truncated")
        if not cut or min(cut) < self.share:
            return None
        what = f"{cut[-1]:.0%} of the responses were cut at the token limit"
        return f"{what}: raise sampling.max_response_tokens, or ask for shorter answers"


class NoSignal(Rule):
    """Finds that no token carries gradient, or that the gradient is exactly 0."""

    for_steps: Count = Field(10, description="steps in a row without any gradient")

    def finds(self, seen: Seen) -> str | None:
        newest = seen.last[-1]
        for name in (key.removesuffix("/carrying") for key in newest if re.fullmatch(r"signal/(.+/)?carrying", key)):
            with_gradient = column(seen.last, f"{name}/carrying")
            if with_gradient and not any(with_gradient):
                return self._removed(name, seen.last)
        if any(step.get("grad_norm", 0.0) != 0 for step in seen.last):
            return None
        what = f"for {len(seen.last)} steps the gradient was exactly 0, though tokens carry credit"
        return f"{what}: every loss is flat there, or no weight that is trained takes part"

    def _removed(self, name: str, last: Sequence[Step]) -> str:
        """Name what left most of the tokens without gradient."""
        generated = sum(column(last, f"{name}/generated"))
        keys = [key for key in last[-1] if key.startswith(f"{name}/taken/")]
        removed = {key.removeprefix(f"{name}/taken/"): sum(column(last, key)) for key in keys}
        most = sorted((by for by, count in removed.items() if count > 0), key=removed.__getitem__, reverse=True)
        whose = f" for the objective {name.removeprefix('signal/')}" if "/" in name else ""
        out = (
            f"no token carried gradient{whose} in {len(last)} steps, so nothing is learned; of {generated:.0f} tokens "
        )
        out += ", ".join(f"{by} took {removed[by]:.0f}" for by in most)
        rewards = column(last, "reward/mean")
        out += f"; mean reward {fmean(rewards):.3g}" if rewards else ""
        return ". ".join([out, *[f"{by}: {CAUSES[by]}" for by in most if by in CAUSES]])


class EntropyCollapse(Rule):
    """Finds that the policy gives nearly the same response whatever is sampled."""

    below: Positive = Field(0.02, description="nats a token, estimated from the sampler's log-probabilities")

    def finds(self, seen: Seen) -> str | None:
        entropy = column(seen.last, "response/entropy")
        if not entropy or not all(nats < self.below for nats in entropy):
            return None
        what = f"the policy's entropy fell to {entropy[-1]:.2g} nats a token: it gives the same whatever is sampled"
        return f"{what}; lower optim.lr, or add an entropy_bonus or kl_policy_ref"


class LengthDrift(Rule):
    """Finds that responses have become much longer or shorter than in the first steps."""

    factor: Factor = Field(4.0, description="longer or shorter than in the first steps")

    def finds(self, seen: Seen) -> str | None:
        first, last = (column(steps, "response/length") for steps in (seen.steps[: self.for_steps], seen.last))
        if not first or not last:
            return None
        before, now = fmean(first), fmean(last)
        if before / self.factor < now < before * self.factor:
            return None
        what = f"responses went from {before:.1f} to {now:.1f} tokens"
        return f"{what}: look whether the reward pays for length by itself (samples.jsonl)"


class RewardTakeover(Rule):
    """Finds that rewards besides the one that decides what is correct make up all of the sum's variance, one of them or
    several together, or that the sum rises while the one that decides falls."""

    for_steps: Count = Field(10, description="newest steps that must all show it, or their mean")
    share: Fraction = Field(0.95, description="of the variance of the weighted sum, due to those that do not decide")
    solved: Fraction = Field(0.9, description="correct responses from which on there is little else left to learn")
    fall: Positive = Field(0.2, description="of the reward that decides since the first steps, while the sum rose")

    def finds(self, seen: Seen) -> str | None:
        own = f"rewards/{seen.decides}"
        if not column(seen.last, f"{own}/share") or fmean(column(seen.last, "correct")) >= self.solved:
            return None
        if taken := self._taken(own, seen.last):
            return taken
        first, last = seen.steps[: self.for_steps], seen.last
        if not (column(first, own) and column(last, own)):  # in some step it applied to nothing
            return None
        if not (column(first, "reward/mean") and column(last, "reward/mean")):
            return None
        if fmean(column(last, "reward/mean")) <= fmean(column(first, "reward/mean")):
            return None
        before, now = fmean(column(first, own)), fmean(column(last, own))
        if before - now < self.fall:
            return None
        what = f"the reward rose while {own} fell from {before:.3g} to {now:.3g}"
        return f"{what}: another reward is easier to earn; lower its weight"

    def _taken(self, own: str, last: Sequence[Step]) -> str | None:
        """Say which rewards besides `own` make up the sum's variance in each step, one by itself or all together."""
        names = [key for key in last[-1] if re.fullmatch(r"rewards/.+/share", key) and key != f"{own}/share"]
        shares = {name.removesuffix("/share"): column(last, name) for name in names}
        shares = {name: share for name, share in shares.items() if share}
        alone = [name for name, share in shares.items() if min(share) >= self.share]
        if alone:
            shares = {alone[0]: shares[alone[0]]}
        together = [sum(of_step) for of_step in zip(*shares.values(), strict=True)]
        if not together or min(together) < self.share:
            return None
        paid = sorted((name for name in shares if shares[name][-1] > 0), key=lambda name: -shares[name][-1])
        makes = "makes" if len(paid) == 1 else "together make"
        what = f"{' and '.join(paid)} {makes} {together[-1]:.0%} of the reward's variance"
        weight = "its weight" if len(paid) == 1 else "their weights"
        return f"{what}, and {own} none to speak of: lower {weight}, or make {own} less hard to earn"


class RatioBlowUp(Rule):
    """Finds that an importance ratio stays far above 1, or is not a number."""

    for_steps: Count = Field(3, description="newest steps that must all show it")
    above: Factor = Field(100.0, description="the largest ratio to the old policy")

    def finds(self, seen: Seen) -> str | None:
        found = above(seen.last, r"(.+/)?ratio_max", self.above)
        if found is None:
            return None
        what = f"{found} is {seen.last[-1][found]:.3g}: the policy is far from the one that sampled"
        return f"{what}; lower optim.lr or optim.updates_per_step, or look whether sampler and trainer agree"


class KLBlowUp(Rule):
    """Finds that the KL from the old policy or from the reference stays high, or is not a number.

    An estimate far below 0, as k1 may be, is as far from the reference as one above.
    """

    for_steps: Count = Field(3, description="newest steps that must all show it")
    above: Positive = Field(1.0, description="nats a token either way, from the old policy or from the reference")

    def finds(self, seen: Seen) -> str | None:
        found = above(seen.last, r"(.+/)?kl_k[123]_(old_policy|policy_old|policy_ref)", self.above)
        if found is None:
            return None
        return f"{found} is {seen.last[-1][found]:.3g} nats a token; lower optim.lr, or raise the coef of kl_policy_ref"


class NonFinite(Rule):
    """Finds updates that were skipped, for their loss or gradient was not finite."""

    for_steps: Count = Field(1, description="steps in a row with an update that was skipped")
    dumps: Count = Field(10, description="batches that a run writes down at most")

    def finds(self, seen: Seen) -> str | None:
        if not all(step.get("skipped", 0) for step in seen.last):
            return None
        newest = seen.last[-1]
        what = "an update was skipped on all ranks, for its loss or gradient was not finite"
        what += f" (the last loss {newest['loss']:.3g}, gradient norm {newest['grad_norm']:.3g})"
        if not self.dumped(seen.steps):
            return what
        return f"{what}; dumps/step_{newest['step']}.jsonl has its batch, with what is not finite in each row"

    def dumped(self, steps: Sequence[Step]) -> bool:
        """Whether the batch of the newest step is written down."""
        return bool(steps[-1].get("skipped")) and sum(bool(step.get("skipped")) for step in steps) <= self.dumps


class Sentinel(Section):
    """The rules with their thresholds and actions, and how often they are reported and acted on."""

    all_truncated: AllTruncated = AllTruncated()
    no_signal: NoSignal = NoSignal()
    entropy_collapse: EntropyCollapse = EntropyCollapse()
    length_drift: LengthDrift = LengthDrift()
    reward_takeover: RewardTakeover = RewardTakeover()
    ratio_blow_up: RatioBlowUp = RatioBlowUp()
    kl_blow_up: KLBlowUp = KLBlowUp()
    non_finite: NonFinite = NonFinite()
    remind: Count = Field(20, description="steps after which a rule that still holds is reported again")
    rollbacks: Count = Field(3, description="most times that a run is rolled back; then it stops")

    @property
    def rules(self) -> dict[str, Rule]:
        """{key: rule}."""
        return {name: value for name in type(self).model_fields if isinstance(value := getattr(self, name), Rule)}


@dataclass(frozen=True)
class Alarm:
    """A rule that found something. `str` is what the user reads."""

    rule: str
    message: str
    action: Action = "warn"
    for_steps: int = 1

    @property
    def flag(self) -> str:
        """The metric that is 1 in a step that raised this alarm."""
        return f"sentinel/{self.rule}"

    def __str__(self) -> str:
        return f"sentinel: {self.rule}: {self.message}"


def alarms(sentinel: Sentinel, steps: Sequence[Step], decides: str | None = None) -> list[Alarm]:
    """The alarms of the newest step; `decides` is the reward that decides what is correct."""
    out = []
    for name, rule in sentinel.rules.items():
        last = steps[-rule.for_steps :]
        if rule.action == "ignore" or len(last) < rule.for_steps:
            continue
        message = rule.finds(Seen(steps, last, decides))
        if message is not None:
            limits = ", ".join(f"{key}: {value}" for key, value in rule if key != "action")
            message = f"{message} [sentinel.{name}: {{{limits}}}]"
            out.append(Alarm(name, message, rule.action, rule.for_steps))
    return out


def column(steps: Sequence[Step], name: str) -> list[float]:
    """A metric of each step; [] where a step lacks it."""
    values = [step[name] for step in steps if name in step]
    return values if len(values) == len(steps) else []


def above(last: Sequence[Step], pattern: str, limit: float) -> str | None:
    """The first metric whose name matches the pattern and whose size is above the limit in each step; None where none
    is. NaN counts as infinite."""
    for key in last[-1]:
        values = column(last, key) if re.fullmatch(pattern, key) else []
        if values and not any(abs(value) <= limit for value in values):
            return key
    return None
