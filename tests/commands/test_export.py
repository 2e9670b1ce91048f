"""`python -m align export`: a run's record as traces of verifiers 0.4, to the exact token."""

import json
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field
from support import run_folder
from typer.testing import CliRunner

from align.__main__ import app
from align.result.samples import read

# ---- verifiers/v1/{types,graph,trace,episode}.py of 0.4.0, as far as a record goes; a name of ours has no place in it


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Said(Strict):
    role: Literal["system", "user", "assistant"]
    content: str


class Told(Strict):
    role: Literal["tool"]
    tool_call_id: str
    content: str


class Node(Strict):
    parent: int | None = None
    message: Annotated[Said | Told, Field(discriminator="role")]
    sampled: bool
    timestamp: float
    token_ids: list[int]
    mask: list[bool]
    logprobs: list[float] = []
    advantages: list[float] | None = None
    reference_logprobs: list[float] | None = None
    trainer_logprobs: list[float] | None = None
    entropies: list[float] | None = None


class Task(Strict):
    type: str
    data: dict[str, Any]
    key: str | None = None


class Reward(Strict):
    score: float
    weight: float = 1.0


class Failure(Strict):
    type: str
    message: str


class Trace(Strict):
    version: Literal[1]
    id: str
    verifiers: dict[str, str]
    task: Task
    agent: dict[str, Any]
    nodes: list[Node]
    rewards: dict[str, Reward | None]
    metrics: dict[str, float | None]
    info: dict[str, Any]
    is_completed: bool
    ok: bool
    stop_condition: str
    errors: list[Failure]
    timing: dict[str, float]


class Work(Strict):
    type: Literal["train"]
    step: int


class RunInfo(Strict):
    type: Literal["train"]
    id: str
    work: Work


class Episode(Strict):
    id: str
    task: Task
    group: dict[str, str]
    run: RunInfo | None = None
    ok: bool
    errors: list[Failure]
    traces: list[Trace]


# ----


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def episodes(path):
    return [Episode.model_validate_json(line) for line in path.read_bytes().splitlines()]


def compact(values, node):
    """Values of a stretch's tokens, those that were sampled."""
    return [value for value, own in zip(values, node.mask, strict=True) if own]


def check(line, episode):
    """Each number of the line stands where it belongs."""
    [trace] = episode.traces
    prompt, *nodes = trace.nodes
    ids = [token for node in trace.nodes for token in node.token_ids]
    assert ids == line.prompt_ids + line.response_ids and prompt.token_ids == line.prompt_ids
    assert [node.parent for node in trace.nodes] == [None, *range(len(nodes))]
    assert [own for node in nodes for own in node.mask] == line.mask and not any(prompt.mask)
    for node in trace.nodes:
        assert len(node.mask) == len(node.token_ids) and node.sampled == any(node.mask)
    start = 0
    for node in nodes:
        end = start + len(node.mask)
        for name, values in (("logprobs", line.sampler_logprob), ("advantages", line.advantage and line.advantage[0])):
            assert (getattr(node, name) or []) == (compact(values[start:end], node) if values else [])
        start = end
    assert trace.metrics == (line.rewards or {}) and episode.group == {"id": str(line.group)}
    assert trace.rewards["reward"] == (None if line.reward is None else Reward(score=line.reward))


def test_a_run(tmp_path):
    """Every line of it, also of a response that no reward applied to, and of a truncated one."""
    run_folder.make(tmp_path / "mine", unrated=(3,))
    told = run(tmp_path / "mine", "--format", "verifiers")
    lines, found = read(tmp_path / "mine/samples.jsonl"), episodes(tmp_path / "mine/traces.jsonl")
    assert told == f"exported: {tmp_path}/mine/traces.jsonl ({len(lines)} samples)"
    assert len(lines) == len(found) and len({episode.id for episode in found}) == len(found)
    assert any(line.reward is None for line in lines.values()) and any(line.truncated for line in lines.values())
    for line, episode in zip(lines.values(), found, strict=True):
        check(line, episode)
        [trace] = episode.traces
        assert episode.run == RunInfo(type="train", id="mine", work=Work(type="train", step=line.step))
        assert (trace.stop_condition == "max_output_tokens") == line.truncated and trace.ok
        assert trace.info["truncated"] == line.truncated and trace.info["correct"] == line.correct
        if line.reward is not None:
            assert trace.nodes[1].trainer_logprobs is None or len(trace.nodes[1].trainer_logprobs) == sum(line.mask)
            assert trace.nodes[1].advantages and trace.info["kept"] == line.kept


TURNS = [
    {"role": "assistant", "start": 0, "end": 2, "text": "add(1,2)<e>", "reward": 0.5},
    {"role": "tool", "start": 2, "end": 5, "text": "\n3\n"},
    {"role": "assistant", "start": 5, "end": 6, "text": "hm<e>"},
    {"role": "template", "start": 6, "end": 7, "text": "\n"},
    {"role": "assistant", "start": 7, "end": 9, "text": "3 é \u2028<e>"},
]
LINE = {
    "group": "g",
    "prompt": "1+2?",
    "prompt_ids": [9, 8],
    "response": "all",
    "response_ids": [1, 2, 3, 4, 5, 6, 7, 8, 9],
    "turns": TURNS,
    "reward": 1.5,
    "rewards": {"r": 1.5, "s": None},
    "sampler_logprob": [-1, -2, None, None, None, -3, None, -4, -5],
    "ref_logprob": [-1, None, None, None, None, -3, None, -4, -5],
    "advantage": [[0.5, 0.5, None, None, None, 1, None, 0, -1], None],
    "kept": [True, False],
}


