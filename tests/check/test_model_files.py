"""What the files of a model tell before it is loaded."""

from support import tiny_model
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from align.check import model_files
from align.config.model_keys import Adapter
from align.model.adapters import add_adapter
from align.model.load import load_config


def test_a_template_that_ends_no_answer():
    tokenizer = tiny_model.tokenizer()
    assert model_files.ends_answers(tokenizer, [tokenizer.eos_token_id])
    whole = tokenizer.chat_template
    tokenizer.chat_template = whole.replace("<|im_end|>", "{% if ends %}<|im_end|>{% endif %}")
    assert not model_files.ends_answers(tokenizer, [tokenizer.eos_token_id])
    assert model_files.ends_answers(tokenizer, [tokenizer.eos_token_id], {"ends": True})


def test_the_skeleton_stays_whole_under_zero_3(tmp_path):
    """transformers partitions what its Auto classes make while DeepSpeed's third stage is on."""
    config = load_config(str(tiny_model.save_model(tmp_path)))
    guide = tiny_model.save_guide(tmp_path, tmp_path / "guide")
    stage = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    try:
        skeleton = add_adapter(model_files.skeleton(config, "tiny"), Adapter(rank=2), "tiny")
        assert all(p.is_meta and p.numel() for p in skeleton.parameters())
        model_files.check_adapter(str(guide), config)
    finally:
        unset_hf_deepspeed_config()
        del stage
