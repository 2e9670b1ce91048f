"""The tiny model that tests with real engines load."""

from hypothesis import given
from hypothesis import strategies as st

from align.model.load import context_length, load_config, load_model, load_tokenizer
from support import tiny_model
from support.rows import TOKENIZER


@given(text=st.text(st.sampled_from(tiny_model.CHARACTERS)))
def test_the_tiny_tokenizer_gives_text_back(text):
    ids = TOKENIZER(text)["input_ids"]
    assert len(ids) == len(text) and TOKENIZER.decode(ids) == text
    ended = TOKENIZER.decode([*ids, TOKENIZER.eos_token_id], skip_special_tokens=True)
    assert ended == text and TOKENIZER.eos_token_id == TOKENIZER.pad_token_id


def test_the_tiny_model(tmp_path):
    first, second = tiny_model.save_model(tmp_path / "a"), tiny_model.save_model(tmp_path / "b")
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    tokenizer, model = load_tokenizer(str(first)), load_model(str(first), "float32")
    assert tokenizer(tokenizer.decode([5, 96, 97]))["input_ids"] == [5, 96, 97] and tokenizer.chat_template
    assert (type(model).__name__, context_length(load_config(str(first)))) == ("LlamaForCausalLM", 256)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.lm_head.weight is model.get_input_embeddings().weight and model.lm_head.weight[97].abs().sum() > 0
    logits = model(input_ids=model.dummy_inputs["input_ids"]).logits
    assert logits.shape[-1] == 128 and 1 < float(logits.detach().std()) < 4  # neither flat nor certain
