"""Sample and score the responses of a step, and gather them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from align.config.experiment import Experiment
from align.config.recipe import RewardFunction, RewardLimits
from align.config.redact import scrub
from align.data.prompts import Episode, Prompt, Response
from align.rollout.seeds import Draw
from align.scoring.process import Value
from align.scoring.score import combine, fit, score_rows, too_many
from align.scoring.worker import Worker
from align.system.failure import Failure

Generate = Callable[..., list[list[Response]]]  # `Generator.generate` at the temperature that is asked for

Sampled = list[tuple[int, int, Prompt, Response]]  # (group, index, prompt, response)


@dataclass(frozen=True)
class Rollout:
    """A scored response. Rollouts are ordered by (group, index), whichever rank they are from."""

    group: int  # its prompt's number in the step
    index: int  # in the group
    prompt: Prompt
    response: Response
    text: str
    rewards: dict[str, float | None]  # {name: value before its weight}; None: it did not apply, or failed
    reward: float | None  # weighted sum; None: none applied, or one failed, and the response takes no part
    correct: bool
    failed: dict[str, str] = field(default_factory=dict)  # {reward: why it gave no value}


@dataclass(frozen=True)
class Outline:
    """What all ranks know of a response: `Response` without its tokens."""

    size: int
    length: int
    nats: float
    truncated: bool
    turn_count: int
    episode: Episode | None  # without its messages
    policy_step: int | None


@dataclass(frozen=True)
class Scored:
    """What all ranks know of a rollout: it without its prompt, its tokens and, unless a reward failed, its text."""

    group: int
    index: int
    response: Outline
    text: str
    rewards: dict[str, float | None]
    reward: float | None
    correct: bool
    failed: dict[str, str]


Known = Rollout | Scored  # the former of this rank's groups


@dataclass(frozen=True)
class Process:
    """This process among all of the run, and the group of neighbours that one engine is divided over."""

    index: int
    count: int
    tensor_parallel: int = 1  # processes of a group

    @property
    def group(self) -> int:
        """The number of its group."""
        return self.index // self.tensor_parallel


@dataclass(frozen=True)
class Scorer:
    """Scores responses with the recipe's rewards."""

    workers: Sequence[Worker]  # one or more of each reward function, in their order
    experiment: Experiment
    tokenizer: PreTrainedTokenizerBase
    tell: Callable[[str], None] = print  # a line for the console
    told: set[str] = field(default_factory=set)  # rewards whose failures the console was told of

    @property
    def rewards(self) -> Sequence[RewardFunction]:
        """The recipe's rewards."""
        return self.experiment.rewards

    def score(self, sampled: Sampled, total_rows: int) -> list[Rollout]:
        """Score this rank's responses; all ranks together have `total_rows`. Raises `RewardError`."""
        texts = self.tokenizer.batch_decode([response.ids for *_, response in sampled], skip_special_tokens=True)
        values = fit(self.rewards, self._values(sampled, texts, total_rows))
        totals = combine(self.rewards, values)
        rollouts = []
        for i, (group, index, prompt, response) in enumerate(sampled):
            row = {name: column[i] for name, column in values.items()}
            why = {name: value.why for name, value in row.items() if isinstance(value, Failure)}
            failed = {name: scrub(reason, self.experiment.file.data) for name, reason in why.items()}
            components = {name: None if name in failed else value for name, value in row.items()}
            correct = self._is_correct(components, response)
            rollouts.append(Rollout(group, index, prompt, response, texts[i], components, totals[i], correct, failed))
        return rollouts

    def _values(self, sampled: Sampled, texts: Sequence[str], total_rows: int) -> dict[str, list[Value]]:
        """{reward: one value a row}. Functions are not asked about episodes that broke off."""
        responses = [response for *_, response in sampled]
        whole = [i for i, r in enumerate(responses) if r.episode is None or r.episode.why is None]
        prompts, asked, said = ([column[i] for i in whole] for column in ([s[2] for s in sampled], responses, texts))
        out = {}
        for name, column in score_rows(self.workers, prompts, asked, said, total_rows).items():
            by_row = dict(zip(whole, column, strict=True))
            out[name] = [by_row.get(i) for i in range(len(sampled))]
        given = [reward.name for reward in self.rewards if reward.given_by == "environment"]
        return out | {name: [of_environment(name, response) for response in responses] for name in given}

    def _is_correct(self, values: Mapping[str, float | None], response: Response) -> bool:
        """Whether a response is correct: its environment says so, or the reward that decides."""
        if response.episode and response.episode.success is not None:
            return response.episode.success and response.episode.why is None
        decides = next((values[name] for name in self._deciding(response) if values[name] is not None), None)
        return decides is not None and decides >= self.experiment.correct.at_least

    def _deciding(self, response: Response) -> list[str]:
        """Names of rewards, of which the first that applies decides: where the recipe leaves it open, an episode's own
        environment does, or the first function."""
        if response.episode is None or self.experiment.recipe.correct:
            return [self.experiment.correct.reward]
        functions = self.experiment.reward_functions
        return [response.episode.environment, *(reward.name for reward in functions[:1])]

    def _log(self, reward: RewardFunction) -> Path | None:
        """The file, or of environments the folder, with what it prints."""
        if reward.given_by == "environment":
            return Path(self.experiment.recipe.run.out) / "environments"
        return next((worker.log for worker in self.workers if worker.reward.name == reward.name), None)

    def gather(self, scored: Sequence[Rollout]) -> list[Rollout]:
        """Gather the rollouts of all ranks, in the same order on each. Collective.

        Tells of each reward once that it fails. Raises `RewardError` where it failed on too many.
        """
        return self._checked(gather([without_attributes(rollout) for rollout in scored]))

    def announce(self, scored: Sequence[Rollout]) -> list[Known]:
        """Gather what all ranks know of the rollouts of all, in the same order on each; of this rank's it is all.

        Collective. Tells and raises as `gather` does.
        """
        return self._checked(announce(scored))

    def _checked(self, everything: list[Known]) -> list[Known]:
        check_failed(everything, self.experiment.recipe.reward_limits)
        for reward in self.rewards:
            failed = [rollout for rollout in everything if reward.name in rollout.failed]
            if failed and reward.name not in self.told:
                self.told.add(reward.name)
                self.tell(failing(reward, failed, len(everything), self._log(reward)))
        return everything


