"""The rows of the recipes: the same, in the same order, held out alike, as when they were all in memory."""

from pathlib import Path

import pytest
from support import tiny_model

from align.config.data_keys import Data
from align.config.recipe_file import read
from align.data.prompts import fingerprint
from align.data.read import load_prompts
from align.model import chat_template

RECIPES = Path(__file__).parents[2] / "recipes"

# of commit 9b83687: {recipe: (rows, start of the hash) of training, and of what is held out}; others have the same data
PINNED = {
    "composed_chain_sum": ((150, "f39dae2ea3f58482"), (50, "7979d93acb27c152")),
    "dpo_champ": ((254, "38619b340641a957"), (43, "046e63adf3a40992")),
    "dpo_reviews": ((400, "a400379a350fc387"), (90, "7226a74230117d94")),
    "grpo_guess": ((200, "2be0ece0ddb278df"), (64, "be3d8e7716d2fe66")),
    "ktae_calculator": ((200, "dfefac8b97a4e828"), (50, "0cdbcbeb2024042a")),
    "ppo_reviews": ((400, "8217bd8cc024e630"), (50, "bf7dc4f496ee7dc0")),
    "sft_calculator": ((50, "a31a9818da0a0e63"), (50, "0cdbcbeb2024042a")),
    "sft_reviews": ((640, "046d0b1bc33bbd74"), (50, "bf7dc4f496ee7dc0")),
}


@pytest.mark.parametrize("name", PINNED)
def test_the_rows_of_a_recipe(name):
    recipe, tokenizer = read(RECIPES / f"{name}.yaml").data, tiny_model.tokenizer()
    if template := recipe["model"].get("chat_template"):
        chat_template.use(tokenizer, template)
    anything = {"bank": None, "max_prompt_tokens": 10**6, "max_response_tokens": 10**6}
    found = load_prompts(Data.model_validate({**recipe["data"], **anything}), tokenizer, recipe["run"].get("seed", 0))
    sides = tuple((len(rows), fingerprint(rows)[:16]) for rows in (found.train, found.held_out))
    assert sides == PINNED[name]
