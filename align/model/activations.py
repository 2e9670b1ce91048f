"""MaPO's masks (arXiv 2410.05102): how strongly the reference's layers react at the prefix of each token.

Activations are recorded by hooks on modules to which the decoders of transformers give the same names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from align.model.layouts import Inputs

Activations = dict[str, list[Tensor]]  # {kind: one [R,S] a recorded tensor, the mean over its features}


@contextmanager
def recorded(causal: nn.Module) -> Iterator[Activations]:
    """Record the activations of one forward pass of the decoder inside the block.

    Kinds are as in the official code: `mlp` behind the activation function; `attn` queries, keys, values and
    attention's output before its projection; `resid` the residual stream and what is added to it, seven a layer, with
    the embeddings and the final norm. Queries and keys behind the rotary embedding are not recorded, for they are no
    module's output. Raises `ValueError` for a decoder whose layers are named otherwise.
    """
    out: Activations = {"mlp": [], "attn": [], "resid": []}
    decoder = causal.get_decoder()

    def keep(kind: str, tensor: Tensor) -> None:
        out[kind].append(tensor.mean(-1))

    def output_of(module: nn.Module, kind: str):
        return module.register_forward_hook(
            lambda m, args, result: keep(kind, result[0] if isinstance(result, tuple) else result)
        )

    def input_of(module: nn.Module, kind: str):
        return module.register_forward_pre_hook(
            lambda m, args, kwargs: keep(kind, args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )

    handles = []
    try:
        for layer in decoder.layers:
            attention, mlp = layer.self_attn, layer.mlp
            handles += [output_of(getattr(attention, name), "attn") for name in ("q_proj", "k_proj", "v_proj")]
            handles += [input_of(attention.o_proj, "attn"), output_of(mlp.act_fn, "mlp")]
            norms = (layer.input_layernorm, layer.post_attention_layernorm)
            handles += [hook for norm in norms for hook in (input_of(norm, "resid"), output_of(norm, "resid"))]
            handles += [output_of(part, "resid") for part in (attention, mlp, layer)]
        handles += [output_of(part, "resid") for part in (decoder.embed_tokens, decoder.norm)]
    except AttributeError as error:
        what = f"the activations of {type(decoder).__name__} are not where they are looked for"
        raise ValueError(f"{what}: {error}") from error
    try:
        yield out
    finally:
        for handle in handles:
            handle.remove()


def activation_mask(activations: Activations, logit_mean_RN: Tensor, inputs: Inputs) -> Tensor:
    """[R,N] in [0, 1]: each recorded tensor stretched to [0, 1] over the tokens of a response, then the mean over
    the tensors of a kind, then over the kinds.

    A tensor that is the same on all tokens of a response, or a response of one token, gives 1/2. The official z-norm
    before the stretching changes nothing but rounding and is left out.
    """
    at = inputs.predict_at.to(logit_mean_RN.device)
    kinds = {kind: torch.stack(tensors)[:, :, at] for kind, tensors in activations.items()}
    kinds["logits"] = logit_mean_RN[None]
    index, row = inputs.logit_index.to(at.device), inputs.row.to(at.device)
    mask_K = torch.stack([_stretched(t.flatten(1)[:, index].float(), row).mean(0) for t in kinds.values()]).mean(0)
    out = torch.zeros(logit_mean_RN.numel(), dtype=mask_K.dtype, device=mask_K.device)
    return out.index_put((index,), mask_K).view(logit_mean_RN.shape)


def _stretched(value_AK: Tensor, row_K: Tensor) -> Tensor:
    """[A,K]: (value - min) / (max - min) over the tokens of each row; 1/2 where they are equal."""
    rows = int(row_K.max()) + 1 if len(row_K) else 0
    index = row_K.expand_as(value_AK)
    low = value_AK.new_full((len(value_AK), rows), torch.inf).scatter_reduce(1, index, value_AK, "amin")
    high = value_AK.new_full((len(value_AK), rows), -torch.inf).scatter_reduce(1, index, value_AK, "amax")
    low, spread = low.gather(1, index), (high - low).gather(1, index)
    return torch.where(spread > 0, (value_AK - low) / spread.where(spread > 0, 1.0), 0.5)
