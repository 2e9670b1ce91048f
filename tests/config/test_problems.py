"""Every mistake in a recipe is reported with its place and its fix, all of them at once."""

import pytest
from support.paths import ROOT
from support.recipes import model, objective, problems_of, rewards, run, sampling

from align.config.experiment import load_experiment
from align.config.problems import nearest
from align.config.recipe_file import ConfigError
from align.registry import OBJECTIVES

CHAIN = "chain: [{group_advantage: {}}]"
LOSS = "loss: {clipped_surrogate: {}}"
WRONG_KEY = "unknown key; did you mean"

# (change, line, key, part of the message)
BAD = [
    # unknown keys, at every depth
    ("modl: {}\n", 13, "modl", f"{WRONG_KEY} 'model'?"),
    (("group_size", "gruop_size"), 6, "sampling.gruop_size", f"{WRONG_KEY} 'group_size'?"),
    (sampling("zzz: 1"), 7, "sampling.zzz", "unknown key; there are: cache_gib, compile, deadline_s, "),
    (model("adapter: {rnk: 8}"), 3, "model.adapter.rnk", f"{WRONG_KEY} 'rank'?"),
    (rewards("\n  - {fn: 'user_code:correct', wieght: 2}"), 8, "rewards.0.wieght", f"{WRONG_KEY} 'weight'"),
    ("hub: {repo: a/b, privat: true}\n", 13, "hub.privat", f"{WRONG_KEY} 'private'?"),
    (objective("{name: gfpo, k: 4, metrc: shortest}"), 9, "objective.metrc", f"{WRONG_KEY} 'metric'"),
    (objective("{gfpo: {k: 4, metrc: shortest}}"), 9, "objective.gfpo.metrc", f"{WRONG_KEY} 'metric'?"),
    (objective("{name: gfpo, k: {very_hrd: 4}}"), 9, "objective.k.very_hrd", f"{WRONG_KEY} 'very_hard'?"),
    (
        objective(f"{{chain: [{{keep_top: {{k: 4, metrc: x}}}}, {{group_advantage: {{}}}}], {LOSS}}}"),
        9,
        "objective.chain.0.keep_top.metrc",
        f"{WRONG_KEY} 'metric'?",
    ),
    (
        objective(f"{{{CHAIN}, loss: {{clipped_surrogate: {{clp_low: 0.1}}}}}}"),
        9,
        "objective.loss.clipped_surrogate.clp_low",
        f"{WRONG_KEY} 'clip_low'?",
    ),
    (
        objective("{name: gfpo, k: 4, add: [{kl_policy_ref: {coef: 1, rwos: all}}]}"),
        9,
        "objective.add.0.kl_policy_ref.rwos",
        f"{WRONG_KEY} 'rows'?",
    ),
    (objective(f"{{{CHAIN}, {LOSS}, wieght: 2}}"), 9, "objective.wieght", f"{WRONG_KEY} 'weight'?"),
    ("Model: {}\n", 13, "Model", f"{WRONG_KEY} 'model'?"),
    ("optim:\n  int: 1\n", 14, "optim.int", "unknown key; there are: betas, checkpoint_activations, layout, lr,"),
    # misplaced keys
    ("optim:\n  steps: 9\n", 14, "optim.steps", "unknown key; it belongs at run.steps"),
    (run("temperature: 1"), 12, "run.temperature", "belongs at sampling.temperature or eval.temperature"),
    ("lr: 0.1\n", 13, "lr", "unknown key; it belongs at optim.lr"),
    (model("rank: 8"), 3, "model.rank", "unknown key; it belongs at model.adapter.rank"),
    (run("hub: a/b"), 12, "run.hub", "unknown key; it belongs at the top level"),
    ("optim: {clip_low: 0.1}\n", 13, "optim.clip_low", "it belongs at objective.clip_low"),
    (
        objective("{name: gfpo, k: 4, group_size: 8}"),
        9,
        "objective.group_size",
        "unknown key; it belongs at sampling.group_size",
    ),
    # types
    (("steps: 2", "steps: ten"), 11, "run.steps", "valid integer, unable to parse string as an int"),
    (("group_size: 8", "group_size: 8.5"), 6, "sampling.group_size", "valid integer, got a number with a fr"),
    (("some/model", "[a, b]"), 2, "model.policy", "should be a valid string, but it is ['a', 'b']"),
    (sampling("compile: maybe"), 7, "sampling.compile", "valid boolean, unable to interpret input"),
    (("policy: some/model", "- x"), 1, "model", "valid dictionary or instance of Model, but it is ["),
    (("sampling:\n  group_size: 8\n", "sampling:\n"), 5, "sampling", "but it is None"),
    (sampling("engine: vlm"), 7, "sampling.engine", "'vllm', 'server' or 'transformers', but it is 'vlm'"),
    (run("trackers: [tensorbord]"), 12, "run.trackers.0", "'trackio', 'tensorboard' or 'wandb', but it is"),
    (run("trackers: wandb"), 12, "run.trackers", "valid list, but it is 'wandb'"),
    (objective("{name: gfpo, k: four}"), 9, "objective.k", "valid integer, unable to parse string"),
    (objective("{gfpo: [4]}"), 9, "objective.gfpo", "takes a mapping of its arguments, but it is [4]"),
    (objective("{gfpo: {4: 4}}"), 9, "objective.gfpo", "takes a mapping of its arguments, but it is {4: 4}"),
    (objective("{name: gfpo, k: 4, weight: x}"), 9, "objective.weight", "must be a number above 0"),
    (objective("{name: grpo, std: smple}"), 9, "objective.std", "'population', 'sample' or 'none', but it is 'smple'"),
    (objective("{name: grpo, aggregation: mean}"), 9, "objective.aggregation", "'seq-mean-token-sum', but"),
    # ranges
    (objective("{name: gfpo, k: 1}"), 9, "objective.k", "greater than or equal to 2, but it is 1"),
    (objective("{name: gfpo, k: {easy: 1}}"), 9, "objective.k.easy", "greater than or equal to 2, but it is 1"),
    (objective("{name: gfpo, k: 9}"), 9, "objective", "k = 9 of a group of 8: k must be at most the group s"),
    (objective("{name: gfpo, k: {very_hard: 9}}"), 9, "objective", "k = 9 of a group of 8"),
    ("optim: {lr: -1}\n", 13, "optim.lr", "should be greater than 0, but it is -1"),
    ("optim: {lr: .nan}\n", 13, "optim.lr", "but it is nan"),
    ("optim: {lr: .inf}\n", 13, "optim.lr", "should be a finite number, but it is inf"),
    ("optim: {max_grad_norm: 0}\n", 13, "optim.max_grad_norm", "should be greater than 0, but it"),
    ("optim: {weight_decay: -0.1}\n", 13, "optim.weight_decay", "greater than or equal to 0, but"),
    (sampling("temperature: 0"), 7, "sampling.temperature", "greater than 0, but it is 0"),
    (("group_size: 8", "group_size: 1"), 6, "sampling.group_size", "must be at least 2: "),
    (objective("{name: grpo, clip_low: 1}"), 9, "objective.clip_low", "should be less than 1, but it is 1"),
    (objective("{name: grpo, eps: -1}"), 9, "objective.eps", "greater than or equal to 0, but it is -1"),
    (objective("{grpo: {aggregation: {constant: 0}}}"), 9, "objective.grpo.aggregation.constant", "than 0"),
    (objective("{name: grpo, add: [{entropy_bonus: {coef: 0}}]}"), 9, "objective.add.0.entropy_bonus.coef", "0"),
    (objective("{name: gfpo, k: 4, weight: 0}"), 9, "objective.weight", "above 0, but it is 0"),
    (objective("{name: gfpo, k: 4, weight: .nan}"), 9, "objective.weight", "above 0, but it is nan"),
    (("penalty: 1.0", "penalty: .nan"), 8, "rewards.rewards.length:length_penalty", "finite number"),
    (("steps: 2", "steps: 0"), 11, "run.steps", "greater than or equal to 1, but it is 0"),
    (run("seed: -1"), 12, "run.seed", "greater than or equal to 0, but it is -1"),
    (run("seed: 2147483649"), 12, "run.seed", "less than or equal to 2147483648, but it is"),
    ("eval: {pass_at: [0]}\n", 13, "eval.pass_at.0", "greater than or equal to 1, but it is 0"),
    ("eval: {pass_at: []}\n", 13, "eval.pass_at", "at least 1 item"),
    (model("adapter: {targets: []}"), 3, "model.adapter.targets", "at least 1 item"),
    # missing
    (("  steps: 2\n", ""), 10, "run.steps", "missing; this key is needed"),
    (objective("{name: gfpo}"), 9, "objective.k", "missing; this key is needed"),
    (objective("{name: grpo, add: [{kl_policy_ref: {}}]}"), 9, "objective.add.0.kl_policy_ref.coef", "mis"),
    ("hub: {private: true}\n", 13, "hub.repo", "missing; this key is needed"),
    (objective(f"{{{CHAIN}}}"), 9, "objective", "missing loss"),
    (objective(f"{{{LOSS}}}"), 9, "objective", "missing chain"),
    # objectives
    ("objectives: [{grpo: {}}]\n", 9, "objective", "write one of objective and objectives"),
    (objective(""), 9, "objective", "write one of objective and objectives"),
    (objective("{name: grpoo}"), 9, "objective.name", "unknown name 'grpoo'; did you mean 'grpo'?"),
    (objective("{gfpoo: {}}"), 9, "objective.gfpoo", "unknown name 'gfpoo'; did you mean 'gfpo'?"),
    (objective("{name: [gfpo]}"), 9, "objective.name", "unknown name ['gfpo']; did you mean 'gfpo'?"),
    (objective("{gfpo: {k: 4}, grpo: {}}"), 9, "objective", "needs a name, or a chain with a loss"),
    (
        objective(f"{{chain: [{{keep_tpo: {{k: 4}}}}, {{group_advantage: {{}}}}], {LOSS}}}"),
        9,
        "objective.chain.0.keep_tpo",
        "unknown name 'keep_tpo'; did you mean 'keep_top'?",
    ),
    (
        objective(f"{{{CHAIN}, loss: {{clipped_surogate: {{}}}}}}"),
        9,
        "objective.loss.clipped_surogate",
        "unknown name 'clipped_surogate'; did you mean 'clipped_surrogate'?",
    ),
    (
        objective(f"{{chain: [{{entropy_bonus: {{coef: 1}}}}], {LOSS}}}"),
        9,
        "objective.chain.0.entropy_bonus",
        "unknown name 'entropy_bonus'; did you mean 'top_tokens'?",
    ),
    (
        objective("{name: grpo, add: [{kl_policy: {coef: 1}}]}"),
        9,
        "objective.add.0.kl_policy",
        "unknown name 'kl_policy'; did you mean 'kl_policy_ref'?",
    ),
    (objective(f"{{chain: [group_advantage], {LOSS}}}"), 9, "objective.chain", "a list such as [{keep_"),
    (objective("{name: grpo, add: entropy_bonus}"), 9, "objective.add", "takes a list such as [{keep_"),
    (
        objective(f"{{chain: [{{keep_top: {{k: 4}}}}], {LOSS}}}"),
        9,
        "objective",
        "clipped_surrogate reads advantage, which no transform before it gives; put group_advantage before it",
    ),
    (
        objective(f"{{chain: [{{'user_code:early': {{}}}}, {{group_advantage: {{}}}}], {LOSS}}}"),
        9,
        "objective",
        "early reads advantage, which no transform before it gives; put group_advantage before it",
    ),
    # dotted paths
    (objective("{'usr_code:own': {}}"), 9, "objective.usr_code:own", "cannot import 'usr_code' for 'usr_"),
    (objective("{name: 'user_code:nope'}"), 9, "objective.name", "module 'user_code' has no attribute 'no"),
    (objective("{name: 'user_code:number'}"), 9, "objective.name", "user_code:number is not a function"),
    (objective("{name: 'builtins:dict'}"), 9, "objective.name", "builtins:dict is not a function"),
    (
        objective("{'user_code:own_transform': {}}"),
        9,
        "objective.user_code:own_transform",
        "user_code:own_transform returns Transform, as it says, which cannot stand here",
    ),
    (objective("{name: 'user_code:own_objective', eps: x}"), 9, "objective.eps", "valid number, unable"),
    (objective("{name: 'user_code:moody', x: 3}"), 9, "objective", "x = 3 is odd"),
    (objective("{name: 'broken_code:x'}"), 9, "objective.name", "importing it raised ZeroDivisionError: d"),
    # rewards
    (rewards("{}"), 7, "rewards", "is empty; name at least one reward function"),
    (rewards("[]"), 7, "rewards", "is empty; name at least one reward function"),
    (rewards(""), 7, "rewards", "but it is None"),
    (rewards("{user_code.correct: 1}"), 7, "rewards.user_code.correct", "write package.module:name"),
    (rewards("{':correct': 1}"), 7, "rewards.:correct", "write package.module:name"),
    (rewards("{'a b:correct': 1}"), 7, "rewards.a b:correct", "write package.module:name"),
    (("penalty: 1.0", "penalty: big"), 8, "rewards.rewards.length:length_penalty", "valid number, unabl"),
    ("correct: {reward: penalty}\n", 13, "correct.reward", "no reward is called 'penalty'; did you mean 'length_"),
    # rules between sections
    (sampling("sync: adapter"), 7, "sampling.sync", "adapter needs model.adapter; write merged, or leave"),
    (
        sampling("engine: transformers\n  sync: merged"),
        8,
        "sampling.sync",
        "the transformers engine shares the weights; leave it out",
    ),
    ("eval: {pass_at: [1, 8]}\n", 13, "eval.pass_at", "pass@8 needs as many eval.samples; there are 4"),
    (
        ("prompts: prompts.jsonl", "prompts: p.jsonl\n  eval_prompts: e.jsonl\n  holdout: 2"),
        6,
        "data.holdout",
        "leave it out where eval_prompts are given",
    ),
    # hub
    ("hub: name\n", 13, "hub", "hub repository 'name' must be written user/name"),
    ("hub: {repo: a/b/c}\n", 13, "hub", "hub repository 'a/b/c' must be written user/name"),
    ("hub: a/b c\n", 13, "hub", "'a/b c'"),
    # YAML
    (sampling("group_size: 4"), 7, "sampling.group_size", "stands twice; keep one"),
    ("model: {policy: x}\n", 13, "model", "stands twice; keep one"),
    (objective("{name: gfpo, k: 4, k: 5}"), 9, "objective.k", "stands twice; keep one"),
]