def written(tmp_path, *lines):
    """The episodes of a file of lines."""
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (tmp_path / "traces.jsonl").unlink(missing_ok=True)
    run(tmp_path / "samples.jsonl", "--format", "verifiers")
    return episodes(tmp_path / "traces.jsonl")


def test_turns(tmp_path):
    """One node a turn; what the template alone wrote is the next turn's, and was not sampled."""
    [episode] = written(tmp_path, LINE)
    [line], [trace] = read(tmp_path / "samples.jsonl").values(), episode.traces
    check(line, episode)
    assert [node.message.role for node in trace.nodes] == ["user", "assistant", "tool", "assistant", "assistant"]
    assert [node.token_ids for node in trace.nodes] == [[9, 8], [1, 2], [3, 4, 5], [6], [7, 8, 9]]
    assert trace.nodes[-1].mask == [False, True, True] and trace.nodes[-1].logprobs == [-4, -5]
    assert trace.nodes[-1].message.content == "3 é \u2028<e>" and trace.nodes[2].message.tool_call_id == "call_0"
    assert [node.reference_logprobs for node in trace.nodes[1:]] == [None, None, [-3], [-4, -5]]  # one is not known
    assert [node.advantages for node in trace.nodes[1:]] == [[0.5, 0.5], None, [1], [0, -1]]
    assert episode.run is None and trace.info == {"kept": [True, False]}


def test_tokens_whose_turns_are_only_numbered(tmp_path):
    numbered = {name: value for name, value in LINE.items() if name != "turns"}
    [episode] = written(tmp_path, numbered | {"turn": [0, 0, -1, -1, -1, 1, -1, 2, 2], "token_text": [*"abcdefghi"]})
    [trace] = episode.traces
    said = [(node.message.role, node.message.content) for node in trace.nodes[1:]]
    assert said == [("assistant", "ab"), ("user", "cde"), ("assistant", "f"), ("user", "g"), ("assistant", "hi")]
    check(next(iter(read(tmp_path / "samples.jsonl").values())), episode)


def test_a_reward_that_failed(tmp_path):
    [episode] = written(tmp_path, LINE | {"reward": None, "failed": {"r": "TypeError: no"}, "truncated": True})
    [trace] = episode.traces
    assert not episode.ok and not trace.ok and trace.stop_condition == "error" and trace.rewards == {"reward": None}
    assert episode.errors == trace.errors == [Failure(type="RewardError", message="r: TypeError: no")]


def test_pairs_of_the_data_are_left_out(tmp_path):
    pair = {name: LINE[name] for name in ("group", "prompt", "prompt_ids", "response_ids")} | {"chosen": True}
    assert len(written(tmp_path, LINE, pair)) == 1
    (tmp_path / "traces.jsonl").unlink()
    assert "(1 samples, 1 lines of pairs left out)" in run(tmp_path, "--format", "verifiers")
    (tmp_path / "samples.jsonl").write_text(json.dumps(pair))
    told = run(tmp_path, "--format", "verifiers", "--out", tmp_path / "other.jsonl", code=1)
    assert "has pairs of the data only, which no policy sampled" in told and not (tmp_path / "other.jsonl").exists()


def test_what_is_no_run(tmp_path):
    (tmp_path / "run").mkdir()
    told = run(tmp_path / "run", "--format", "verifiers", code=1)
    assert "samples.jsonl: missing, so there is no sample to export; name the folder of a run" in told
    assert "no format is called 'verifier'; did you mean 'verifiers'" in run(tmp_path, "--format", "verifier", code=1)
    (tmp_path / "run/samples.jsonl").touch()
    assert "no rollouts; write one JSON object a line" in run(tmp_path / "run", "--format", "verifiers", code=1)
    (tmp_path / "run/samples.jsonl").write_text('{"group": 0, "response_ids": [1]}\n')
    told = run(tmp_path / "run", "--format", "verifiers", code=1)
    assert "samples.jsonl:1: prompt, prompt_ids: missing" in told and not (tmp_path / "run/traces.jsonl").exists()


def test_a_file_that_is_there_stays(tmp_path):
    written(tmp_path, LINE)
    before = (tmp_path / "traces.jsonl").read_bytes()
    told = run(tmp_path, "--format", "verifiers", code=1)
    assert "traces.jsonl: is there already; remove it, or name another file by --out" in told
    assert (tmp_path / "traces.jsonl").read_bytes() == before
    run(tmp_path, "--format", "verifiers", "--out", tmp_path / "other/t.jsonl")
    assert (tmp_path / "other/t.jsonl").read_bytes() == before


def test_the_types_of_verifiers_read_it(tmp_path):
    """With the package itself, where it is installed."""
    pytest.importorskip("verifiers", minversion="0.4")
    from verifiers.v1.configs.agent import WireAgentConfig
    from verifiers.v1.state import State
    from verifiers.v1.task import WireTaskData
    from verifiers.v1.trace import Trace as OwnTrace
    from verifiers.v1.utils.trace_store import read_episodes

    written(tmp_path, LINE)
    [episode] = read_episodes(tmp_path, OwnTrace[WireTaskData, State, WireAgentConfig])
    [branch] = episode.traces[0].branches
    assert [token for node in branch.nodes for token in node.token_ids] == LINE["prompt_ids"] + LINE[
        "response_ids"
    ] and episode.traces[0].reward == 1.5
