"""Stand-ins for what the recipes of real use read from the hub: rows with exactly the columns of each data set, and a
model of Qwen3-8B's configuration without weights.

The columns are those of the data sets' own cards: open-r1/DAPO-Math-17k-Processed (configuration `en`, whose `solution`
is the final answer alone), HuggingFaceH4/MATH-500, HuggingFaceH4/ultrafeedback_binarized.
"""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset

from support import shapes, tiny_model

# a part of Qwen3's template: an empty thought where it shall not think
THINKING = (
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)


def dapo(count: int = 80) -> list[dict]:
    return [
        {
            "prompt": f"What is {i} + 1?" + " Think." * (130 if i == 0 else 0),  # one as long as it may be, nearly
            "solution": str(i + 1),
            "data_source": "math_dapo",
            "source_prompt": [{"role": "user", "content": f"Solve the following math problem: {i} + 1"}],
            "ability": "MATH",
            "reward_model": {"ground_truth": str(i + 1), "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": f"{i:08x}"},
        }
        for i in range(count)
    ]


def math_500(count: int = 20) -> list[dict]:
    return [
        {
            "problem": f"What is {i} + 2?",
            "solution": f"It is $\\boxed{{{i + 2}}}$.",
            "answer": str(i + 2),
            "subject": "Prealgebra",
            "level": 1,
            "unique_id": f"test/prealgebra/{i}.json",
        }
        for i in range(count)
    ]


def ultrafeedback(count: int = 1200) -> list[dict]:
    """With what the real one has too: ties, empty answers and equal ones."""
    out = []
    for i in range(count):
        longest = 80 * (i % 40 == 0)  # some are as long as they may be, nearly
        asked = {"content": f"Name a number above {i}." + " Do it now. " * longest, "role": "user"}
        chosen = [asked, {"content": f"{i + 1}." + " It is larger." * longest, "role": "assistant"}]
        rejected = [
            asked,
            {"content": "" if i % 40 == 1 else f"{i - 1}." + " It is not." * longest, "role": "assistant"},
        ]
        out.append(
            {
                "prompt": asked["content"],
                "prompt_id": f"{i:064x}",
                "chosen": chosen,
                "rejected": chosen if i % 40 == 2 else rejected,
                "messages": chosen,
                "score_chosen": 8.0,
                "score_rejected": 8.0 if i % 40 == 3 else 5.0,
            }
        )
    return out


SETS = {
    ("open-r1/DAPO-Math-17k-Processed", "en", "train"): dapo,
    ("HuggingFaceH4/MATH-500", None, "test"): math_500,
    ("HuggingFaceH4/ultrafeedback_binarized", None, "train_prefs"): ultrafeedback,
}


def load_dataset(path: str, name: str | None = None, *, split: str) -> Dataset:
    """What `datasets.load_dataset` is asked for. Raises `KeyError` for what the hub does not have."""
    return Dataset.from_list(SETS[path, name, split]())


def save_described(folder: Path) -> Path:
    """Save what `check` reads of Qwen3-8B by its hub name, configuration and tokenizer, to `folder`."""
    tokens = tiny_model.tokenizer()
    tokens.chat_template += THINKING
    config = shapes.QWEN3_8B.__class__.from_dict(shapes.QWEN3_8B.to_dict())
    config.architectures, config.eos_token_id = ["Qwen3ForCausalLM"], tokens.eos_token_id
    config.bos_token_id = None
    config.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder
