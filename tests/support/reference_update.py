"""The update by plain autograd: one unpadded row at a time, whole logits, separate models."""

from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import pad

from align.check.requirements import head_specs
from align.config.model_keys import Adapter
from align.credit import assign
from align.losses import Current
from align.model.activations import recorded
from align.model.adapters import add_adapter
from align.model.load import load_model
from align.model.policy import Policy
from support import ragged_batches


@dataclass
class TrainerLogprobs:
    """What one model says about a row of n tokens."""

    hidden: list[Tensor]  # [n,D] of each layer, at the prefix of each token
    logprobs: Tensor  # [n,V]
    ids: Tensor  # [n]

    @property
    def logprob(self):
        return self.logprobs.gather(-1, self.ids[:, None])[:, 0]


def says(model: nn.Module, batch) -> list[TrainerLogprobs]:
    out = []
    for i, prompt in enumerate(batch.prompt_ids):
        ids = batch.response_ids[i, : int(batch.size[i])]
        found = model(torch.tensor([[*prompt, *ids.tolist()]]), output_hidden_states=True)
        at = slice(len(prompt) - 1, len(prompt) - 1 + len(ids))
        logprobs = (found.logits[0, at].float() / 0.7).log_softmax(-1)
        out.append(TrainerLogprobs([layer[0, at] for layer in found.hidden_states[1:]], logprobs, ids))
    return out


def mapo_mask(model: nn.Module, batch) -> list[Tensor]:
    """Spread to [0, 1] tensor by tensor, in loops."""
    out = []
    for i, prompt in enumerate(batch.prompt_ids):
        ids = batch.response_ids[i, : int(batch.size[i])].tolist()
        with recorded(model) as kinds:
            logits = model(torch.tensor([[*prompt, *ids]])).logits
        at = slice(len(prompt) - 1, len(prompt) - 1 + len(ids))
        kinds = {**kinds, "logits": [logits.float().mean(-1)]}
        own, means = batch.mask[i, : len(ids)], []
        for tensors in kinds.values():
            spread = []
            for tensor in tensors:
                value = tensor[0, at][own]
                flat = len(value) < 2 or value.max() == value.min()
                spread.append(
                    torch.full_like(value, 0.5) if flat else (value - value.min()) / (value.max() - value.min())
                )
            means.append(sum(spread) / len(spread))
        out.append(torch.zeros(len(ids)).masked_scatter(own, sum(means) / len(means)))
    return out


def padded(rows: list[Tensor], batch) -> Tensor:
    return torch.stack([pad(row, (0, batch.mask.shape[1] - len(row))) for row in rows])


def updated(folder, guide_folder, kind, family) -> dict[str, Tensor]:
    """Trained weights after the family's updates with SGD at 0.1, with losses and gradient norms."""
    updates = ragged_batches.FAMILIES[family]()
    torch.manual_seed(0)
    model = load_model(str(folder), "float32")
    if kind == "lora":
        torch.manual_seed(0)
        model = add_adapter(model, Adapter(rank=4, alpha=8), str(folder))
    else:
        torch.manual_seed(0)
    policy = Policy(model, 0.7, head_specs(objective for update in updates for objective in update))
    reference = load_model(str(folder), "float32")
    guide = PeftModel.from_pretrained(load_model(str(folder), "float32"), guide_folder).merge_and_unload()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    heads = dict(policy.heads.named_parameters())
    rate = ragged_batches.RATES.get(family, 0.1)
    rates = {**dict.fromkeys(trained, rate), **dict.fromkeys(heads, 0.05 if family == "value" else rate)}
    decayed = [name for name in heads if family == "masks" and ".norm." not in name and not name.endswith("bias")]
    decay = {name: 0.01 if name in decayed else 0.0 for name in rates}
    out = {}
    for i, objectives in enumerate(updates):
        batch = ragged_batches.batch()
        with torch.no_grad():
            now, ref = says(model, batch), says(reference, batch)
            known = {
                "old_logprob": batch.sampler_logprob,
                "ref_logprob": padded([row.logprob for row in ref], batch),
                "guide_logprob": padded([row.logprob for row in says(guide, batch)], batch),
                "entropy": padded([-(row.logprobs.exp() * row.logprobs).sum(-1) for row in now], batch),
            }
            known["reward_mask"] = known["kl_mask"] = padded(mapo_mask(reference, batch), batch)
            if family == "policy":
                known["old_logprob"] = padded([row.logprob for row in now], batch)
            if "value" in policy.heads:
                known["value"] = padded([policy.heads["value"](row.hidden)["value"] for row in now], batch)
        batch = replace(batch, **known)
        now = says(model, batch)
        current = Current(padded([row.logprob for row in now], batch), padded([entropy(row) for row in now], batch))
        kl = [(r.logprobs.exp() * (r.logprobs - p.logprobs)).sum(-1) for p, r in zip(now, ref, strict=True)]
        current = replace(current, ref_kl=padded(kl, batch))
        for name, rows in (("value", now), ("masks", ref)):
            if name in policy.heads:
                found = [policy.heads[name](row.hidden) for row in rows]
                current = replace(current, **{q: padded([row[q] for row in found], batch) for q in found[0]})
        credits = [assign(objective, batch, lambda batch, names, rows, reader: batch) for objective in objectives]
        loss = sum(term.contribution(current, credited.batch) for credited in credits for term in credited.terms)
        parameters = {**trained, **heads}
        gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        out[f"loss_{i}"] = loss.detach()
        out[f"norm_{i}"] = torch.nn.utils.get_total_norm(list(gradients.values()))
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter -= rates[name] * (gradients[name] + decay[name] * parameter)
    return {**out, **{name: p.detach() for name, p in {**trained, **heads}.items()}}


def entropy(row: TrainerLogprobs) -> Tensor:
    return -(row.logprobs.exp() * row.logprobs).sum(-1)
