"""Models and guides whose files say what cannot be loaded, in the form of the cases of `support.broken.files`."""

import shutil

from safetensors.torch import load_file, save_file

from support.broken.corpus import AT, Bench
from support.broken.files import POLICY, guided


def renamed(change, file: str = "model/model.safetensors"):
    """Every weight under another name."""

    def broken(bench: Bench):
        tensors = {change(name): tensor for name, tensor in load_file(bench.root / file).items()}
        save_file(tensors, bench.root / file, metadata={"format": "pt"})

    return broken


def config(name: str = "model/config.json", **changes):
    return lambda bench: bench.file(name, **changes)


def text_of(name: str, text: str):
    return lambda bench: bench.write(name, text)


MODEL_FILES = [
    (
        "guide that rewrites the base",
        guided(lambda bench: bench.file("guide/adapter_config.json", init_lora_weights="pissa")),
        AT + r"model\.guide: guide: init_lora_weights: 'pissa'",
        "policy and reference share; save it as a plain LoRA adapter",
    ),
    (
        "guide with weights of no layer",
        guided(renamed(lambda name: name.replace("q_proj", "query"), "guide/adapter_model.safetensors")),
        AT + r"model\.guide: guide: .*q_proj.*other names, such as .*query",
        "save it again",
    ),
    *(
        (
            f"quantised: {key} {value}",
            config(**{key: value}),
            POLICY + rf"model/config\.json: {inside}: its weights are quantised \({method}\)",
            "name the model that they were made of",
        )
        for key, value, inside, method in (
            ("quantization_config", {"quant_method": "gptq", "bits": 4}, "quantization_config", "gptq"),
            ("quantization_config", {"quant_method": "awq", "bits": 4}, "quantization_config", "awq"),
            ("quantization_config", {"load_in_4bit": True}, "quantization_config", "quantization_config"),
            ("quantization_config", "gptq", "quantization_config", "quantization_config"),
            ("compression_config", {"quant_method": "compressed-tensors"}, "compression_config", "compressed-tensors"),
            ("quantization", {"group_size": 64, "bits": 4}, "quantization", "quantization"),
            ("text_config", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config", "fp8"),
        )
    ),
    *(
        (
            f"kernel of the hub: {key} {value}",
            config(**{key: value}),
            POLICY + rf"model/config\.json: {inside}: .*kernel that would be fetched from the hub",
            "take the key out, or write sdpa",
        )
        for key, value, inside in (
            ("attn_implementation", "kernels-community/flash-attn", "attn_implementation"),
            ("_attn_implementation", "user/kernel@v1:sub", "_attn_implementation"),
            ("_attn_implementation", {"": "user/kernel"}, "_attn_implementation"),
            ("experts_implementation", "user/kernel", "experts_implementation"),
            ("attn_implementation", "flash_attention_2", "attn_implementation"),
            ("attn_implementation", "paged|flash_attention_3", "attn_implementation"),
            ("text_config", {"attn_implementation": "user/kernel"}, "attn_implementation"),
        )
    ),
    (
        "adapter beside the model",
        lambda bench: shutil.copy(bench.root / "guide/adapter_config.json", bench.root / "model"),
        POLICY + "model: has an adapter beside the model",
        "move adapter_config.json elsewhere",
    ),
    (
        "prefixed weights",
        renamed("module.{}".format),
        POLICY + r"model: \d+ of \d+ weights are missing.*other names, such as module\.",
        "copy or save it again",
    ),
    (
        "weights of a compiled model",
        renamed(lambda name: name.replace("model.", "model._orig_mod.", 1)),
        POLICY + "model: .* weights are missing.*other names, such as model._orig_mod",
        "copy or save it again",
    ),
    *(
        (f"config.json: {change}", config(**change), POLICY + place, fix)
        for change, place, fix in (
            ({"hidden_size": "128"}, "model: no model configuration .*'hidden_size' expected int, got str", "'128'"),
            ({"vocab_size": "128"}, "model: no model configuration .*'vocab_size' expected int", "'128'"),
            ({"num_hidden_layers": "x"}, "model: no model configuration .*'num_hidden_layers' expected int", "'x'"),
            ({"num_hidden_layers": 0}, r"model/config\.json: num_hidden_layers", "whole number above 0, but is 0"),
            ({"num_hidden_layers": -1}, r"model/config\.json: num_hidden_layers", "whole number above 0, but is -1"),
            ({"num_hidden_layers": 10**30}, "model: its configuration has 1000", "weights and configuration of one"),
            ({"max_position_embeddings": -1}, r"model/config\.json: max_position_embeddings", "above 0, but is -1"),
            (
                {"max_position_embeddings": "256"},
                "model: no model configuration .*'max_position_embeddings' expected int",
                "'256'",
            ),
            ({"vocab_size": 10**30}, "model: its config.json makes no causal language model", "copy it again"),
            ({"hidden_act": "nope"}, "model: its config.json makes no causal language model", "nope"),
            ({"model_type": ["llama"]}, r"model/config\.json: model_type: must be a name", "copy the model again"),
            ({"layer_types": 5}, "model: no model configuration could be loaded", "iterable"),
            ({"attn_implementation": 5}, r"model/config\.json: attn_implementation: must be a name", "such as sdpa"),
            ({"text_config": "x"}, r"model/config\.json: its part for text", "must be a mapping"),
            ({"rms_norm_eps": float("nan")}, r"model/config\.json: is not JSON: NaN", "copy the model again"),
            ({"transformers_weights": "../x"}, r"model/config\.json: transformers_weights", "take the key out"),
        )
    ),
    *(
        (f"eos_token_id in generation_config.json: {value}", change, POLICY + place, fix)
        for value, place, fix in (
            (-1, r"model/generation_config\.json: eos_token_id", "id of a token or a list of them, but is -1"),
            ("97", r"model/generation_config\.json: eos_token_id", "but is '97'"),
            ([97, -1], r"model/generation_config\.json: eos_token_id", "but is -1"),
            ([97, 2.5], r"model/generation_config\.json: eos_token_id", "but is 2.5"),
            (10**30, "model: the tokenizer has token 1000", "resize the embedding"),
        )
        for change in [config("model/generation_config.json", eos_token_id=value)]
    ),
    (
        "no generation config and a negative end",
        lambda bench: (bench.remove("model/generation_config.json"), bench.file("model/config.json", eos_token_id=-2)),
        POLICY + r"model/config\.json: eos_token_id",
        "but is -2",
    ),
    *(
        (f"{name}: {text[:12]}", text_of(f"model/{name}", text), POLICY + rf"model.*{name}.*", fix)
        for name, text, fix in (
            ("config.json", "[]", "must be a mapping of keys.*copy the model again"),
            ("config.json", "null", "must be a mapping of keys"),
            ("config.json", "[" * 100_000, "is not JSON.*copy the model again"),
            ("generation_config.json", "{", "copy it again"),
            ("generation_config.json", "[]", "copy it again"),
        )
    ),
    (
        "broken index",
        text_of("model/model.safetensors.index.json", "[]"),
        POLICY + r"model/model\.safetensors\.index\.json: is no index of weights",
        "copy the model again",
    ),
]
