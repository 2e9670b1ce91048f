"""The transformers engine on a tiny model."""

import torch

from align.model.load import load_model
from align.rollout.transformers_engine import Transformers


def test_the_transformers_engine_reports_the_distribution_it_samples_from(folder):
    """Whatever the model's own generation settings say."""
    model = load_model(folder, "float32")
    model.generation_config.update(repetition_penalty=3.0, top_k=2, temperature=0.3, do_sample=True)
    own = model.generation_config
    engine = Transformers(model, [own.eos_token_id], own.pad_token_id)
    prompt = list(range(5, 15))
    settings = {"n": 3, "temperature": 0.8, "max_tokens": 9, "seed": 1}
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
    ((response,),) = engine.generate([[5, 6, 7]], n=1, temperature=0.0, max_tokens=6, seed=0)
    logits = model(torch.tensor([[5, 6, 7, *response.ids]])).logits[0, 2:-1]
    assert response.ids == logits.argmax(-1).tolist()
