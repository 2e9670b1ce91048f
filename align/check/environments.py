"""Try environments before a run: begin an episode on rows of the data, answer as no model did, and end it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from align.check.rewards import HOSTILE, PLACEHOLDER, ROWS, Trial
from align.check.survey import Survey
from align.config.environment_keys import Environment as EnvironmentKeys
from align.config.problems import nearest
from align.config.recipe_file import KeyPath
from align.data.prompts import DataError, Episode, Prompt
from align.data.store import Stored
from align.data.templates import append_only, end_texts
from align.data.tokenise import opened
from align.environments.calls import response_schema_problem
from align.environments.contract import Call, Description, Finish, Observation, Opening, Outcome, Reply, Start
from align.environments.nursery import EnvironmentFailed, Nursery, ask
from align.rollout.environments import nursery, row_of
from align.rollout.episode import heard_as, said, text_behind
from align.system.failure import Failure

SEED = 0  # of the episodes that are tried

MOST = 2  # episodes that break off before no more are tried: each may take as long as its limit

LONG_TOKEN = 8  # characters; no turn is longer than so many for each of its tokens


@dataclass
class _Tried:
    """One environment of the recipe, and what was found."""

    found: Survey
    name: str
    keys: EnvironmentKeys
    rows: Sequence[Prompt]  # the first that choose it
    problems: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # why episodes broke off
    rewards: list[float] = field(default_factory=list)
    episode: Episode | None = None  # the first one, for rewards

    def placed(self, what: str) -> str:
        """Put where the recipe names the environment before a problem."""
        several = isinstance(self.found.experiment.recipe.environment, dict)
        key: KeyPath = ("environment", *([self.name] if several else []), "name")
        return self.found.experiment.file.problem(key, what)

    def wrong(self, what: str) -> None:
        """Note a problem of the environment."""
        self.problems.append(self.placed(what))

    def judge(self) -> None:
        """Make the first failure a problem where no episode came to its end; else a doubt, for in training such
        episodes are masked."""
        for what in self.broken[:1]:
            (self.doubts if self.episode else self.problems).append(self.placed(f"environment {self.name!r}: {what}"))


def try_environments(found: Survey, rows: Sequence[Stored]) -> tuple[dict[str, Trial], dict[str, Episode]]:
    """({environment: its trial}, {environment: an episode of it}) on rows of several sources; without rows each is only
    loaded."""
    recipe, problems = found.experiment.recipe, _column_problems(found, rows)
    sections = recipe.environments()
    one = len(sections) == 1
    chosen = {name: [*islice((row for row in chain(*rows) if one or _chosen(row) == name), ROWS)] for name in sections}
    trials, episodes = {}, {}
    with ExitStack() as held:
        made = {name: held.enter_context(closing(nursery(name, keys))) for name, keys in sections.items()}
        for name, keys in sections.items():
            tried = _Tried(found, name, keys, chosen[name], problems)
            problems = []  # those of rows stand with the first environment
            try:
                _try(tried, made[name], made[name].wait())
            except EnvironmentFailed as error:
                tried.wrong(str(error))
            means = {"scripted replies": sum(tried.rewards) / len(tried.rewards)} if tried.rewards else {}
            trials[name] = Trial(tuple(dict.fromkeys(tried.problems)), tuple(dict.fromkeys(tried.doubts)), means)
            episodes |= {name: tried.episode} if tried.episode else {}
    return trials, episodes


def _chosen(row: Prompt) -> Any:
    return row.columns.get("environment")


def _column_problems(found: Survey, rows: Sequence[Stored]) -> list[str]:
    """Rows that choose no environment, where there are several."""
    recipe = found.experiment.recipe
    if not isinstance(recipe.environment, dict):
        return []
    names = list(recipe.environments())
    wrong, given = 0, None
    for chosen in map(_chosen, chain(*rows)):
        if chosen not in names:
            given = given if wrong else chosen
            wrong += 1
    if not wrong:
        return []
    what = f"{wrong} of {sum(map(len, rows))} rows choose none of them by their column 'environment'"
    told = f"{what}, the first by {given!r}; {nearest(str(given), names)}"
    return [found.experiment.file.problem(("environment",), told)]


def _try(tried: _Tried, made: Nursery, offers: Description) -> None:
    """Try an environment that is loaded."""
    tokenizer, experiment = tried.found.tokenizer, tried.found.experiment
    if offers.contract == "tools" and not offers.scores and not experiment.reward_functions:
        tried.wrong(f"{offers.name} has no get_reward, and the recipe has no rewards; add one of them")
    if not tried.rows or tokenizer is None or tried.found.experiment.recipe.sampling is None:
        return
    _template(tried, tokenizer, offers)
    if tried.problems:
        return
    sampling = tried.found.experiment.recipe.sampling
    most = LONG_TOKEN * (sampling.max_turn_tokens or sampling.max_response_tokens)
    replies = [_reply(offers), *([Reply(text[:most]) for text in HOSTILE] if offers.contract == "text" else [])]
    first, *others = tried.rows
    for row, reply in [*((first, reply) for reply in replies), *((row, replies[0]) for row in others)]:
        _episode(tried, made, offers, row, reply)
        if tried.problems or len(tried.broken) == MOST:
            break
    tried.judge()


def _template(tried: _Tried, tokenizer: PreTrainedTokenizerBase, offers: Description) -> None:
    """Note what of the chat template does not go with episodes, or with tools."""
    talking = all(row.conversational for row in tried.rows)
    if not talking and offers.contract == "tools":
        tried.wrong("a prompt is text, and tools need a conversation; write prompts as lists of messages")
        return
    if not talking:
        return
    why = response_schema_problem(tokenizer) if offers.contract == "tools" else None
    ends, variables = end_texts(tokenizer, tried.found.ends), tried.rows[0].variables
    if why := why or append_only(tokenizer, offers.tools, ends=ends, variables=variables):
        tried.problems.append(tried.found.experiment.file.problem(("model", "chat_template"), why))


def _reply(offers: Description) -> Reply:
    """A reply as no model wrote it: one call of each tool, and one of a tool that does not exist."""
    if offers.contract == "text":
        return Reply(PLACEHOLDER)
    functions = [tool["function"] for tool in offers.tools]
    made = [Call(f["name"], _arguments(f.get("parameters", {}).get("properties", {}))) for f in functions]
    return Reply("", (*made, Call("no_such_tool", {}), *(Call(call.name, [1]) for call in made[:1])))


def _arguments(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the types that a tool's schema asks for."""
    plain = {"integer": 1, "number": 1.0, "boolean": True, "array": [], "object": {}}
    return {
        name: schema["enum"][0] if schema.get("enum") else plain.get(str(schema.get("type")), "1")
        for name, schema in properties.items()
    }


