"""Episodes without an engine: environments of this folder, and a sampler that says what a script tells it to."""

from contextlib import contextmanager

from trl.chat_template_utils import add_response_schema

from align.config import environment_keys
from align.config.sampling_keys import Sampling
from align.data.prompts import Prompt
from align.data.tokenise import opened
from align.model import chat_template
from align.rollout.environments import Environment, Environments, nursery
from align.rollout.episodes import play
from align.rollout.rollouts import Process, Response
from align.rollout.seeds import Draw
from align.system.clock import Clock
from support import tiny_model

TOKENIZER = tiny_model.tokenizer()
END = TOKENIZER.eos_token_id
ALONE = Process(0, 1)


def tools_tokenizer():
    """The tokenizer with a template of tools, and TRL's schema by which calls are read."""
    tokenizer = tiny_model.tokenizer()
    tokenizer.chat_template = chat_template.read("trl:qwen2_5")
    add_response_schema(tokenizer)
    return tokenizer


def prompt(text="Play.", **columns):
    """A row of one message."""
    return opened(Prompt([], "", [{"role": "user", "content": text}], columns), "", [], TOKENIZER)


@contextmanager
def environments(context=400, tokenizer=TOKENIZER, sampling=None, **sections):
    """The environments {name: section}, of which names are those of support/environments.py."""
    made = {}
    for name, section in sections.items():
        path = f"support.environments:{section.pop('name', name)}"
        keys = environment_keys.Environment(**{"name": path, "seconds": 30, **section})
        made[name] = keys, nursery(name, keys)
    try:
        by_name = {name: Environment(name, keys, one, one.wait()) for name, (keys, one) in made.items()}
        yield Environments(by_name, Sampling(**(sampling or {})), context, tokenizer, [END])
    finally:
        for _, one in made.values():
            one.close()


class Script:
    """A sampler: `say(number of the call, context's text)` gives the text of a turn, cut where it is too long."""

    def __init__(self, say):
        self.say, self.calls = say, []

    def __call__(self, contexts, *, n, max_tokens, seeds):
        assert n == 1 and len(contexts) == len(seeds.requests)
        self.calls.append((contexts, max_tokens, seeds))
        texts = [self.say(len(self.calls) - 1, TOKENIZER.decode(ids)) for ids in contexts]
        found = [[*TOKENIZER(text)["input_ids"], END] for text in texts]
        return [[Response(ids[:max_tokens], [-0.5] * len(ids[:max_tokens]), len(ids) > max_tokens)] for ids in found]


def played(prompts, say, found, n=1, process=ALONE, draw=None):
    """The responses of episodes in which the policy says what the script tells it to."""
    script = Script(say)
    rows = play(prompts, script, process, found, n=n, draw=draw or Draw(0, 0, 0), clock=Clock())
    return rows, script
