"""Hidden states of a model that is not there, for modules beside the policy."""

from types import SimpleNamespace

import torch


def config(layers=4, width=64):
    text = SimpleNamespace(num_hidden_layers=layers, hidden_size=width)
    return SimpleNamespace(get_text_config=lambda: text)


def states(layers=4, width=64, rows=3, tokens=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(layers, rows, tokens, width, generator=generator))