def _episode(tried: _Tried, made: Nursery, offers: Description, row: Prompt, reply: Reply) -> None:
    """Begin twice, reply once, end; note what fails."""
    several = len(tried.found.experiment.recipe.environments()) > 1
    start, one, prompt = Start(row_of(row, several), SEED), made.instance(0), None
    [opening], [again] = ask([(one, start)]), ask([(one, start)])
    broken = next((("reset", found) for found in (opening, again) if isinstance(found, Failure)), None)
    if not broken and opening.text != again.text:
        what = "reset says something else at the same seed, so the episodes of a group would not begin alike"
        tried.wrong(f"environment {tried.name!r}: {what}; take random numbers from `random` or `numpy.random`")
        return
    if not broken:
        prompt = _open(tried, offers, row, opening)
        [answer] = ask([(one, reply)])
        broken = (f"step, on the reply {reply.text[:80]!r},", answer) if isinstance(answer, Failure) else None
    if not broken:
        [outcome] = ask([(one, Finish())])
        broken = ("get_reward", outcome) if isinstance(outcome, Failure) else None
    if broken:
        call, failure = broken
        tried.broken.append(f"{call} failed on the row {row.text[-80:]!r}: {failure.why}")
        return
    if prompt:
        _budget(tried, prompt, answer)
    earned = answer.reward if offers.contract == "text" else outcome.reward
    tried.rewards += [] if earned is None else [earned]
    tried.episode = tried.episode or _as_episode(tried.name, reply, answer, outcome)


def _open(tried: _Tried, offers: Description, row: Prompt, opening: Opening) -> Prompt | None:
    """The opened prompt; None, and a problem, where it cannot be or is too long."""
    recipe, tokenizer = tried.found.experiment.recipe, tried.found.tokenizer
    limit = max(source.max_prompt_tokens for source in recipe.sources().values())
    try:
        prompt = opened(row, opening.text, offers.tools, tokenizer)
    except DataError as error:
        tried.problems.append(tried.found.experiment.file.problem(("model", "chat_template"), str(error)))
        return None
    if len(prompt.ids) > limit:
        what = f"with its tools and what reset says the prompt has {len(prompt.ids)} tokens, and data.max_prompt_tokens"
        tried.wrong(f"environment {tried.name!r}: {what} is {limit}; raise it or shorten the texts")
        return None
    return prompt


def _budget(tried: _Tried, prompt: Prompt, answer: Observation) -> None:
    """Note a budget that what the environment says uses up."""
    sampling, tokenizer = tried.found.experiment.recipe.sampling, tried.found.tokenizer
    if answer.ended or tried.keys.max_turns == 1:
        return
    try:
        text = text_behind([heard_as(message) for message in answer.messages], prompt, tokenizer, tried.found.ends)
    except ValueError as error:
        tried.problems.append(tried.found.experiment.file.problem(("model", "chat_template"), str(error)))
        return
    tokens = len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    turn, most = sampling.max_turn_tokens or 1, sampling.max_response_tokens
    if turn <= most <= turn + tokens:
        what = f"{most} tokens hold one turn ({turn}) and what the environment answered ({tokens})"
        fix = "raise it, or lower sampling.max_turn_tokens"
        key = ("sampling", "max_response_tokens")
        tried.problems.append(tried.found.experiment.file.problem(key, f"{what}, and no second turn; {fix}"))


def _as_episode(name: str, reply: Reply, answer: Observation, outcome: Outcome) -> Episode:
    """The episode that was tried, as rewards get it."""
    messages = [said(reply), *map(heard_as, answer.messages)]
    return Episode(name, answer.ended or "max_turns", messages, outcome.reward, attributes=outcome.attributes)
