"""The engine's update against plain autograd on one row at a time: ZeRO off, 2 and 3; one and two processes."""

from dataclasses import replace
from pathlib import Path

import pytest
import ragged
import tiny
import torch
from safetensors.torch import load_file

from align import models
from align.config import Adapter
from align.credit import assign
from align.losses import Current
from launch import launch

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny.save_model(folder)
    return folder


def logprobs(model, batch):
    """[B,T], one unpadded row at a time, at temperature 0.7."""
    rows = []
    for i, prompt in enumerate(batch.prompt_ids):
        ids = batch.response_ids[i, : int(batch.length[i])]
        logits = model(torch.tensor([[*prompt, *ids.tolist()]])).logits[0].float() / 0.7
        steps = logits.log_softmax(-1)[len(prompt) - 1 : len(prompt) - 1 + len(ids)]
        row = steps.gather(-1, ids[:, None])[:, 0]
        rows.append(torch.nn.functional.pad(row, (0, batch.mask.shape[1] - len(row))))
    return torch.stack(rows)


def oracle(folder, kind):
    """Trained weights after two updates, with the losses and gradient norms, by autograd alone."""
    model = models.load_model(str(folder), "float32")
    reference = models.load_model(str(folder), "float32")
    if kind == "lora":
        torch.manual_seed(0)
        model = models.add_adapter(model, Adapter(rank=4, alpha=8), "tiny")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    out = {}
    for step in range(2):
        batch = ragged.batch()
        with torch.no_grad():
            batch = replace(batch, old_logprob=batch.sampler_logprob, ref_logprob=logprobs(reference, batch))
        credited = assign(ragged.objective(), batch, lambda batch, names, rows, reader: batch)
        loss = sum(term.share(Current(logprobs(model, batch)), credited.batch) for term in credited.terms)
        gradients = torch.autograd.grad(loss, list(trained.values()))
        out[f"loss_{step}"], out[f"norm_{step}"] = loss.detach(), torch.nn.utils.get_total_norm(gradients)
        with torch.no_grad():
            for parameter, gradient in zip(trained.values(), gradients, strict=True):
                parameter -= 0.1 * gradient
    return {**out, **{name: p.detach() for name, p in trained.items()}}


@pytest.fixture(scope="module", params=["lora", "full"])
def expected(request, folder):
    return request.param, oracle(folder, request.param)


@pytest.mark.parametrize(
    "machine, layout",
    [("cpu", "padded"), ("cpu", "shared_prefix"), ("cpu_zero2", "shared_prefix"), ("cpu_zero3", "padded")],
)
def test_update_is_plain_autograd(machine, layout, folder, expected, tmp_path):
    kind, right = expected
    launch(machine, Path(__file__).parent / "drive_update.py", folder, kind, layout, tmp_path / "out")
    got = load_file(tmp_path / "out")
    start = dict(models.load_model(str(folder), "float32").named_parameters())
    assert set(got) == set(right)
    for name in ("loss_0", "loss_1", "norm_0", "norm_1"):
        assert float(got[name]) == pytest.approx(float(right[name]), rel=1e-4), name
    names = [name for name in right if not name.startswith(("loss", "norm"))]
    error = torch.stack([(got[name] - right[name]).norm() for name in names]).norm()
    if kind == "full":
        moved = torch.stack([(right[name] - start[name]).norm() for name in names]).norm()
    else:
        moved = torch.stack([right[name].norm() for name in names if "lora_B" in name]).norm()  # they start at 0
    assert moved > 0.01 and error < 1e-4 * moved
