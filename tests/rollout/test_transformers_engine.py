"""The transformers engine on a tiny model."""

import math

import torch
from support import tiny_model

from align.batch import Batch
from align.config.sampling_keys import Sampling
from align.model import layouts
from align.model.cut import Cut
from align.model.load import load_model
from align.model.policy import Policy
from align.rollout.generator import asked
from align.rollout.seeds import Seeds
from align.rollout.transformers_engine import Transformers

ONE = Seeds(1, ())


def test_the_transformers_engine_reports_the_distribution_it_samples_from(folder):
    """Whatever the model's own generation settings say."""
    model = load_model(folder, "float32")
    model.generation_config.update(repetition_penalty=3.0, top_k=2, temperature=0.3, do_sample=True)
    own = model.generation_config
    engine = Transformers(model, [own.eos_token_id], own.pad_token_id)
    prompt = list(range(5, 15))
    settings = {"n": 3, "temperature": 0.8, "max_tokens": 9, "seeds": ONE}
    responses = [r for rows in engine.generate([prompt, prompt[:4]], **settings) for r in rows]
    assert len(responses) == 6 and model.generation_config is own
    for response, given in zip(responses, [prompt] * 3 + [prompt[:4]] * 3, strict=True):
        logits = model(torch.tensor([[*given, *response.ids]])).logits[0] / 0.8
        steps = logits.log_softmax(-1)[len(given) - 1 : -1]
        expected = steps.gather(-1, torch.tensor(response.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(response.logprobs), expected, atol=1e-4, rtol=1e-4)
        assert response.truncated == (response.ids[-1] != own.eos_token_id)
    again = engine.generate([prompt, prompt[:4]], **settings)
    assert [r for rows in again for r in rows] == responses


def test_greedy_is_one_response_the_likeliest_token_each_time(folder):
    model = load_model(folder, "float32")
    engine = Transformers(model, [model.generation_config.eos_token_id], 0)
    ((response,),) = engine.generate([[5, 6, 7]], n=1, temperature=0.0, max_tokens=6, seeds=ONE)
    logits = model(torch.tensor([[5, 6, 7, *response.ids]])).logits[0, 2:-1]
    assert response.ids == logits.argmax(-1).tolist()


def test_a_cut_support_is_sampled_from_and_reported(folder):
    """The log-probabilities are those that the trainer computes of the same tokens over the same support."""
    model = load_model(folder, "float32")
    sampling = Sampling(top_p=0.9, top_k=12, min_p=0.01)
    engine, cut = Transformers(model, [97], 97, sampling), Cut(0.9, 12, 0.01)
    prompts = [list(range(5, 15)), [3, 4]]
    found = engine.generate(prompts, n=8, temperature=0.8, max_tokens=6, seeds=ONE)
    batch = Batch.of(
        [i for i, group in enumerate(found) for _ in group],
        [response.ids for group in found for response in group],
        prompt_ids=[prompt for prompt, group in zip(prompts, found, strict=True) for _ in group],
    )
    inputs = layouts.padded.inputs(batch, batch.mask)
    policy = Policy(model, 0.8, cut=cut)
    trainer = inputs.scatter(policy(inputs, ("logprob",))["logprob"], batch.mask.shape)[batch.mask]
    sampled = torch.tensor([logprob for group in found for response in group for logprob in response.logprobs])
    torch.testing.assert_close(trainer, sampled, rtol=1e-4, atol=1e-4)
    assert engine.settings == asked(sampling, 0.8, 6) and engine.settings["top_p"] == 0.9
    said = engine.logprobs(prompts[0], temperature=0.8)
    assert 1 <= sum(math.isfinite(value) for value in said.following.values()) <= 12
    engine.generate(prompts, n=1, temperature=0.0, max_tokens=2, seeds=ONE)
    assert engine.settings == asked(sampling, 0.0, 2) == {"temperature": 0.0, "max_tokens": 2}


def test_a_text_ends_a_response_which_keeps_it(folder):
    model, tokens = load_model(folder, "float32"), tiny_model.tokenizer()
    prompts = [list(range(5, 15)), [3, 4]]
    settings = {"n": 6, "temperature": 1.0, "max_tokens": 12, "seeds": ONE}
    whole = [r for rows in Transformers(model, [97], 97).generate(prompts, **settings) for r in rows]
    texts = [tokens.decode(response.ids) for response in whole]
    stop = [texts[0][2:4], texts[1][3]]
    engine = Transformers(model, [97], 97, Sampling(stop=stop), tokens)
    cut = [r for rows in engine.generate(prompts, **settings) for r in rows]
    assert not cut[0].truncated and len(cut[0].ids) < len(whole[0].ids)
    for response in cut:
        text = tokens.decode(response.ids)
        assert any(text.endswith(end) for end in stop) or not any(end in text for end in stop)
        assert not any(end in tokens.decode(response.ids[:-1]) for end in stop)
        ended = response.ids[-1] == 97 or any(text.endswith(end) for end in stop)
        assert response.truncated != ended
        assert len(response.logprobs) == len(response.ids)
    assert engine.settings == asked(Sampling(stop=stop), 1.0, 12)


def test_settings_that_the_model_brings_along_are_told(folder):
    model = load_model(folder, "float32")
    model.generation_config.update(do_sample=True, top_k=80, typical_p=0.9, repetition_penalty=1.01)
    engine = Transformers(model, [97], 97)
    engine.logprobs([1, 2, 3], temperature=1.0)
    assert engine.settings == asked(Sampling(), 1.0, 1)
    engine._plain = model.generation_config
    engine.logprobs([1, 2, 3], temperature=1.0)
    assert {"top_k", "typical_p", "repetition_penalty"} <= set(engine.settings)


def test_rows_are_scored_as_the_model_says_them(folder):
    model, rows = load_model(folder, "float32"), [[5, 6, 7, 8], [9, 10]]
    for ids, found in zip(rows, Transformers(model, [97], 97).score(rows), strict=True):
        expected = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])
        torch.testing.assert_close(torch.tensor(found), expected[:, 0], atol=1e-5, rtol=1e-4)
