"""The token-reward bank: what it gives back, and what it refuses."""

import random
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support import tiny_model
from support.batches import batch_of

from align.data import bank
from align.data.prompts import Answer, DataError, Pair

TOKENIZER = tiny_model.tokenizer()
MODELS = {"policy's base": "base", "guide": "runs/dpo/adapter"}


def pairs(count=3):
    return [
        Pair([5, i], f"p{i}", f"p{i}", {}, Answer([7, i, 8], "a", False), Answer([9] * (i + 1), "b", False), i)
        for i in range(count)
    ]


def batch(some):
    answers = [(pair, answer) for pair in some for answer in pair.answers]
    made = batch_of([i // 2 for i in range(len(answers))], [len(a.ids) for _, a in answers], dtype=torch.float32)
    ids = made.response_ids.clone()
    for i, (_, answer) in enumerate(answers):
        ids[i, : len(answer.ids)] = torch.tensor(answer.ids)
    return replace(made, response_ids=ids, prompt_ids=[pair.ids for pair, _ in answers])


@pytest.fixture
def stored(tmp_path):
    whole = batch(pairs())
    generator = torch.Generator().manual_seed(0)
    scored = {name: -torch.rand(whole.mask.shape, generator=generator) for name in bank.QUANTITIES}
    identity_now = bank.identity(TOKENIZER, MODELS, 1.0)
    bank.write(tmp_path, whole, scored, identity_now)
    return tmp_path, whole, scored


def test_it_gives_back_what_was_stored_for_any_rows_in_any_order(stored):
    folder, whole, scored = stored
    found = bank.read(folder, bank.identity(TOKENIZER, MODELS, 1.0), "data.bank")
    found.check(pairs(), "data.bank")
    some = whole.rows(torch.tensor([4, 1, 0]))
    filled = found.fill(replace(some, group=torch.tensor([0, 1, 2])))
    for name, values in scored.items():
        expected = torch.where(some.mask, values[[4, 1, 0]], 0.0)
        assert torch.equal(getattr(filled, name)[some.mask], expected[some.mask])
        assert getattr(filled, name).dtype == torch.float32


@pytest.mark.parametrize(
    "what, change",
    [
        ("temperature", dict(temperature=0.7)),
        ("guide", dict(models={**MODELS, "guide": "another"})),
        ("policy's base", dict(models={**MODELS, "policy's base": "another"})),
        ("template", dict(template="{{ messages }}")),
    ],
)
def test_what_it_was_made_by_must_be_the_same(what, change, stored):
    tokenizer = tiny_model.tokenizer()
    tokenizer.chat_template = change.get("template", tokenizer.chat_template)
    identity_now = bank.identity(tokenizer, change.get("models", MODELS), change.get("temperature", 1.0))
    with pytest.raises(DataError, match=f"data.bank: .* does not fit: the {what} is another one now.*annotate again"):
        bank.read(stored[0], identity_now, "data.bank")


def test_another_tokenizer_is_refused(stored):
    tokenizer = tiny_model.tokenizer()
    tokenizer.add_tokens(["new"])
    with pytest.raises(DataError, match="the tokenizer is another one now"):
        bank.read(stored[0], bank.identity(tokenizer, MODELS, 1.0), "data.bank")


def test_pairs_that_it_does_not_know_are_refused(stored):
    found = bank.read(stored[0], bank.identity(TOKENIZER, MODELS, 1.0), "data.bank")
    with pytest.raises(DataError, match="data.bank: the tokens of pair 3 are not all in it.*annotate again: 'p3'"):
        found.check(pairs(4), "data.bank")
    cut = [replace(pairs()[0], chosen=Answer([7, 0], "a", True))]
    with pytest.raises(DataError, match="tokens of pair 0"):
        found.check(cut, "data.bank")


def test_a_missing_bank_says_how_to_make_one(tmp_path):
    with pytest.raises(DataError, match="data.bank: .* holds no bank; make it with: python -m align annotate"):
        bank.read(tmp_path, {}, "data.bank")


def read(folder):
    return bank.read(folder, bank.identity(TOKENIZER, MODELS, 1.0), "data.bank")


DAMAGED = "data.bank: .*(is not as it was written|cannot be read|does not fit|is no bank).*annotate again"


def test_any_flipped_bit_is_found(stored):
    path, draw = stored[0] / bank.FILE, random.Random(0)
    whole = path.read_bytes()
    for at in [*range(0, len(whole), 7), *(draw.randrange(len(whole)) for _ in range(200))]:
        content = bytearray(whole)
        content[at] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        with pytest.raises(DataError, match=DAMAGED):
            read(stored[0])


def change(folder, harm, *, old):
    """Change the tensors of a bank; `old` ones have no checksum."""
    with safe_open(folder / bank.FILE, "pt") as file:
        identity, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if old:
        identity.pop(bank.SUM, None)
    harm(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / bank.FILE, metadata=identity)


def nan(tensors):
    tensors["ref_logprob"][1] = torch.nan


def swapped(tensors):
    tensors["keys"] = tensors["keys"].flip(0)


def longer(tensors):
    tensors["lengths"][0] += 1


def no_keys(tensors):
    del tensors["keys"]


def half(tensors):
    tensors["guide_logprob"] = tensors["guide_logprob"].half()


def moved(tensors):
    tensors["ref_logprob"][1] += 1e-3


@pytest.mark.parametrize("harm", [nan, swapped, longer, no_keys, half, moved])
def test_another_content_is_found(stored, harm):
    change(stored[0], harm, old=False)
    with pytest.raises(DataError, match=DAMAGED):
        read(stored[0])


@pytest.mark.parametrize("harm", [nan, longer, no_keys, half])
def test_a_bank_without_checksum_must_have_the_form_and_finite_numbers(stored, harm):
    change(stored[0], lambda tensors: None, old=True)
    assert len(read(stored[0]).entries) == 6  # of an earlier version
    change(stored[0], harm, old=True)
    with pytest.raises(DataError, match=DAMAGED):
        read(stored[0])


def test_a_model_that_gives_no_number_makes_no_bank(tmp_path):
    whole = batch(pairs())
    values = torch.full(whole.mask.shape, -1.0)
    values[0, 0] = torch.nan
    with pytest.raises(DataError, match="ref_logprob is not finite on 1 of 15 tokens"):
        bank.write(tmp_path, whole, {"ref_logprob": values}, {})
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file.*cannot be written.*annotate again"):
        bank.write(tmp_path / "file", whole, {"ref_logprob": torch.zeros(whole.mask.shape)}, {})
