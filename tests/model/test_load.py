"""Loading tokenizers, configurations and models; neither pickle nor code of a model is opened."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.pickles import Bomb

from align.model.load import load_config, load_model, load_tokenizer
from align.model.locate import ModelError


def test_no_tokenizer_and_no_config(tmp_path):
    with pytest.raises(ModelError, match="no tokenizer could be loaded"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(ModelError, match="no model configuration"):
        load_config(str(tmp_path))


def test_a_model_in_pickle_is_refused_and_not_opened(folder, tmp_path):
    for file in Path(folder).glob("*.json"):
        shutil.copy(file, tmp_path)
    torch.save(Bomb(tmp_path / "ran"), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no model could be loaded from safetensors"):
        load_model(str(tmp_path), "float32")
    assert not (tmp_path / "ran").exists()


def test_code_that_a_model_brings_is_never_run(folder, tmp_path):
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    (own / "its_code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    names = {"AutoConfig": "its_code.Config", "AutoModelForCausalLM": "its_code.Model"}
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"model_type": "its_own", "auto_map": names}))
    for read in (load_config, lambda path: load_model(path, "float32")):
        with pytest.raises(ModelError, match=r"code of its own \(auto_map\), which is never run"):
            read(str(own))
    # a type that transformers knows is loaded by transformers' code
    (own / "config.json").write_text(json.dumps(config | {"auto_map": names}))
    assert type(load_model(str(own), "float32")).__name__ == "LlamaForCausalLM"
    assert not (tmp_path / "ran").exists()
