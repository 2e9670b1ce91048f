"""Rows of the tables of a vLLM model, without an engine: tables with weights that are given."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from align.ops import directions
from align.rollout import tables


@pytest.fixture
def make(monkeypatch):
    """A model with an embedding, and a head where one is given; every process has half of the rows."""
    import vllm.distributed
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    monkeypatch.setattr(
        vllm.distributed, "tensor_model_parallel_all_gather", lambda part, dim: torch.cat([part, part], dim)
    )

    def table(kind, weight):
        found = kind.__new__(kind)
        nn.Module.__init__(found)
        found.weight = nn.Parameter(weight)
        found.quant_method = SimpleNamespace(apply=lambda layer, x: x @ layer.weight.T)
        return found

    def model(embedding, head=None):
        found = nn.Module()
        found.head = table(ParallelLMHead, head) if head is not None else None  # before the embedding
        found.embedding = table(VocabParallelEmbedding, embedding)
        return found

    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_read_along_the_trainers_directions(make, dtype):
    embedding, head = torch.randn(6, 16).to(dtype), torch.randn(6, 16).to(dtype)
    found = tables.read(make(embedding, head))
    for name, weight in (("embedding", embedding), ("head", head)):
        rows = (weight @ directions(16).to(weight)).float()
        assert found[name].shape == (12, 8) and found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], torch.cat([rows, rows]), rtol=2e-2, atol=2e-2)


def test_a_tied_head_is_the_embedding(make):
    found = tables.read(make(torch.randn(6, 16)))
    torch.testing.assert_close(found["head"], found["embedding"])


def test_a_row_that_is_another_shows(make):
    embedding, head = torch.randn(6, 16), torch.randn(6, 16)
    before = tables.read(make(embedding, head))
    head[4, 3] += 1
    after = tables.read(make(embedding, head))
    assert torch.equal(before["embedding"], after["embedding"])
    assert [*(before["head"] != after["head"]).any(1)[:6]] == [False, False, False, False, True, False]
