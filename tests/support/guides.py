"""Adapters that must not be a guide: each changes the base that it is put over, or answers in ways of its own."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from align.model.load import load_model

# name: what its configuration says
CONFIGS = {
    "pissa": {"init_lora_weights": "pissa"},
    "pissa by iteration": {"init_lora_weights": "pissa_niter_4"},
    "PiSSA in capitals": {"init_lora_weights": "PISSA"},
    "olora": {"init_lora_weights": "olora"},
    "corda": {"init_lora_weights": "corda"},
    "loftq": {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}},
    "lora_ga": {"init_lora_weights": "lora_ga"},
    "something new": {"init_lora_weights": "rewrites_the_base"},
    "a number": {"init_lora_weights": 2},
    "a list": {"init_lora_weights": ["pissa"]},
    "biases": {"bias": "all"},
    "biases of its layers": {"bias": "lora_only"},
    "whole modules": {"modules_to_save": ["norm"]},
    "tokens": {"trainable_token_indices": [3, 4]},
    "tokens of a layer": {"trainable_token_indices": {"embed_tokens": [3]}},
    "layers twice": {"layer_replication": [[0, 2], [1, 2]]},
    "parameters": {"target_parameters": ["self_attn.q_proj.weight"]},
    "after a word": {"alora_invocation_tokens": [3]},
    "kasa": {"kasa_config": {}},
    "megatron": {"megatron_config": {"a": 1}},
}

WEIGHTS = {
    "embeddings": "base_model.model.model.embed_tokens.weight",
    "a head": "base_model.model.lm_head.weight",
    "a norm": "base_model.model.model.norm.weight",
    "the layer below an adapter": "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
}

HARMLESS = {
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "not drawn": {"init_lora_weights": False},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "with biases of its own": {"lora_bias": True},
    "dropout": {"lora_dropout": 0.5},
    "other ranks": {"rank_pattern": {"v_proj": 4}},
    "one layer": {"layers_to_transform": [1]},
}


def save(base: str, out: Path, says: dict | None = None, more: dict[str, torch.Tensor] | None = None, **made) -> str:
    """Save a random adapter over `base`; `says` changes its configuration, `more` adds weights to its file."""
    torch.manual_seed(1)
    config = LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **made})
    model = get_peft_model(load_model(base, "float32"), config)
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(out)
    written = json.loads((out / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps(written | (says or {})))
    if more:
        file = out / "adapter_model.safetensors"
        save_file(load_file(file) | more, file, metadata={"format": "pt"})
    return str(out)
