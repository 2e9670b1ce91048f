"""A character-level chat tokenizer and a random Llama of 0.3M parameters, made in the process."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

START, END = "<|im_start|>", "<|im_end|>"
CHARACTERS = ["\n", *map(chr, range(32, 127))]  # printable ASCII, and the line break of the template

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; ChatML; pad == eos == <|im_end|>. Characters beyond printable ASCII are dropped."""
    vocabulary = {character: i for i, character in enumerate(CHARACTERS)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(START, special=True), AddedToken(END, special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=END,
        extra_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


def save_model(folder: str | Path, hidden_size: int = 128, tied: bool = True) -> Path:
    """Save a tiny Llama with this tokenizer to `folder`: always the same weights, and no flat logits.

    The configuration names no pad token: torch would keep that row of the embedding at 0, and it is the end token's.
    """
    return _save(folder, LlamaForCausalLM, LlamaConfig, hidden_size=hidden_size, tie_word_embeddings=tied)


def save_guide(folder: str | Path, out: str | Path) -> Path:
    """Save a random adapter over the model at `folder` to `out`; it changes what the model says."""
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        guide = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
        for name, parameter in guide.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    guide.peft_config["default"].base_model_name_or_path = str(folder)
    guide.save_pretrained(out)
    return Path(out)


def save_mixture(folder: str | Path) -> Path:
    """Save a tiny Qwen3 mixture of four experts with this tokenizer to `folder`; two of them see each token."""
    experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, norm_topk_prob=True)
    sizes = dict(hidden_size=128, tie_word_embeddings=False, **experts)
    return _save(folder, Qwen3MoeForCausalLM, Qwen3MoeConfig, **sizes)


def _save(folder: str | Path, model: type, config: type, **sizes) -> Path:
    """Save a random model of two layers with this tokenizer to `folder`."""
    tokens = tokenizer()
    made = config(
        vocab_size=-(-len(tokens) // 64) * 64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokens.eos_token_id,
        dtype="float32",
        **sizes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random = model(made)
    random.generation_config = GenerationConfig(eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id)
    random.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return Path(folder)