@pytest.mark.parametrize("change, line, key, message", BAD, ids=[f"{case[2]}: {case[3]}" for case in BAD])
def test_bad_input_names_file_line_key_and_fix(recipe, tmp_path, change, line, key, message):
    (problem,) = problems_of(recipe, change)
    assert problem.startswith(f"{tmp_path}/recipe.yaml:{line}: {key}: "), problem
    assert message in problem


def test_a_missing_section(recipe, tmp_path):
    problems = problems_of(recipe, ("model:\n  policy: some/model\n", ""))
    assert problems == [f"{tmp_path}/recipe.yaml: model: missing; this key is needed"]


def test_keys_that_exclude_each_other(recipe):
    both = objective("{name: grpo, aggregation: {tokens_per_row: 4, constant: 4}}")
    problems = problems_of(recipe, both)
    assert {problem.split(": ", 2)[1] for problem in problems} == {
        "objective.aggregation.tokens_per_row",
        "objective.aggregation.constant",
    }
    assert all("does not go with the keys beside it; leave one out" in problem for problem in problems)


MANY = """\
model: {policy: some/model, rank: 8}
data: {prompts: p.jsonl, holdout: 4, eval_prompts: e.jsonl}
sampling: {group_size: 8, sync: adapter}
rewards:
  - {fn: "usr_code.correct"}
  - {fn: "user_code"}
objectives:
  - {gfpo: {k: 1, metrc: shortest}}
  - {gppo: {}}
  - chain: [{keep_top: {k: 0}}, {group_advntage: {}}]
    loss: {clipped: {}}
optim: {lr: -1}
eval: {pass_at: [8]}
run: {steps: 0, seed: x, temperature: 1}
hub: name
"""


