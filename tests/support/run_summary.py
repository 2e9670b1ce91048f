"""A run as its card tells it: local paths everywhere."""

from align.result.card import RunSummary

SUMMARY = RunSummary(
    base_model="/srv/someone/models/tiny-llama",
    adapter=True,
    objective={"name": "gfpo", "k": 4, "metric": "shortest"},
    config={
        "model": {"policy": "/srv/someone/models/tiny-llama", "adapter": {"rank": 4}},
        "data": {"prompts": "rewards.gym:chain_sum", "args": {"min_terms": 2}},
        "rewards": {"rewards.gym:correct": 1.0},
        "run": {"steps": 40, "out": "/srv/someone/runs/first"},
    },
    command="accelerate launch recipes/train.py "
    "model.policy=/srv/someone/models/tiny-llama run.out='/srv/someone/runs/first'",
    versions={"align": "0.1.0", "torch": "2.13.0"},
    evaluation=[
        {
            "name": "reward (sampled)",
            "before": 0.16,
            "before_interval": [0.11, 0.22],
            "after": 0.77,
            "after_interval": [0.7, 0.83],
        }
    ],
    train_prompts=180,
    eval_prompts=20,
    steps=40,
)
