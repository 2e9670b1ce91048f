"""GFPO x KTAE x D3S x DAPO in one chain, in Python and in YAML."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batches import loss_of, no_model
from support.policy_family import composed, family_batch

from align.config.experiment import load_experiment
from align.config.recipe_file import ConfigError
from align.credit import assign
from align.objectives import Objective
from align.objectives.gfpo import keep_top

few = settings(max_examples=10)


@few
@given(seed=st.integers(0, 10_000))
def test_composition_keeps_the_parts(seed):
    """No credit on rejected rows; rows chosen by the row's own advantage; tokens by all of their credit."""
    batch, _ = family_batch(seed)
    credited = assign(composed(), batch, no_model).batch
    first = assign(Objective("f", composed().chain[:3], composed().losses), batch, no_model).batch
    assert torch.equal(credited.kept, first.kept) and credited.kept.sum() == 6
    assert not credited.advantage[~keep_top(k=3).apply(batch).kept].any()
    assert not (credited.selected & batch.truncated[:, None]).any() and credited.active.any() != batch.truncated.all()


def test_the_composed_chain_in_yaml(tmp_path):

    text = """
model: {policy: some/model}
data: {prompts: prompts.jsonl}
rewards: {"rewards.length:length_penalty": 1.0}
run: {steps: 2, out: runs/test}
objective:
  chain:
    - keep_top: {k: 3}
    - group_advantage: {}
    - max_variance_rows: {rows: 2}
    - key_tokens: {weight: 0.5}
    - mask_truncated: {}
    - top_tokens: {share: 0.6}
  loss: {clipped_surrogate: {clip_high: 0.28, denominator: selected}}
"""
    (tmp_path / "recipe.yaml").write_text(text)
    (built,) = load_experiment(tmp_path / "recipe.yaml").objectives
    batch, logprob = family_batch(1)
    for a, b in zip(loss_of(built, batch, logprob), loss_of(composed(), batch, logprob), strict=True):
        assert torch.equal(a, b)
    rows, keep, share = "    - max_variance_rows: {rows: 2}\n", "    - keep_top: {k: 3}\n", "{share: 0.6}"
    wrongs = {
        text.replace(
            "    - group_advantage: {}\n", ""
        ): "max_variance_rows reads advantage, which no transform before it",
        text.replace(keep, "").replace(
            share, f"{share}\n{keep}"
        ): r"keep_top \(filter\) cannot stand behind top_tokens",
        text.replace(rows, "").replace("    - mask", f"{rows}    - mask"): r"max_variance_rows \(rows\) cannot stand",
    }
    for wrong, why in wrongs.items():
        (tmp_path / "wrong.yaml").write_text(wrong)
        with pytest.raises(ConfigError, match=why):
            load_experiment(tmp_path / "wrong.yaml")