def test_all_problems_are_reported_in_one_go(recipe, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(MANY)
    found = {tuple(p.removeprefix(f"{path}:").split(": ")[:2]) for p in problems_of(load_experiment, path)}
    assert found == {
        ("1", "model.rank"),
        ("2", "data.holdout"),
        ("5", "rewards.0.fn"),
        ("6", "rewards.1.fn"),
        ("8", "objectives.0.gfpo.k"),
        ("8", "objectives.0.gfpo.metrc"),
        ("9", "objectives.1.gppo"),
        ("10", "objectives.2.chain.0.keep_top.k"),
        ("10", "objectives.2.chain.1.group_advntage"),
        ("11", "objectives.2.loss.clipped"),
        ("12", "optim.lr"),
        ("13", "eval.pass_at"),
        ("14", "run.out"),
        ("14", "run.steps"),
        ("14", "run.seed"),
        ("14", "run.temperature"),
        ("15", "hub"),
    }


@pytest.mark.parametrize(
    "override, fix",
    [
        ("objective.epsilon=0.2", "write clip_low and clip_high of the objective"),  # not eps, which is another thing
        ("objective.beta=0.04", "write add: [{kl_policy_ref: {coef: ...}}] to the objective"),
        ("sampling.num_generations=4", "write sampling.group_size"),
    ],
)
def test_a_key_of_trl_gets_its_name_here(override, fix):
    with pytest.raises(ConfigError) as error:
        load_experiment(ROOT / "recipes/gfpo_chain_sum.yaml", [override])
    where = f"command line: {override.partition('=')[0]}"
    assert error.value.problems == [f"{where}: unknown key; {fix} (recipes/coming_from_trl.md)"]


def test_true_is_no_number(recipe):
    for override in (
        "optim.lr=true",
        "optim.lr=false",
        "run.steps=true",
        "eval.pass_at=[true]",
        "sentinel.no_signal.for_steps=true",
        "rewards={'user_code:correct': true}",
        "objective.k=true",
        "objective={gfpo: {k: {easy: true}}}",
        "objective={name: gfpo, k: 4, add: [{kl_policy_ref: {coef: true}}]}",
        "objective={'user_code:own_objective': {eps: true}}",
        "model.adapter={rank: true}",
        "data={one: {prompts: p.jsonl, holdout: true}}",
    ):
        problems = problems_of(recipe, overrides=[override])
        assert any("must be a number, but it is true or false" in problem for problem in problems), (override, problems)


def test_true_stays_true_where_it_may_stand(recipe):
    experiment = recipe(overrides=["sampling.compile=false", "run.verbose=true", "data.args={streaming: true}"])
    assert experiment.recipe.run.verbose is True and experiment.recipe.data.args == {"streaming": True}


@pytest.mark.parametrize(
    "word, words, said",
    [
        ("gpfo", OBJECTIVES, "did you mean 'gfpo'?"),
        ("gsop", OBJECTIVES, "did you mean 'gspo'?"),
        ("GFPO", OBJECTIVES, "did you mean 'gfpo'?"),
        ("grpoo", OBJECTIVES, "did you mean 'grpo'?"),
        ("zzz", ["b", "a", "b", "a"], "there are: a, b"),
        ("", [], "there are: "),
    ],
)
def test_the_nearest_name(word, words, said):
    assert nearest(word, words) == said


def test_a_key_belongs_to_the_objective_that_is_named(recipe):
    beta = "beta: unknown key; "
    (problem,) = problems_of(recipe, overrides=["beta=0.04"])
    assert beta + "write add: [{kl_policy_ref: {coef: ...}}] to the objective" in problem  # gfpo has no beta
    pairs = ["data={pairs: p.jsonl}", "rewards={}", "beta=0.04"]
    for spec, place in (
        ("objective={name: dpo}", "objective.beta"),
        ("objective={dpo: {}}", "objective.dpo.beta"),
    ):
        (problem,) = problems_of(recipe, overrides=[*pairs, spec])
        assert f"{beta}it belongs at {place}" in problem


def test_keys_of_verl_get_their_names_one_by_one(recipe):
    words = ["actor_rollout_ref.rollout.n=8", "actor_rollout_ref.actor.optim.lr=1e-6", "algorithm.adv_estimator=grpo"]
    problems = problems_of(recipe, overrides=[*words, "data.train_batch_size=8", "trainer.nnodes=2"])
    page = "(recipes/coming_from_verl.md)"
    assert sorted(problems) == [
        f"command line: actor_rollout_ref.actor.optim.lr: unknown key; write optim.lr {page}",
        f"command line: actor_rollout_ref.rollout.n: unknown key; write sampling.group_size {page}",
        f"command line: algorithm.adv_estimator: unknown key; write objective: {{name: ...}} {page}",
        f"command line: data.train_batch_size: unknown key; write data.prompts_per_step {page}",
        f"command line: trainer.nnodes: unknown key; there is no key for it here {page}",
    ]


def test_a_name_that_is_no_text(recipe):
    for change in (("prompts: prompts.jsonl", "prompts: prompts.jsonl\n  args: {1: 2}"), "1: 2\n", "~: 2\n"):
        (problem,) = problems_of(recipe, change)
        assert "a name here is text; put it in quotes" in problem


def test_a_long_value_is_cut(recipe):
    (problem,) = problems_of(recipe, overrides=[f"run.steps={'x' * 5000}"])
    assert len(problem) < 500
