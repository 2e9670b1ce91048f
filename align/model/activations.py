"""MaPO's masks (arXiv 2410.05102): how strongly the reference's layers react at the prefix of each token.

Activations are recorded by hooks on the modules of a decoder, whose names differ between architectures. The official
code knows GPT-NeoX, GPT-2, GPT-BigCode and GPT-J; layers that are built and named as Llama's are read as its sequential
GPT-NeoX.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from align.model.layouts import Inputs

Activations = dict[str, list[Tensor]]  # {kind: one [R,S] a recorded tensor, the mean over its features}

Read = Callable[[Tensor, Tensor], Sequence[Tensor]]  # (first input, output of a module) -> what is recorded, [R,S,...]

Site = tuple[str, nn.Module, Read]  # kind, module, what is recorded of it


@contextmanager
def recorded(causal: nn.Module) -> Iterator[Activations]:
    """Record the activations of one forward pass of the decoder inside the block.

    Kinds and tensors are the official code's: `mlp` behind the activation function; `attn` queries, keys, values and
    attention's output; `resid` the outputs of both norms, of attention, of the MLP and of the layer, and the stream
    between attention and MLP where they follow each other: 6 a layer of Llama and of sequential GPT-NeoX, 5 of
    parallel GPT-NeoX, GPT-2 and GPT-BigCode, 4 of GPT-J; besides, what the first layer gets and what the last norm
    gives. Queries and keys behind the rotary embedding are not recorded, for they are no module's output. Raises
    `ValueError` for a decoder whose layers have other names or parts.
    """
    out: Activations = {"mlp": [], "attn": [], "resid": []}

    def keep(kind: str, read: Read):
        def hook(module: nn.Module, args: tuple, kwargs: dict, result: Tensor | tuple) -> None:
            given = args[0] if args else kwargs["hidden_states"]
            made = result[0] if isinstance(result, tuple) else result
            out[kind].extend(tensor.flatten(2).mean(-1) for tensor in read(given, made))

        return hook

    handles = [
        module.register_forward_hook(keep(kind, read), with_kwargs=True) for kind, module, read in _sites(causal)
    ]
    try:
        yield out
    finally:
        for handle in handles:
            handle.remove()


def _sites(causal: nn.Module) -> list[Site]:
    """What is recorded of this decoder. Raises `ValueError` where that is not known."""
    decoder = causal.get_decoder()
    kind = getattr(getattr(decoder, "config", None), "model_type", type(decoder).__name__)
    sites = {"gpt_neox": _gpt_neox, "gpt2": _gpt2, "gpt_bigcode": _gpt_bigcode, "gptj": _gptj}.get(kind, _llama)
    try:
        found = list(sites(decoder))
        if missing := [name for name, part, _ in found if part is None]:
            raise AttributeError(f"a part of {missing[0]} is missing")
        return found
    except AttributeError as error:
        what = f"the activations of {kind} are not where they are looked for: {error}"
        fix = "take sparsepo, whose masks read any architecture, or a model with the layers of Llama or GPT-NeoX"
        raise ValueError(f"{what}; {fix}") from error


def _given(given: Tensor, made: Tensor) -> tuple[Tensor]:
    return (given,)


def _made(given: Tensor, made: Tensor) -> tuple[Tensor]:
    return (made,)


def _llama(decoder: nn.Module) -> Iterator[Site]:
    for layer in decoder.layers:
        attention, mlp, norm = layer.self_attn, layer.mlp, layer.post_attention_layernorm
        _has_only(layer, "self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
        _has_only(attention, "q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
        yield from (("attn", part, _made) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
        yield from (("attn", attention.o_proj, _given), ("mlp", mlp.act_fn, _made), ("resid", norm, _given))
        yield from (("resid", part, _made) for part in (layer.input_layernorm, norm, attention, mlp, layer))
    yield from (("resid", decoder.layers[0], _given), ("resid", decoder.norm, _made))


def _gpt_neox(decoder: nn.Module) -> Iterator[Site]:
    for layer in decoder.layers:
        attention, norm = layer.attention, layer.post_attention_layernorm
        yield "attn", attention.query_key_value, _of_heads(attention.head_size)
        yield from (("attn", attention.dense, _given), ("mlp", layer.mlp.act, _made))
        yield from (("resid", part, _made) for part in (layer.input_layernorm, norm, attention, layer.mlp, layer))
        if not layer.use_parallel_residual:
            yield "resid", norm, _given
    yield from (("resid", decoder.layers[0], _given), ("resid", decoder.final_layer_norm, _made))


def _gpt2(decoder: nn.Module) -> Iterator[Site]:
    """The official code hands its hooks to attention and not to the MLP, so there is no kind `mlp`."""
    for layer in decoder.h:
        yield "attn", layer.attn.c_attn, _split(3 * [layer.attn.embed_dim])
        yield "attn", layer.attn.c_proj, _given
        yield from _sequential_gpt(layer)
    yield from (("resid", decoder.h[0], _given), ("resid", decoder.ln_f, _made))


def _gpt_bigcode(decoder: nn.Module) -> Iterator[Site]:
    """As of GPT-2; the official code reads attention's output behind its projection."""
    for layer in decoder.h:
        attention = layer.attn
        widths = (attention.embed_dim, attention.kv_dim, attention.kv_dim)
        yield "attn", attention.c_attn, _split(widths) if attention.multi_query else _of_heads(attention.head_dim)
        yield "attn", attention, _made
        yield from _sequential_gpt(layer)
    yield from (("resid", decoder.h[0], _given), ("resid", decoder.ln_f, _made))


