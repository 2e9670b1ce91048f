"""Episodes: real processes of environments, and a sampler that follows a script."""

import itertools
import json

import pytest
from support.episodes import END, TOKENIZER, environments, played, prompt, tools_tokenizer

from align.data.prompts import turn_numbers
from align.data.turns import hash_of
from align.rollout import episodes
from align.rollout.rollouts import Process
from align.rollout.seeds import Draw

TEXT = "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def numbers(*said):
    """The policy says these, one a turn."""
    return lambda call, _: said[call]


def guess_until_found(_, context):
    """The policy halves the interval that the hints leave."""
    low, high, said = 1, 8, context.split("assistant\n")[1:]
    for before, after in itertools.pairwise(said):
        number, hint = int(before.split("<")[0]), before.split("user\n")[1]
        low, high = (number + 1, high) if hint.startswith("higher") else (low, number - 1)
        assert after is not None
    return str((low + high) // 2)


COUNTER = {"type": "function", "function": {"name": "add", "parameters": {}}}


def told(rows):
    """The rows without what only the instance knows, such as how many episodes it has played."""
    return [(*where, prompt.ids, r.ids, r.turns, r.episode.messages, r.episode.reward) for *where, prompt, r in rows]


def test_an_episode_goes_on_until_its_environment_ends_it():
    with environments(Guess={"max_turns": 8}) as found:
        ((group, index, given, response),), script = played([prompt("Play. ")], guess_until_found, found)
    assert (group, index) == (0, 0)
    assert given.text == "<|im_start|>user\nPlay. Guess 1..8.<|im_end|>\n<|im_start|>assistant\n"
    assert given.prompt == [{"role": "user", "content": "Play. Guess 1..8."}] and given.ids == script.calls[0][0][0]
    episode = response.episode
    assert episode.ended == "terminated" and episode.success and episode.reward == 1.0 and not response.truncated
    said = [m["content"] for m in episode.messages if m["role"] == "assistant"]
    hints = [m["content"] for m in episode.messages if m["role"] == "user"]
    assert len(said) == len(hints) == len(script.calls) > 1 and hints[-1] == "right"
    text = "".join(number + TEXT.format(hint) for number, hint in zip(said, hints[:-1], strict=False))
    assert TOKENIZER.decode(response.ids) == text + said[-1] + "<|im_end|>"  # nothing behind the last turn
    assert [turn.role for turn in response.turns] == ["assistant", *["user", "assistant"] * (len(said) - 1)]
    assert [turn.reward for turn in response.turns if turn.role == "assistant"] == [*[0.0] * (len(said) - 1), 1.0]
    states = [turn.state for turn in response.turns if turn.role == "assistant"]
    assert states == [hash_of("new"), *[hash_of(f"after {number}") for number in said[:-1]]]


def test_each_turn_is_sampled_from_exactly_what_was_sampled_and_said_before():
    """Not from its text: a sampler may say tokens that its text would not give back."""

    def say(call, _):
        return ["3", "5", "12"][call]

    with environments(Guess={"max_turns": 3}) as found:
        ((_, _, given, response),), script = played([prompt()], say, found)
    chosen = [number >= 0 for number in turn_numbers(len(response.ids), response.turns)]
    assert [value == -0.5 for value in response.logprobs] == chosen and 0.0 in response.logprobs
    for call, (contexts, _, _) in enumerate(script.calls):
        start = [turn for turn in response.turns if turn.role == "assistant"][call].start
        assert contexts == [[*given.ids, *response.ids[:start]]]


class Resplits:
    """The tokenizer, which would say each text in other tokens than were sampled."""

    def __init__(self, banned):
        self.banned = banned

    def __getattr__(self, name):
        return getattr(TOKENIZER, name)

    def __call__(self, text, **rest):
        assert not any(said in text for said in self.banned), "what was sampled is tokenised again"
        return TOKENIZER(text, **rest)


def test_what_was_sampled_is_never_tokenised_again():
    tokenizer = Resplits(["77", "88"])
    with environments(Guess={"max_turns": 3}, tokenizer=tokenizer) as found:
        ((*_, response),), _ = played([prompt()], numbers("77", "88", "77"), found)
    with environments(Guess={"max_turns": 3}) as found:
        ((*_, same),), _ = played([prompt()], numbers("77", "88", "77"), found)
    assert response == same


@pytest.mark.parametrize(
    ("sampling", "turns", "ended", "said"),
    [
        ({}, 2, "max_turns", ["x", "x"]),
        ({"max_response_tokens": 200}, 9, "truncated", ["x"] * 4),  # the environment's own limit
        ({"max_response_tokens": 35}, 9, "budget", ["x"]),  # what it said has no room
        ({"max_response_tokens": 70}, 9, "budget", ["x", "x"]),
    ],
)
def test_what_ends_an_episode(sampling, turns, ended, said):
    with environments(Guess={"max_turns": turns}, sampling=sampling) as found:
        ((*_, response),), _ = played([prompt()], lambda *_: "x", found)
    assert response.episode.ended == ended and response.truncated == (ended in ("budget", "truncated"))
    assert [turn.text for turn in response.turns if turn.role == "assistant"] == ["x<|im_end|>"] * len(said)
    assert response.turns[-1].role == "assistant" and len(response.ids) == response.turns[-1].end
    assert response.episode.reward == -0.5 * len(said)  # the environment has heard the last turn too


def test_an_observation_that_just_fits_leaves_room_for_a_token():
    heard = len(TOKENIZER("x<|im_end|>")["input_ids"]) + len(TOKENIZER(TEXT.format("Say a number."))["input_ids"]) - 1
    for room, turns in ((0, 1), (1, 2)):
        sampling = {"max_response_tokens": heard + room}
        with environments(Guess={"max_turns": 9}, sampling=sampling) as found:
            ((*_, response),), script = played([prompt()], lambda *_: "x", found)
        assert len(script.calls) == turns and response.episode.ended == "budget" and response.truncated
        assert len(response.ids) == (heard + 1 if room else 2)


def test_a_turn_that_is_cut_gets_an_end_that_the_policy_did_not_choose():
    sampling = {"max_turn_tokens": 3, "max_response_tokens": 300}
    with environments(Guess={"max_turns": 2}, sampling=sampling) as found:
        ((*_, response),), script = played([prompt()], lambda *_: "12345", found)
    first, between, second = response.turns
    assert (first.text, second.text) == ("123", "123") and [most for _, most, _ in script.calls] == [3, 3]
    assert response.ids[first.end] == END and between.text.startswith("<|im_end|>\n<|im_start|>user")
    assert response.logprobs[first.end] == 0.0 and not response.truncated
    assert [m["content"] for m in response.episode.messages if m["role"] == "assistant"] == ["123", "123"]


def test_a_row_with_less_room_than_another_of_the_call_is_cut():
    sampling = {"max_response_tokens": 60}
    say = {"a": "1", "b": "1234567890"}
    with environments(Guess={"max_turns": 9}, sampling=sampling) as found:
        rows = [prompt("a "), prompt("b ")]
        out, script = played(rows, lambda _, context: say[context.split("user\n")[1][0]] * 2, found)
    most = [most for _, most, _ in script.calls]
    assert most[0] == 60 and all(len(response.ids) <= 60 for *_, response in out)


def test_groups_begin_alike_and_ranks_play_their_own():
    rows = [prompt(f"{i} ", what="") for i in range(4)]
    with environments(Guess={"max_turns": 1}) as found:
        whole, script = played(rows, numbers("1"), found, n=3)
        parts = [played(rows, numbers("1"), found, n=3, process=Process(rank, 2))[0] for rank in range(2)]
    assert [(group, index) for group, index, *_ in whole] == [(g, i) for g in range(4) for i in range(3)]
    assert told(sorted(parts[0] + parts[1], key=lambda row: row[:2])) == told(whole)
    secrets = [response.episode.attributes["number"] for *_, response in whole]
    assert len(set(secrets)) > 1 and all(len(set(secrets[i : i + 3])) == 1 for i in range(0, 12, 3))
    assert len(set(script.calls[0][2].requests)) == 12  # and each episode samples by itself


def test_the_seed_of_a_row_is_that_of_its_episode_whatever_the_position():
    rows = [prompt(f"{i} ", seed=i) for i in range(6)]
    with environments(Guess={"max_turns": 1}) as found:
        secrets = [
            [response.episode.attributes["number"] for *_, response in played(rows, numbers("1"), found, draw=draw)[0]]
            for draw in (Draw(0, 0, 0), Draw(1, 5, 2))
        ]
    assert secrets[0] == secrets[1] and len(set(secrets[0])) > 1


def test_the_same_draw_plays_the_same_episodes_on_instances_that_were_used_before():
    rows = [prompt(f"{i} ") for i in range(3)]
    with environments(Guess={"max_turns": 2}) as found:
        first, _ = played(rows, numbers("4", "2"), found, n=2)
        again, _ = played(rows, numbers("4", "2"), found, n=2)
        other, _ = played(rows, numbers("4", "2"), found, n=2, draw=Draw(0, 1, 0))

    assert told(first) == told(again) != told(other)


@pytest.mark.parametrize(
    ("row", "said", "where"),
    [
        ({"what": "raise"}, "1", "reset: ValueError: x"),
        ({"what": "os._exit"}, "1", "reset: "),
        ({}, "raise", "step: ValueError: x"),
        ({}, "killed", "step: "),
        ({}, "exit", "step: SystemExit: 3"),
    ],
)
def test_a_failure_is_that_of_its_row_alone(row, said, where):
    rows = [prompt("a ", **row), prompt("b ")]
    with environments(Guess={"max_turns": 2}) as found:
        out, _ = played(rows, lambda _, context: said if "a Guess" in context else "1", found)
        again, _ = played(rows[1:], numbers("1", "1"), found)  # and the instance is made anew
    bad, good = (response for *_, response in out)
    assert bad.episode.ended == "failed" and bad.episode.why.startswith(where) and bad.episode.reward is None
    assert good.episode.why is None and good.episode.reward is not None and again[0][3].episode.why is None


def test_one_that_hangs_costs_its_own_limit():
    with environments(Guess={"max_turns": 2, "seconds": 3}) as found:
        out, _ = played([prompt("a "), prompt("b ")], lambda _, c: "sleep" if "a Guess" in c else "1", found)
    assert "took longer than 3 s; raise environment.seconds" in out[0][3].episode.why and out[1][3].episode.why is None


def test_openings_that_differ_within_a_group_are_failures():
    rows = [prompt("", what="(str(__import__('os').getpid()), {})")]
    with environments(Returns={}) as found:
        out, _ = played(rows, lambda *_: "('', 0, True, False, {})", found, n=3)
    whys = [response.episode.why for *_, response in out]
    assert whys[0] is None and all("seeded" in why for why in whys[1:])


def test_an_opening_that_has_no_room_is_a_failure():
    with environments(context=300, Returns={}, sampling={"max_response_tokens": 200}) as found:
        ((*_, response),), _ = played([prompt("", what="('y' * 500, {})")], lambda *_: "", found)
    assert "raise data.max_prompt_tokens" in response.episode.why and response.ids == []


def test_several_environments_are_chosen_by_the_column():
    rows = [prompt("a ", environment="one"), prompt("b ", environment="two")]
    sections = {"one": {"name": "Guess", "max_turns": 1}, "two": {"name": "Counter", "max_turns": 1, "weight": 0.5}}
    with environments(9000, tools_tokenizer(), **sections) as found:
        out, _ = played(rows, numbers("1"), found)
    assert [response.episode.environment for *_, response in out] == ["one", "two"]
    assert out[1][3].episode.ended == "terminated" and out[1][3].episode.reward == 0.0  # no call
    assert out[1][3].episode.attributes["seen"] == ["prompt"]  # the column that chose it is not passed on


def call(name, **arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def of_tools(say, row=None, turns=4, **sampling):
    """An episode of the environment `Counter`, with a template that has tools."""
    tokenizer = tools_tokenizer()
    sampling = {"max_response_tokens": 1500, **sampling}
    with environments(Counter={"max_turns": turns}, tokenizer=tokenizer, sampling=sampling, context=9000) as found:
        (row,), script = played([prompt("Count.", **(row or {}))], say, found)
    return *row, script


def test_tools_are_shown_called_and_answered_as_the_template_has_it():
    said = ["Let me. " + call("add", number=3), call("add", number=4) + "\n" + call("no_such", x=1), "It is 7."]
    _, _, given, response, script = of_tools(lambda call, _: said[call], {"start": 1})
    assert "# Tools" in given.text and '"name": "add"' in given.text and "Count. It stands at 1." in given.text
    episode = response.episode
    assert episode.ended == "terminated" and episode.reward == 8.0 and (episode.calls, episode.failed_calls) == (3, 1)
    assert [m["role"] for m in episode.messages] == ["assistant", "tool", "assistant", "tool", "tool", "assistant"]
    assert [m["content"] for m in episode.messages if m["role"] == "tool"] == [
        "4",
        "8",
        "{'error': 'Tool no_such not found.'}",
    ]
    assert episode.messages[0]["tool_calls"] == [
        {"type": "function", "function": {"name": "add", "arguments": {"number": 3}}}
    ]
    tokenizer = tools_tokenizer()
    whole = tokenizer.apply_chat_template([*given.prompt, *episode.messages], tools=[COUNTER], tokenize=False)
    mine = given.text + TOKENIZER.decode(response.ids)
    assert mine.split("<|im_start|>assistant", 1)[1].count("<|im_start|>") == 4
    for part in ("<tool_response>\n4\n</tool_response>", "<tool_response>\n8\n</tool_response>", "It is 7.<|im_end|>"):
        assert part in mine and part in whole  # what is said in between is as the template writes it
    assert episode.attributes["total"] == 8


@pytest.mark.parametrize(
    "said",
    [
        "<tool_call>\n{broken",
        '<tool_call>\n{"name": "add"}\n</tool_call>',
        '<tool_call>\n{"name": "add", "arguments": [1]}\n</tool_call>',
        call("add", number="x"),
        call("terrible"),
        call("get_reward"),
        call("_hidden"),
    ],
)
def test_a_malformed_call_is_told_or_is_text_and_ends_nothing_else(said):
    *_, response, _ = of_tools(lambda call, _: [said, "done"][call])
    episode = response.episode
    assert episode.why is None and episode.ended == "terminated"
    if episode.calls:
        assert episode.failed_calls == 1 and episode.messages[1]["content"].startswith("{'error': ")
    else:
        assert len(episode.messages) == 1  # all text, as in TRL


@pytest.mark.parametrize(("said", "ended"), [("It is 7, I think", "budget"), (call("add", number=1), "max_turns")])
def test_an_answer_of_tools_that_was_cut_is_truncated(said, ended):
    turns = 1 if ended == "max_turns" else 3
    *_, response, _ = of_tools(lambda *_: said + " " * 20, turns=turns, max_turn_tokens=len(said) + 3)
    assert response.episode.ended == ended and response.truncated and response.episode.why is None


def test_a_reward_that_raises_masks_the_episode():
    *_, response, _ = of_tools(lambda call, _: [call_13, "done"][call])
    assert response.episode.why.startswith("get_reward: ValueError") and response.episode.reward is None


call_13 = call("add", number=13)


def test_processes_that_share_an_engine_make_the_same_calls(monkeypatch):
    """Rank 0 of two that share one: its own episodes are those that it would play alone."""
    rows = [prompt(f"{i} ") for i in range(4)]
    other = [((3, 0), [5, 6], 7), ((1, 0), [5], 9)]
    asked = []

    def gather(mine):
        asked.append(mine)
        return [*mine, (1, [episodes._Asked(*one) for one in other] if len(asked) == 1 else [])]

    monkeypatch.setattr(episodes, "gather_object", gather)
    process = Process(0, 2, tensor_parallel=2)
    with environments(Guess={"max_turns": 2}) as found:
        shared, script = played(rows, lambda *_: "1", found, process=process)
        alone, _ = played(rows, lambda *_: "1", found, process=Process(0, 2))
    assert [len(contexts) for contexts, *_ in script.calls][0] == 4 and told(shared) == told(alone)
    assert [script.calls[0][0][1], script.calls[0][0][3]] == [[5], [5, 6]]  # in the order of the prompts
