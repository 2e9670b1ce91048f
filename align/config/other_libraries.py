"""Where keys of TRL and verl are here. The pages recipes/coming_from_trl.md and coming_from_verl.md say more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TRL = "recipes/coming_from_trl.md"

VERL = "recipes/coming_from_verl.md"

ROWS = "data.prompts_per_step, and optim.micro_batch_tokens for memory"

KL = "add: [{kl_policy_ref: {coef: ...}}] to the objective"

CLIP = "clip_low and clip_high of the objective"

# {key of TRL, of transformers' TrainingArguments or of PEFT: what to write}
TRL_KEYS = {
    "num_generations": "sampling.group_size",
    "num_generations_eval": "eval.samples",
    "max_completion_length": "sampling.max_response_tokens",
    "max_new_tokens": "sampling.max_response_tokens",
    "max_prompt_length": "data.max_prompt_tokens",
    "max_length": "data.max_prompt_tokens and data.max_response_tokens",
    "max_steps": "run.steps",
    "num_train_epochs": "run.epochs",
    "num_iterations": "optim.updates_per_step",
    "per_device_train_batch_size": ROWS,
    "per_device_eval_batch_size": "eval.samples; the engine batches by itself",
    "gradient_accumulation_steps": ROWS,
    "generation_batch_size": ROWS,
    "steps_per_generation": ROWS,
    "learning_rate": "optim.lr",
    "lr_scheduler_type": "optim.schedule",
    "adam_beta1": "optim.betas",
    "adam_beta2": "optim.betas",
    "warmup_ratio": "optim.warmup_share",
    "generation_kwargs": "sampling.stop for its stop; the rest has no key",
    "stop_strings": "sampling.stop",
    "chat_template_kwargs": "data.chat_template_kwargs",
    "chat_template_path": "model.chat_template",
    "top_p": "sampling.top_p",
    "top_k": "sampling.top_k",
    "min_p": "sampling.min_p",
    "callbacks": "run.callbacks",
    "bf16": "model.dtype: bfloat16",
    "fp16": "model.dtype: bfloat16",
    "torch_dtype": "model.dtype",
    "gradient_checkpointing": "optim.checkpoint_activations",
    "load_in_4bit": "model.quantize: 4bit",
    "save_steps": "run.save_every",
    "eval_steps": "run.eval_every",
    "save_total_limit": "run.keep",
    "output_dir": "run.out",
    "report_to": "run.trackers",
    "resume_from_checkpoint": "run.resume, or --resume on the command line",
    "push_to_hub": "hub: user/name",
    "hub_model_id": "hub: user/name",
    "hub_private_repo": "hub.private",
    "epsilon": CLIP,
    "epsilon_high": "clip_high of the objective (of cispo: ratio_high)",
    "delta": "dual_clip of the objective",
    "beta": KL,
    "kl_coef": KL,
    "entropy_coef": "add: [{entropy_bonus: {coef: ...}}] to the objective",
    "loss_type": "another objective, or its key aggregation",
    "importance_sampling_level": "objective: {name: gspo} for sequence",
    "scale_rewards": "std of the objective",
    "reward_weights": "the weight beside each function of rewards",
    "reward_funcs": "rewards: {module:function: weight}",
    "reward_model_path": "rewards, with a function that loads the model",
    "mask_truncated_completions": "add: [{mask_truncated: {}}] to the objective",
    "top_entropy_quantile": "add: [{top_tokens: {...}}] to the objective",
    "vllm_importance_sampling_correction": "add: [{importance_weight: {...}}] with sampling.old_logprob: trainer",
    "use_vllm": "sampling.engine",
    "vllm_gpu_memory_utilization": "sampling.cache_gib",
    "vllm_tensor_parallel_size": "sampling.tensor_parallel",
    "vllm_enable_sleep_mode": "sampling.sleep",
    "model_name_or_path": "model.policy",
    "pretrained_model_name_or_path": "model.policy",
    "ref_model": "nothing: the reference is the policy that the run starts from",
    "dataset_name": "data.prompts, or data.pairs",
    "dataset_config": "data.args: {name: ...}",
    "train_dataset": "data.prompts, or data.pairs",
    "eval_dataset": "data.eval_prompts",
    "peft_config": "model.adapter",
    "use_peft": "model.adapter",
    "lora_r": "model.adapter.rank",
    "r": "model.adapter.rank",
    "lora_alpha": "model.adapter.alpha",
    "lora_target_modules": "model.adapter.targets",
    "target_modules": "model.adapter.targets",
    "precompute_ref_log_probs": "data.bank",
    "precompute_ref_batch_size": "optim.micro_batch_tokens",
    "loss_weights": "objectives: a list, each with its weight",
    "label_smoothing": "label_smoothing of dpo",
    "rpo_alpha": "add: [{chosen_nll: {coef: ...}}] to the objective",
    "simpo_gamma": "gamma_beta_ratio of simpo",
    "padding_free": "optim.layout: shared_prefix",
    "num_ppo_epochs": "optim.updates_per_step",
    "num_mini_batches": "optim.updates_per_step",
    "cliprange": CLIP,
    "vf_coef": "value_coef of the objective",
    "system_prompt": "data.system",
    "max_tokens": "sampling.max_response_tokens",
    "max_seq_length": "data.max_prompt_tokens and data.max_response_tokens",
    "batch_size": ROWS,
    "mini_batch_size": "optim.updates_per_step; each takes the whole batch",
    "gradient_clipping": "optim.max_grad_norm",
    "mixed_precision": "model.dtype: bfloat16",
    "data_seed": "run.seed",
    "eval_batch_size": "eval.samples; the engine batches by itself",
    "eval_on_start": "nothing: a run is evaluated before its first step",
    "run_name": "run.out",
    "logging_dir": "run.out",
    "overwrite_output_dir": "nothing: an earlier run in run.out is renamed",
    "deepspeed": "a launch file, such as launch/zero2.yaml",
    "fsdp": "a launch file with ZeRO-3, such as launch/zero3.yaml",
    "hub_token": "nothing: the token is HF_TOKEN or the login",
    "reward_func": "rewards: {module:function: weight}",
    "reward_fn": "rewards: {module:function: weight}",
    "model_id": "model.policy",
    "base_model": "model.policy",
    "adapter_name_or_path": "model.adapter.from",
    "processing_class": "nothing: the tokenizer is that of model.policy",
    "tokenizer": "nothing: the tokenizer is that of model.policy",
    "split": "data.args: {split: ...}",
    "dataset_split": "data.args: {split: ...}",
    "dataset_train_split": "data.args: {split: ...}",
}

# {key of verl, its last parts: what to write}
VERL_KEYS = {
    "enable_gradient_checkpointing": "optim.checkpoint_activations",
    "rollout.n": "sampling.group_size",
    "val_kwargs.n": "eval.samples",
    "val_kwargs.temperature": "eval.temperature",
    "val_kwargs": "eval",
    "response_length": "sampling.max_response_tokens",
    "overlong_buffer": "rewards: rewards.length:soft_overlong",
    "rollout.temperature": "sampling.temperature",
    "rollout.top_p": "sampling.top_p",
    "rollout.top_k": "sampling.top_k",
    "rollout.name": "sampling.engine",
    "apply_chat_template_kwargs": "data.chat_template_kwargs",
    "filter_overlong_prompts": "data.long_prompts: drop",
    "lr_warmup_steps_ratio": "optim.warmup_share",
    "rollout.gpu_memory_utilization": "sampling.cache_gib",
    "rollout.max_num_seqs": "sampling.max_sequences",
    "rollout.tensor_model_parallel_size": "sampling.tensor_parallel",
    "rollout.free_cache_engine": "sampling.sleep",
    "rollout.enforce_eager": "sampling.compile: false",
    "max_response_length": "sampling.max_response_tokens",
    "max_prompt_length": "data.max_prompt_tokens",
    "train_files": "data.prompts",
    "val_files": "data.eval_prompts",
    "train_batch_size": "data.prompts_per_step",
    "ppo_mini_batch_size": "optim.updates_per_step; each takes the whole batch",
    "ppo_epochs": "optim.updates_per_step",
    "ppo_micro_batch_size": "optim.micro_batch_tokens",
    "ppo_micro_batch_size_per_gpu": "optim.micro_batch_tokens",
    "ppo_max_token_len_per_gpu": "optim.micro_batch_tokens",
    "log_prob_micro_batch_size_per_gpu": "optim.micro_batch_tokens",
    "use_dynamic_bsz": "optim.micro_batch_tokens",
    "adv_estimator": "objective: {name: ...}",
    "norm_adv_by_std_in_grpo": "std of the objective",
    "filter_groups.enable": "sampling.dynamic_sampling",
    "use_kl_loss": KL,
    "kl_loss_coef": KL,
    "kl_ctrl.kl_coef": "kl_coef of ppo and rto",
    "use_kl_in_reward": "kl_coef of ppo and rto",
    "clip_ratio": CLIP,
    "clip_ratio_low": "clip_low of the objective",
    "clip_ratio_high": "clip_high of the objective",
    "clip_ratio_c": "dual_clip of the objective",
    "loss_agg_mode": "aggregation of the objective",
    "entropy_coeff": "add: [{entropy_bonus: {coef: ...}}] to the objective",
    "grad_clip": "optim.max_grad_norm",
    "optim.lr": "optim.lr",
    "optim.weight_decay": "optim.weight_decay",
    "lr_warmup_steps": "optim.warmup_steps",
    "warmup_style": "optim.schedule",
    "model.path": "model.policy",
    "lora_rank": "model.adapter.rank",
    "lora_alpha": "model.adapter.alpha",
    "use_remove_padding": "optim.layout: shared_prefix",
    "custom_reward_function.path": "rewards: {module:function: weight}",
    "custom_reward_function.name": "rewards: {module:function: weight}",
    "total_training_steps": "run.steps",
    "total_epochs": "run.epochs",
    "save_freq": "run.save_every",
    "test_freq": "run.eval_every",
    "max_actor_ckpt_to_keep": "run.keep",
    "default_local_dir": "run.out",
    "resume_mode": "--resume on the command line, or run.resume",
    "resume_from_path": "run.resume",
    "logger": "run.trackers",
    "n_gpus_per_node": "num_processes of the launch file",
    "project_name": "run.out",
    "experiment_name": "run.out",
}

# {key of PEFT: why there is none here}
REFUSED = {
    "lora_dropout": "with dropout the policy that is trained is not the one that was sampled, and no ratio is 1",
    "dropout": "with dropout the policy that is trained is not the one that was sampled, and no ratio is 1",
    "use_dora": "vLLM cannot apply DoRA",
    "dora": "vLLM cannot apply DoRA",
    "modules_to_save": "vLLM takes no whole modules with an adapter; train all weights, without model.adapter",
    "bias": "vLLM takes no biases with an adapter; train all weights, without model.adapter",
}

VERL_SECTIONS = ("actor_rollout_ref", "actor", "rollout", "algorithm", "critic", "trainer", "reward_model")

# {library's page: its keys that have no equal here}
NOTHING = {
    TRL: {
        *("repetition_penalty", "use_bias_correction_kl", "multi_objective_aggregation"),
        *("use_adaptive_entropy", "entropy_target", "off_policy_mask_threshold", "sync_ref_model"),
        *("ref_model_mixup_alpha", "ref_model_sync_steps", "vllm_mode", "vllm_server_host", "vllm_max_model_length"),
        *("vllm_structured_outputs_regex",),
        *("ds3_gather_for_generation", "max_tool_calling_iterations", "disable_dropout", "shuffle_dataset"),
        *("remove_unused_columns", "log_completions", "trust_remote_code", "truncation_mode", "ld_alpha"),
        *("f_divergence_type", "use_weighting", "discopop_tau", "activation_offloading"),
        *("logging_steps", "logging_strategy", "save_strategy", "eval_strategy", "do_train", "do_eval"),
        *("cache_implementation", "use_liger_kernel", "use_liger_loss", "reward_processing_classes", "tools"),
        *("vllm_importance_sampling_mode", "vllm_importance_sampling_clip_max", "load_in_8bit"),
        *("packing", "whiten_rewards", "missing_eos_penalty", "wandb_project", "trackio_space_id"),
        *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "hub_strategy", "save_only_model"),
        *("attn_implementation", "model_init_kwargs", "quantization_config", "adam_epsilon", "lr_scheduler_kwargs"),
        *("task_type", "use_rslora", "rank_pattern", "init_lora_weights", "neftune_noise_alpha", "reference_free"),
        *("rollout_func", "vllm_server_base_url", "tf32", "torch_compile", "dataloader_num_workers"),
    },
    VERL: {
        *("rollout.calculate_log_probs", "rollout.multi_turn", "rollout.agent"),
        *("prompt_key", "truncation", "reward_model.enable", "strategy", "fsdp_config"),
        *("nnodes", "rollout_data_dir", "kl_loss_type", "kl_penalty", "kl_ctrl.type"),
        *("critic_warmup", "val_before_train", "use_legacy_worker_impl", "ulysses_sequence_parallel_size"),
        *("param_offload", "optimizer_offload", "hybrid_engine", "balance_batch", "reward_manager"),
    },
}


def advice(path: str) -> str | None:
    """Say what to write for a dotted key of TRL or verl; None for one that neither has.

    Neighbouring parts decide: `actor_rollout_ref.rollout.n` is `rollout.n`.
    """
    parts = path.split(".")
    if parts[-1] in REFUSED:
        return f"there is no key for it here: {REFUSED[parts[-1]]}"
    known = {TRL: TRL_KEYS, VERL: VERL_KEYS}
    pages = sorted(known, reverse=parts[0] in VERL_SECTIONS)
    within = [".".join(parts[i:j]) for i in range(len(parts)) for j in range(len(parts), i, -1)]
    for name, page in ((name, page) for name in within for page in pages):
        if name in known[page]:
            return f"write {known[page][name]} ({page})"
        if name in NOTHING[page]:
            return f"there is no key for it here ({page})"
    return None


def leaves(path: tuple, value: Any) -> list[tuple]:
    """The places of the keys below a section of another library, which stands at `path`."""
    if not isinstance(value, Mapping) or not value:
        return [path]
    return [leaf for name, inner in value.items() for leaf in leaves((*path, name), inner)]