def _sequential_gpt(layer: nn.Module) -> Iterator[Site]:
    """Five of a layer: both norms' outputs, the stream between attention and MLP (the official `delta_attn`), the
    MLP's output and the layer's."""
    _has_only(layer, "ln_1", "attn", "ln_2", "mlp")
    yield "resid", layer.ln_2, _given
    yield from (("resid", part, _made) for part in (layer.ln_1, layer.ln_2, layer.mlp, layer))


def _gptj(decoder: nn.Module) -> Iterator[Site]:
    """The official code reads attention's output behind its projection, and the last layer's instead of the norm's."""
    for layer in decoder.h:
        attention = layer.attn
        yield from (("attn", part, _made) for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention))
        yield "mlp", layer.mlp.act, _made
        yield from (("resid", part, _made) for part in (layer.ln_1, attention, layer.mlp, layer))
    yield from (("resid", decoder.h[0], _given), ("resid", decoder.h[-1], _made))


def _split(widths: Sequence[int]) -> Read:
    """Read queries, keys and values of one projection, which holds one behind the other."""
    return lambda given, made: made.split(widths, -1)


def _of_heads(width: int) -> Read:
    """Read queries, keys and values of one projection, which holds the three of each head side by side."""
    return lambda given, made: made.unflatten(-1, (-1, 3, width)).unbind(-2)


def _has_only(module: nn.Module, *names: str) -> None:
    """Raise `AttributeError` where a module has other parts, so that equal names may mean something else."""
    others = {name for name, part in module.named_children() if not isinstance(part, nn.Dropout)} - set(names)
    if others:
        raise AttributeError(f"{type(module).__name__} has {min(others)} too")


def activation_mask(activations: Activations, logit_mean_RN: Tensor, inputs: Inputs) -> Tensor:
    """[R,N] in [0, 1]: each recorded tensor stretched to [0, 1] over the tokens of a response, then the mean over
    the tensors of a kind, then over the kinds.

    A tensor that is the same on all tokens of a response, or a response of one token, gives 1/2. The official z-norm
    before the stretching changes nothing but rounding and is left out.
    """
    at = inputs.predict_at.to(logit_mean_RN.device)
    kinds = {kind: torch.stack(tensors)[:, :, at] for kind, tensors in activations.items() if tensors}
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
