"""Masks from activations."""

from collections import Counter

import pytest
import torch
import transformers
from support.policy_rows import rows, said

from align.check.requirements import check_activations
from align.model import layouts
from align.model.activations import recorded
from align.model.locate import ModelError


@pytest.mark.parametrize("layout", [layouts.padded, layouts.shared_prefix], ids=lambda layout: layout.name)
def test_masks_from_activations_span_0_to_1_and_one_token_says_nothing(model, layout):
    batch = rows()
    alone = [said(model, ("activation_mask",), batch=batch.rows(torch.tensor([i]))) for i in range(4)]
    found = said(model, ("activation_mask",), layout)["activation_mask"]
    for i, length in enumerate(batch.length.tolist()):
        torch.testing.assert_close(found[i, :length], alone[i]["activation_mask"][0, :length], rtol=1e-4, atol=1e-5)
        assert (found[i, :length] >= 0).all() and (found[i, :length] <= 1).all()
    assert found[2, 0] == 0.5 and found[0].std() > 0.01
    assert not found[~batch.mask].any()


SIZE = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, bos_token_id=1, eos_token_id=2)
LLAMA = SIZE | dict(intermediate_size=48, num_key_value_heads=1, pad_token_id=0)
NEOX = SIZE | dict(intermediate_size=48)


def made(name, **config):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**config)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # norms that do something
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def sequential(h, a, m, norms):
    return {"norm 1": norms[0](h), "delta": a, "between": h + a, "norm 2": norms[1](h + a), "mlp": m, "out": h + a + m}


def parallel(h, a, m, norms):
    return {"norm 1": norms[0](h), "delta": a, "norm 2": norms[1](h), "mlp": m, "out": h + a + m}


def gpt(h, a, m, norms):
    """The official `delta_attn` holds the stream behind attention."""
    return {name: value for name, value in sequential(h, a, m, norms).items() if name != "delta"}


def gptj(h, a, m, norms):
    return {"norm 1": norms[0](h), "delta": a, "mlp": m, "out": h + a + m}