def without_attributes(rollout: Rollout) -> Rollout:
    """The rollout without its environment's attributes: only rewards read them, on the rank that asked it."""
    response = rollout.response
    if response.episode is None or not response.episode.attributes:
        return rollout
    return replace(rollout, response=replace(response, episode=replace(response.episode, attributes={})))


def of_environment(name: str, response: Response) -> Value:
    """The reward of an environment: None for an episode of another one, a `Failure` for one that broke off."""
    episode = response.episode
    if episode is None or episode.environment != name:
        return None
    return Failure(episode.why) if episode.why else episode.reward


def sample(
    prompts: Sequence[Prompt], generate: Generate, process: Process, *, n: int, max_tokens: int, draw: Draw
) -> Sampled:
    """Sample n responses to each prompt of this rank's part; (group, index, prompt, response) of each.

    Processes that share an engine ask it all for the prompts of all of them, and each keeps the responses to its own.
    """
    owner = [i % process.count for i in range(len(prompts))]
    shared = [i for i, rank in enumerate(owner) if rank // process.tensor_parallel == process.group]
    seeds = draw.seeds(process.group, shared)
    outputs = generate([prompts[i].ids for i in shared], n=n, max_tokens=max_tokens, seeds=seeds)
    kept = [(i, responses) for i, responses in zip(shared, outputs, strict=True) if owner[i] == process.index]
    return [(i, j, prompts[i], response) for i, responses in kept for j, response in enumerate(responses)]


def gather(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Gather the rollouts of all ranks, in the same order on each. Collective.

    Tokens travel as int32 and float32: 8 bytes each, where pickled lists take 17 and ten times as long.
    """
    if PartialState().num_processes == 1:
        return sorted(rollouts, key=_place)
    found = [rollout for part in gather_object([pack_tokens(rollouts)]) for rollout in unpack_tokens(*part)]
    return sorted(found, key=_place)


def announce(rollouts: Sequence[Rollout]) -> list[Known]:
    """What all ranks know of the rollouts of all, in the same order on each; of this rank's it is all. Collective."""
    state, mine = PartialState(), [without_attributes(rollout) for rollout in rollouts]
    if state.num_processes == 1:
        return sorted(mine, key=_place)
    told = gather_object([(state.process_index, [outline(rollout) for rollout in mine])])
    others = [one for rank, part in told if rank != state.process_index for one in part]
    return sorted([*map(_compact, mine), *others], key=_place)


def _compact(rollout: Rollout) -> Rollout:
    """The rollout with its tokens in 12 bytes each, where lists take about 80."""
    response = rollout.response
    whole = replace(response, ids=array("i", response.ids), logprobs=array("d", response.logprobs))
    return replace(rollout, response=whole)


def outline(rollout: Rollout) -> Scored:
    """What all ranks know of a rollout."""
    whole, episode = rollout.response, rollout.response.episode
    episode = episode and replace(episode, messages=[])
    counts = (whole.size, whole.length, whole.nats, whole.truncated, whole.turn_count)
    response = Outline(*counts, episode, whole.policy_step)
    text = rollout.text if rollout.failed else ""
    facts = (rollout.rewards, rollout.reward, rollout.correct, rollout.failed)
    return Scored(rollout.group, rollout.index, response, text, *facts)


def _place(rollout: Known) -> tuple[int, int]:
    return rollout.group, rollout.index


def pack_tokens(rollouts: Sequence[Rollout]) -> tuple[list[Rollout], list[int], array, array]:
    """(rollouts without their tokens, tokens of each, all ids, all log-probabilities)."""
    bare = [replace(r, response=replace(r.response, ids=[], logprobs=[])) for r in rollouts]
    ids, logprobs = array("i"), array("f")
    for rollout in rollouts:
        ids.fromlist(list(rollout.response.ids))
        logprobs.fromlist(list(rollout.response.logprobs))
    sizes = [len(rollout.response.ids) for rollout in rollouts]
    return bare, sizes, ids, logprobs


def unpack_tokens(bare: Sequence[Rollout], sizes: Sequence[int], ids: array, logprobs: array) -> list[Rollout]:
    """The rollouts that were packed, with arrays for lists."""
    out, start = [], 0
    for rollout, size in zip(bare, sizes, strict=True):
        tokens = slice(start, start + size)
        response = replace(rollout.response, ids=ids[tokens], logprobs=logprobs[tokens])
        out.append(replace(rollout, response=response))
        start += size
    return out


def failing(reward: RewardFunction, failed: Sequence[Known], rows: int, log: Path | None) -> str:
    """One line that says how often a reward or an environment failed, why first, and where to read on."""
    first = " ".join(failed[0].failed[reward.name].split())
    who = "environment" if reward.given_by == "environment" else "reward"
    what = f"{who} {reward.name!r} failed on {len(failed)} of {rows} responses, first: {first}"
    where = f"; what it prints is in {log}" if log else ""
    return f"{what}; they take no part, and later ones are counted in rewards/{reward.name}/failed{where}"


def check_failed(rollouts: Sequence[Known], limits: RewardLimits) -> None:
    """Raise `RewardError` where a reward failed on too many of the rollouts of all ranks."""
    for name in rollouts[0].rewards if rollouts else ():
        failed = [r for r in rollouts if name in r.failed]
        if len(failed) > limits.max_failed * len(rollouts):
            example = f"on the response {failed[0].text[:200]!r}: {failed[0].failed[name]}"
            raise too_many(name, len(failed), len(rollouts), limits, example)


def mixed(rollouts: Sequence[Known]) -> list[Known]:
    """The rollouts of groups that have both correct and wrong responses; one whose reward failed is neither."""
    outcomes: dict[int, set[bool]] = {rollout.group: set() for rollout in rollouts}
    for rollout in rollouts:
        if not rollout.failed:
            outcomes[rollout.group].add(rollout.correct)
    return [rollout for rollout in rollouts if len(outcomes[rollout.group]) == 2]
