"""A task that a random character model can learn in a few steps: answer in digits."""


def prompts(count=12):
    return [{"prompt": [{"role": "user", "content": f"Write {i} digits."}]} for i in range(count)]


def pairs(count=16):
    """Digits are preferred to letters."""
    letters = "abcdefghij"
    return [
        {
            "prompt": row["prompt"],
            "chosen": [{"role": "assistant", "content": f"{i % 10}{i % 7}{i % 3}"}],
            "rejected": [{"role": "assistant", "content": letters[i % 10] * (1 + i % 4)}],
        }
        for i, row in enumerate(prompts(count))
    ]


def digits(prompts, completions, completion_ids, **columns):
    """Share of the characters that are digits."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(c.isdigit() for c in text) / max(len(text), 1) for text in texts]


RECIPE = """
model: {{policy: "{folder}"{adapter}}}
data: {{prompts: "support.tiny_task:prompts", holdout: 4, prompts_per_step: 4}}
sampling: {{group_size: 4, temperature: 0.7, max_response_tokens: 12, cache_gib: 0.25, compile: false}}
rewards: {{"support.tiny_task:digits": 1.0}}
objective: {{name: gfpo, k: 3}}
optim: {{lr: 0.01, micro_batch_tokens: 200}}
eval: {{samples: 2}}
run: {{steps: 4, out: "{out}"}}
"""
