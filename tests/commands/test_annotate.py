"""Banks of reference and guide, made from models on the disk."""

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from support import tiny_model
from support.results import recorded
from support.tiny_task import pairs

from align.check.defaults import fill_dtype
from align.check.requirements import bank_identity
from align.commands.annotate import annotate
from align.config.experiment import load_experiment
from align.data import bank
from align.data.prompts import DataError
from align.data.read import load_prompts
from align.model.chat_template import policy_tokenizer
from align.model.load import load_model
from align.system.hardware import here


@pytest.fixture(scope="module")
def start(folder, tmp_path_factory):
    return recorded(folder, tmp_path_factory.mktemp("start") / "adapter", "adapter")


def experiment(folder, tmp_path, guide, chat_template=None, **adapter):
    data = {"pairs": "support.tiny_task:pairs", "args": {"count": 2}, "bank": str(tmp_path / "bank")}
    recipe = {
        "model": {"policy": folder, "adapter": adapter, "guide": str(guide), "chat_template": chat_template},
        "data": data,
        "objective": {"name": "tgdpo"},
        "run": {"out": str(tmp_path / "run"), "steps": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return fill_dtype(load_experiment(tmp_path / "recipe.yaml"), here())


def test_the_reference_of_a_bank_is_the_adapter_that_the_run_goes_on_from(folder, start, tmp_path):
    guide = tiny_model.save_guide(folder, tmp_path / "guide")
    asked = experiment(folder, tmp_path, guide, **{"from": str(start)})
    annotate(asked)
    found, tokens = load_file(tmp_path / "bank" / bank.FILE), tiny_model.tokenizer()
    row = pairs(2)[0]
    question = tokens.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    prompt = tokens(question, add_special_tokens=False)["input_ids"]
    keys = [bytes(key.tolist()).hex() for key in found["keys"]]
    for name, adapter in {"ref_logprob": start, "guide_logprob": guide}.items():
        model = PeftModel.from_pretrained(load_model(folder, "float32"), str(adapter)).eval()
        split = found[name].split(found["lengths"].tolist())
        for answer in (row["chosen"], row["rejected"]):
            ids = tokens(answer[0]["content"] + tiny_model.END, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logprob = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            expected = logprob.gather(-1, torch.tensor(ids)[:, None])[:, 0]
            got = split[keys.index(bank.key(prompt, ids))] if bank.key(prompt, ids) in keys else None
            assert got is not None and torch.allclose(got, expected, atol=1e-4), name
    fresh = experiment(folder, tmp_path, guide, rank=2)
    for one, other in ((asked, fresh), (fresh, asked)):  # a bank of another reference does not fit
        annotate(one)
        bank.read(tmp_path / "bank", bank_identity(one, tokens), "data.bank")
        with pytest.raises(DataError, match="the policy's base is another one now"):
            bank.read(tmp_path / "bank", bank_identity(other, tokens), "data.bank")


def test_a_bank_is_of_one_chat_template(folder, tmp_path):
    """Its tokens are those of the template that the recipe names."""
    guide = tiny_model.save_guide(folder, tmp_path / "guide")
    named = experiment(folder, tmp_path, guide, chat_template="trl:qwen2_5", rank=2)
    annotate(named)
    tokens = policy_tokenizer(folder, "trl:qwen2_5")
    assert "You are Qwen" in tokens.chat_template
    stored = bank.read(tmp_path / "bank", bank_identity(named, tokens), "data.bank")
    read = load_prompts(named.recipe.sources()["data"], tokens, 0)
    stored.check(read.train, "data.bank")
    with pytest.raises(DataError, match="the template is another one now"):
        bank.read(tmp_path / "bank", bank_identity(named, tiny_model.tokenizer()), "data.bank")
