"""The check after a sync, with real engines: it names what was planted, and is silent after healthy syncs."""

import json

import pytest
from support import tiny_model, tiny_task
from support.paths import PROGRAMS
from support.zygote import forked
from transformers import GenerationConfig

pytestmark = pytest.mark.engine
ADAPTER, MERGED = "sampling.sync=adapter", "sampling.sync=merged"
SUPPORT = "temperature or top-p support"
SAMPLING = dict.fromkeys(["temperature forgotten", "another temperature", "top-p", "top-k", "min-p"], SUPPORT)
# what no token that is compared shows, or hardly
ASKED = dict.fromkeys(["frequency penalty", "presence penalty", "a default", "no end"], "sampling settings")
ASKED |= dict.fromkeys(["top-k of 80", "top-p of 0.999"], SUPPORT)
ROW, BASE_ROW = {"one row": "unknown weights"}, {"one row of the base": "unknown weights"}
IN_MERGED = {"sync skipped": "stale adapter", "no adapter merged": "base only", "guide merged": "wrong adapter"}
IN_ADAPTER = {"sync skipped": "stale adapter", "no adapter passed": "base only", "guide passed": "wrong adapter"}
ROUNDED = dict.fromkeys(["merged in bfloat16", "merged with noise"], "merge rounding")
OWN = dict.fromkeys(["temperature forgotten", "another temperature", "the model's own settings"], SUPPORT)
FULL = {"sync skipped": "stale weights", "another model": "unknown weights"}
BFLOAT16 = "model.dtype=bfloat16"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny model with settings of its own for sampling, as many models have: none of them may be obeyed."""
    folder = tiny_model.save_model(tmp_path_factory.mktemp("tiny"))
    own = GenerationConfig.from_pretrained(folder)
    own.update(do_sample=True, temperature=0.3, top_k=5, top_p=0.5, repetition_penalty=1.3)
    own.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def guide(folder, tmp_path_factory):
    return tiny_model.save_guide(folder, tmp_path_factory.mktemp("guide"))


@pytest.mark.parametrize(
    "machine, adapter, planted, largest, more",
    [
        ("cpu", True, IN_MERGED | ROUNDED | SAMPLING | ASKED | ROW, 1e-4, [MERGED]),
        ("cpu", True, IN_ADAPTER | SAMPLING | ASKED | BASE_ROW, 1e-4, [ADAPTER]),
        ("cpu", False, FULL | ROUNDED | SAMPLING, 1e-4, []),
        ("cpu", True, IN_MERGED | SAMPLING | ROW, 0.2, [MERGED, BFLOAT16]),
        ("cpu", True, IN_ADAPTER | SAMPLING, 0.2, [ADAPTER, BFLOAT16]),
        ("cpu", False, FULL | SAMPLING, 0.2, [BFLOAT16]),
        ("cpu_zero3", True, IN_MERGED | {"top-p": SUPPORT}, 1e-4, [MERGED]),
        ("cpu", True, OWN, 1e-4, ["sampling.engine=transformers"]),
    ],
)
def test_the_check_names_what_was_planted(machine, adapter, planted, largest, more, folder, guide, tmp_path):
    lora = ", adapter: {rank: 4, alpha: 8}" if adapter else ""
    (tmp_path / "recipe.yaml").write_text(tiny_task.RECIPE.format(folder=folder, adapter=lora, out=tmp_path / "run"))
    script = PROGRAMS / "sync_check.py"
    forked(machine, script, tmp_path / "recipe.yaml", tmp_path / "out.json", guide, ",".join(planted), *more)
    found = json.loads((tmp_path / "out.json").read_text())
    assert {failure: kind for failure, (kind, _) in found["found"].items()} == planted, found
    assert len(found["gaps"]) == 5 + len(planted)
    assert max(mean for mean, _ in found["gaps"]) < largest, found["gaps"]


def test_a_tied_head_that_was_not_sent_is_found(folder, guide, tmp_path):
    """What it is taken for depends on how far the update moved the head."""
    (tmp_path / "recipe.yaml").write_text(tiny_task.RECIPE.format(folder=folder, adapter="", out=tmp_path / "run"))
    script = PROGRAMS / "sync_check.py"
    forked("cpu", script, tmp_path / "recipe.yaml", tmp_path / "out.json", guide, "head not streamed")
    [(kind, message)] = json.loads((tmp_path / "out.json").read_text())["found"].values()
    assert kind in ("merge rounding", "unknown weights") and "missing" in message or "not have arrived" in message
