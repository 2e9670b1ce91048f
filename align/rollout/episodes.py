"""Play episodes in rounds: all that are under way sample one turn, their environments step side by side, and what these
say is appended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

from accelerate.utils import gather_object

from align.config.sampling_keys import Sampling
from align.data.prompts import DataError, Prompt, Response
from align.data.tokenise import opened
from align.environments.contract import Finish, Opening, Start
from align.environments.nursery import ask
from align.rollout.environments import Environments
from align.rollout.episode import Live
from align.rollout.rollouts import Generate, Process, Sampled
from align.rollout.seeds import Draw, Seeds
from align.system.clock import Clock
from align.system.failure import Failure

UNLIKE = (
    "reset said something else than in another episode of the group; take random numbers from `random` or"
    " `numpy.random`, which are seeded before it, or from the row"
)


def play(
    prompts: Sequence[Prompt],
    generate: Generate,
    process: Process,
    environments: Environments,
    *,
    n: int,
    draw: Draw,
    clock: Clock,
) -> Sampled:
    """Play n episodes of each prompt of this rank's part; (group, index, opened prompt, response) of each.

    The episodes of a prompt begin alike; random numbers follow from the draw, the prompt, its episode and the turn. One
    that fails is a response whose episode says why. Collective where processes share an engine.
    """
    live = _seated(prompts, process, environments, n)
    with clock("environment"):
        _open(live, environments, draw)
    for turn in count():
        going = [one for one in live if one.ended is None]
        shared, anyone = _shared([_asked(one, environments.sampling) for one in going], process)
        if not anyone:
            break
        said = _sample(shared, generate, draw.turn(process.group, [one.number for one in shared], turn))
        replies = [one.say(said[one.group, one.index], environments.tokenizer) for one in going]
        with clock("environment"):
            answers = ask([(one.instance, reply) for one, reply in zip(going, replies, strict=True)])
        for one, answer in zip(going, answers, strict=True):
            if isinstance(answer, Failure):
                one.fail("step", answer.why)
            else:
                one.hear(answer, environments)
    with clock("environment"):
        _finish(live)
    return [(one.group, one.index, one.prompt, one.response()) for one in live]


def _seated(prompts: Sequence[Prompt], process: Process, environments: Environments, n: int) -> list[Live]:
    """The episodes of this rank, each with an instance of its environment."""
    out, taken = [], Counter()
    for group in range(process.index, len(prompts), process.count):
        environment = environments.of(prompts[group])
        for index in range(n):
            instance = environment.nursery.instance(taken[environment.name])
            taken[environment.name] += 1
            out.append(Live(group, index, prompts[group], environment, instance))
    return out


def _open(live: Sequence[Live], environments: Environments, draw: Draw) -> None:
    """Begin all episodes: those of a prompt have one seed, so that they begin alike."""
    starts = [Start(environments.row(one.prompt), seed_of(one.prompt, draw.episode(one.group))) for one in live]
    answers = ask([(one.instance, start) for one, start in zip(live, starts, strict=True)])
    room = environments.context - environments.sampling.max_response_tokens
    first: dict[int, tuple[str, Prompt]] = {}  # {group: what was said, the prompt with it}
    for one, answer in zip(live, answers, strict=True):
        if isinstance(answer, Failure):
            one.fail("reset", answer.why)
            continue
        if one.group not in first:
            first[one.group] = answer.text, _opened(one, answer, environments)
        said, prompt = first[one.group]
        if isinstance(prompt, DataError):
            one.fail("reset", str(prompt))
        elif answer.text != said:
            one.fail("reset", UNLIKE)
        elif len(prompt.ids) > room:
            one.fail(
                "reset", f"with what it said the prompt has {len(prompt.ids)} tokens; raise data.max_prompt_tokens"
            )
        else:
            one.prompt, one.anchor = prompt, answer.anchor


def seed_of(prompt: Prompt, otherwise: int) -> int:
    """The seed of an episode: that of its row, where the row has one."""
    given = prompt.columns.get("seed")
    return given if type(given) is int and given >= 0 else otherwise


def _opened(one: Live, opening: Opening, environments: Environments) -> Prompt | DataError:
    try:
        return opened(one.prompt, opening.text, one.environment.offers.tools, environments.tokenizer)
    except DataError as error:
        return error


class _Asked(NamedTuple):
    """What an episode asks of the engine."""

    number: tuple[int, int]  # of its prompt, and its own in the group
    ids: list[int]
    most: int  # tokens of its turn


def _asked(one: Live, sampling: Sampling) -> _Asked:
    left = sampling.max_response_tokens - len(one.ids)
    most = min(left, sampling.max_turn_tokens or left)
    return _Asked((one.group, one.index), [*one.prompt.ids, *one.ids], most)


def _shared(mine: list[_Asked], process: Process) -> tuple[list[_Asked], bool]:
    """(what this rank's engine is asked by all processes that share it; whether anyone asks anything). Collective where
    there are such processes, for they must make the same calls."""
    if process.tensor_parallel == 1:
        return mine, bool(mine)
    everyone = gather_object([(process.index, mine)])
    ours = [one for index, asked in everyone if index // process.tensor_parallel == process.group for one in asked]
    return sorted(ours), any(asked for _, asked in everyone)


def _sample(asked: Sequence[_Asked], generate: Generate, seeds: Seeds) -> dict[tuple[int, int], Response]:
    """{number of the episode: its turn}, cut where it has less room than another one of the call."""
    if not asked:
        return {}
    most = max(one.most for one in asked)
    found = generate([one.ids for one in asked], n=1, max_tokens=most, seeds=seeds)
    return {one.number: _cut(response, one.most) for one, (response,) in zip(asked, found, strict=True)}


def _cut(response: Response, most: int) -> Response:
    if len(response.ids) <= most:
        return response
    return Response(response.ids[:most], response.logprobs[:most], truncated=True)


def _finish(live: Sequence[Live]) -> None:
    """Ask all environments what their episodes were worth."""
    played = [one for one in live if one.why is None]
    for one, answer in zip(played, ask([(one.instance, Finish()) for one in played]), strict=True):
        if isinstance(answer, Failure):
            one.fail("get_reward", answer.why)
        else:
            one.outcome = answer