OFFICIAL = {  # model, residual tensors of a layer, kinds with the tensors of a layer
    "gpt_neox": (lambda: made("GPTNeoX", use_parallel_residual=False, **NEOX), sequential, {"attn": 4, "mlp": 1}),
    "gpt_neox parallel": (lambda: made("GPTNeoX", use_parallel_residual=True, **NEOX), parallel, {"attn": 4, "mlp": 1}),
    "gpt2": (lambda: made("GPT2", **SIZE), gpt, {"attn": 4}),
    "gpt_bigcode": (lambda: made("GPTBigCode", **SIZE), gpt, {"attn": 4}),
    "gpt_bigcode, many heads": (lambda: made("GPTBigCode", multi_query=False, **SIZE), gpt, {"attn": 4}),
    "gptj": (lambda: made("GPTJ", rotary_dim=8, **SIZE), gptj, {"attn": 4, "mlp": 1}),
    "llama": (lambda: made("Llama", **LLAMA), sequential, {"attn": 4, "mlp": 1}),
    "qwen3": (lambda: made("Qwen3", head_dim=16, **LLAMA), sequential, {"attn": 4, "mlp": 1}),
    "stablelm": (lambda: made("StableLm", use_parallel_residual=False, **LLAMA), sequential, {"attn": 4, "mlp": 1}),
    "olmo": (lambda: made("Olmo", **LLAMA), sequential, {"attn": 4, "mlp": 1}),
}
IDS = torch.tensor([[5, 6, 7, 8, 9, 20]])


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_tensors_are_the_official_ones_of_each_architecture(name):
    """Every residual tensor, computed here from what the layer got and what attention and MLP made of it."""
    make, of_layer, others = OFFICIAL[name]
    causal = make()
    decoder = causal.get_decoder()
    layers = decoder.layers if hasattr(decoder, "layers") else decoder.h
    seen, first = {}, lambda result: result[0] if isinstance(result, tuple) else result
    for i, layer in enumerate(layers):
        attention = next(getattr(layer, part) for part in ("self_attn", "attention", "attn") if hasattr(layer, part))
        for part, module in (("a", attention), ("m", layer.mlp)):
            module.register_forward_hook(lambda m, args, result, key=(i, part): seen.update({key: first(result)}))
        layer.register_forward_hook(
            lambda m, args, kwargs, result, i=i: (
                seen.update({(i, "h"): args[0] if args else kwargs["hidden_states"], (i, "out"): first(result)})
                and None
            ),
            with_kwargs=True,
        )
    with torch.no_grad(), recorded(causal) as found:
        final = decoder(input_ids=IDS, use_cache=False).last_hidden_state
    expected = [seen[0, "h"], seen[len(layers) - 1, "out"] if name == "gptj" else final]
    with torch.no_grad():
        for i, layer in enumerate(layers):
            norms = [module for part, module in layer.named_children() if "norm" in part or part.startswith("ln_")]
            tensors = of_layer(seen[i, "h"], seen[i, "a"], seen[i, "m"], norms)
            torch.testing.assert_close(tensors["out"], seen[i, "out"], rtol=1e-4, atol=1e-4)
            expected += tensors.values()
    wanted, got = (torch.stack(values).flatten(1) for values in ([e.mean(-1) for e in expected], found["resid"]))
    assert len(got) == len(wanted)
    order = [int((got - row).abs().sum(1).argmin()) for row in wanted]
    repeated = sum(count - 1 for count in Counter(order).values())
    assert repeated == (name == "gptj")  # the official code reads its last layer's output twice
    torch.testing.assert_close(got[order], wanted, rtol=1e-4, atol=1e-4)
    assert {kind: len(found[kind]) for kind in ("attn", "mlp") if found[kind]} == {k: 2 * n for k, n in others.items()}


def test_queries_keys_and_values_of_one_projection_are_told_apart():
    causal = made("GPTNeoX", use_parallel_residual=True, **NEOX)
    seen = []
    layer = causal.get_decoder().layers[0]
    layer.attention.query_key_value.register_forward_hook(lambda m, args, result: seen.append(result))
    with torch.no_grad(), recorded(causal) as found:
        causal(input_ids=IDS)
    for i, tensor in enumerate(found["attn"][:3]):
        one_by_one = [seen[0][..., 48 * head + 16 * i : 48 * head + 16 * (i + 1)] for head in range(2)]
        torch.testing.assert_close(tensor, torch.cat(one_by_one, -1).mean(-1))


@pytest.mark.parametrize("name", ["gpt_neox", "gpt2", "gpt_bigcode", "gptj"])
def test_masks_of_the_official_architectures(name):
    found = said(OFFICIAL[name][0](), ("activation_mask",))["activation_mask"]
    assert (found >= 0).all() and (found <= 1).all() and found[0].std() > 0.01


REFUSED = {
    "Gemma2": LLAMA | dict(head_dim=16),  # has norms behind attention and MLP under the same names
    "BitNet": LLAMA,  # has a norm before the output projection
    "Olmo2": LLAMA,
    "Cohere": LLAMA,
    "Phi3": LLAMA,
    "Mixtral": LLAMA | dict(num_local_experts=2),
    "StableLm": LLAMA | dict(use_parallel_residual=True),
    "Bloom": dict(vocab_size=64, hidden_size=32, n_layer=2, n_head=2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_architectures_are_refused_with_a_way_out(name):
    config = getattr(transformers, f"{name}Config")(**REFUSED[name])
    with torch.device("meta"):
        causal = transformers.AutoModelForCausalLM.from_config(config)
    what = f"mapo: the activations of {config.model_type} are not where they are looked for: .*; take sparsepo"
    with pytest.raises(ModelError, match=what):
        check_activations(causal)
    assert not any(module._forward_hooks for module in causal.modules())
