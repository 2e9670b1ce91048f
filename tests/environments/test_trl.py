"""TRL's own loop of tool calls, beside ours: the same class, the same calls, the same messages and reward."""

import asyncio
import inspect
from types import SimpleNamespace

import pytest
from support.environments import Counter

from align.environments import tools
from align.environments.contract import Call, Reply, Start

trainer = pytest.importorskip("trl.trainer.grpo_trainer")

TURNS = [
    [("add", {"number": 2}), ("add_later", {"number": 1}), ("add", {"number": 3})],
    [("guess", {}), ("reset", {}), ("_hidden", {}), ("add", {})],
    [("add", [1]), ("add", "x"), ("add", {"number": 1, "more": 2}), ("add_later", {})],
    [("add_later", {"number": -1}), ("add_later", {"number": 9, "seconds": 0.02}), ("add_later", {"number": 1})],
    [("terrible", {"what": "raise"}), ("terrible", {"what": ""}), ("own_loop", {})],
    [],
]


def in_trl(monkeypatch):
    """(tool messages of each turn, failed calls, reward, environment) of TRL's loop on scripted turns."""

    def reply(calls):
        made = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls]
        return {"role": "assistant", "content": "", **({"tool_calls": made} if made else {})}

    script = [reply(calls) for calls in TURNS]
    environment = Counter()
    environment.reset(start=1)
    found = inspect.getmembers(type(environment), predicate=inspect.isfunction)  # as TRL does, line 2369
    methods = [getattr(environment, n) for n, _ in found if n not in ("reset", "get_reward") and n[0] != "_"]
    loop = trainer.start_event_loop_in_daemon(name="test")
    loop[2].wait()
    monkeypatch.setattr(trainer, "parse_response", lambda *_, **__: script.pop(0))
    this = SimpleNamespace(
        max_tool_calling_iterations=99,
        max_completion_length=10**6,
        model=SimpleNamespace(config=SimpleNamespace(max_position_embeddings=10**6)),
        use_vllm=False,
        _is_vlm=False,
        tools=methods,
        environment_factories=None,
        async_loop=loop[1],
        _tokenizer=None,
        _sync_tool_dicts=[{m.__name__: m for m in methods if not inspect.iscoroutinefunction(m)}],
        _async_tool_dicts=[{m.__name__: m for m in methods if inspect.iscoroutinefunction(m)}],
        _get_tool_suffix_ids=lambda messages: [0] * len(messages),
        _generate_single_turn=lambda *_, **__: ([[1]], None),
    )
    completions = [[script.pop(0)]]
    made = trainer.GRPOTrainer._tool_call_loop(this, [[]], [[1]], [[1]], completions, None, None, {})
    trainer.shutdown_event_loop_in_daemon(loop[0], loop[1])
    turns = []
    for message in completions[0]:
        turns += [[]] if message["role"] == "assistant" else []
        turns[-1] += [message] if message["role"] == "tool" else []
    return turns, made[5], environment.get_reward(), environment


def test_the_same_messages_and_the_same_reward(monkeypatch):
    turns, failed, reward, environment = in_trl(monkeypatch)
    ours = Counter()
    tools.reset(ours, Start({"start": 1}, 0), asyncio.run)
    found = [tools.step(ours, Reply("", tuple(Call(*call) for call in calls)), asyncio.run) for calls in TURNS]
    told = [[{"role": m.role, "name": m.name, "content": m.content} for m in turn.messages] for turn in found]
    assert told == turns and sum(map(len, told)) == sum(map(len, TURNS))
    assert sum(turn.failed_calls for turn in found) == failed > 8
    assert tools.finish(ours, asyncio.run).reward == reward == ours.total == environment.total
    assert [turn.ended for turn in found] == [None] * 5 + ["terminated"]
