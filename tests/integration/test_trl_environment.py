"""A user's environment runs unchanged in TRL's own trainer and here: the same messages and the same rewards."""

from contextlib import closing

import pytest
import trl
from datasets import Dataset
from support import tiny_model
from support.environments import Counter
from transformers import LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import add_response_schema, parse_response

from align.environments.contract import Call, Environment, Finish, Limits, Reply, Start
from align.environments.nursery import Nursery, ask

pytestmark = pytest.mark.engine

SYSTEM = {"role": "system", "content": "Add."}  # else the template tells the model that it is Qwen

ROWS = [{"prompt": [SYSTEM, {"role": "user", "content": f"Row {i}."}], "start": i} for i in range(2)]

GROUP = 2  # responses to each row


def call(name, arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


SCRIPTS = [  # the turns of each response
    ["Now:" + call("add_later", '{"number": 1}') + call("add", '{"number": 2}') + call("add", "[1]"), "6"],
    [call("guess", "{}"), call("add", '{"number": "2"}'), call("add", "{}"), call("_hidden", "{}"), "done"],
    [call("terrible", '{"what": 3}') + call("add_later", '{"number": -1}'), call("own_loop", "{}"), "5"],
    [call("add", '{"number": 7') + " and no more"],
]


@pytest.fixture(scope="module")
def tokenizer():
    """That of the tiny model with a template that knows tools."""
    made = tiny_model.tokenizer()
    made.chat_template = (trl.chat_template_utils._CHAT_TEMPLATES_DIR / "qwen2_5.jinja").read_text()
    return add_response_schema(made)


def trained(folder, tokenizer, out, longest, steps):
    """(all completions, the environment's rewards of the last step, how far the weights moved) of a training in TRL."""
    told = []

    def letters(completions, environments, **columns):
        assert all(type(one) is Counter for one in environments)
        told.extend(completions)
        return [float(len(set(completion[-1]["content"]))) for completion in completions]

    model = LlamaForCausalLM.from_pretrained(folder)
    model.config.max_position_embeddings = 8192  # TRL drops what does not fit; one character is one token
    before = {name: value.clone() for name, value in model.named_parameters()}
    sizes = dict(per_device_train_batch_size=GROUP * len(ROWS), num_generations=GROUP, max_completion_length=longest)
    quiet = dict(output_dir=str(out), use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True)
    settings = GRPOConfig(**sizes, **quiet, max_steps=steps, learning_rate=1e-2, shuffle_dataset=False)
    trainer = GRPOTrainer(
        model,
        letters,
        args=settings,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
        environment_factory=Counter,
    )
    trainer.train()
    moved = max((value - before[name]).abs().max().item() for name, value in model.named_parameters())
    return told, list(trainer._logs["rewards"]["Counter"]), moved


def played(turns, rows):
    """(tool messages of each turn, reward) of the same replies here, one episode a row."""
    out = []
    with closing(Nursery(Environment("counter", "support.environments:Counter"), Limits(seconds=60.0))) as nursery:
        for instance, (replies, row) in enumerate(zip(turns, rows, strict=True)):
            requests = Start(row, 0), *replies, Finish()
            _, *seen, outcome = [ask([(nursery.instance(instance), request)])[0] for request in requests]
            assert [one.ended for one in seen] == [None] * (len(seen) - 1) + ["terminated"]
            told = [[{"role": m.role, "name": m.name, "content": m.content} for m in one.messages] for one in seen]
            out.append((told, outcome.reward))
    return out


def tool_messages(completion):
    """The tool messages behind each turn of an episode."""
    out = []
    for message in completion:
        if message["role"] == "assistant":
            out.append([])
        else:
            out[-1].append(message)
    return out


def reply(message):
    calls = [(one["function"]["name"], one["function"]["arguments"]) for one in message.get("tool_calls", [])]
    return Reply(message["content"], tuple(Call(*made) for made in calls))


def repeated(rows):
    return [row for row in rows for _ in range(GROUP)]


def test_it_trains_there_and_gives_the_same_rewards_here(folder, tokenizer, tmp_path):
    """Two steps; the random model calls no tool."""
    told, rewards, moved = trained(folder, tokenizer, tmp_path, 16, 2)
    assert len(told) == 8 and moved > 1e-3
    here = played([[reply(completion[0])] for completion in told[4:]], repeated(ROWS))
    assert here == [([[]], reward) for reward in rewards] and rewards == [0.0, 0.0, 1.0, 1.0]


def test_scripted_replies_lead_to_the_same_messages_and_rewards(folder, tokenizer, tmp_path, monkeypatch):
    """Only what TRL samples is replaced."""
    said = [[tokenizer.encode(text) + [tokenizer.eos_token_id] for text in script] for script in SCRIPTS]
    seen, turns = [], [[] for _ in SCRIPTS]  # the tokens that the policy has read or said; (prefix, reply) of each turn

    def scripted(self, prompt_ids, *_, **__):
        if not seen:
            seen.extend(prompt_ids)
        found = []
        for ids in prompt_ids:
            row = next(i for i, known in enumerate(seen) if ids[: len(known)] == known and len(turns[i]) < len(said[i]))
            turns[row].append((ids, said[row][len(turns[row])]))
            seen[row] = ids + turns[row][-1][1]
            found.append(turns[row][-1][1])
        return found, None

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", scripted)
    told, rewards, _ = trained(folder, tokenizer, tmp_path, 4096, 1)
    with closing(Nursery(Environment("counter", "support.environments:Counter"), Limits())) as nursery:
        tools = nursery.wait().tools
    parsed = [
        [reply(parse_response(tokenizer, ids, prefix=prefix, tools=tools)) for prefix, ids in row] for row in turns
    ]
    assert [len(row) for row in parsed] == list(map(len, SCRIPTS))
    there = [tool_messages(one) for one in told]
    assert played(parsed, repeated(ROWS)) == list(zip(there, rewards, strict=True))
    assert [sum(map(len, turns)) for turns in there] == [3, 4, 3, 0]
    assert rewards == [3.0, 2.0, 1.0, 1.0]
