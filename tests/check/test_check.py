"""The check as a whole: what nobody foresaw, and what cannot be used."""

import pytest
from support.broken import corpus


@pytest.mark.parametrize(
    "file, content",
    [
        ("model/config.json", "[]"),
        ("model/tokenizer.json", "[]"),
        ("model/tokenizer_config.json", "[]"),
        ("model/model.safetensors.index.json", "{"),
        ("guide/adapter_config.json", "[]"),
    ],
)
def test_a_file_that_nobody_foresaw_is_a_problem_and_no_traceback(bench, file, content):
    bench.guided()
    bench.write(file, content)
    bench.rows([row | {"chosen": ""} if i == 3 else row for i, row in enumerate(corpus.pairs())], "pairs.jsonl")
    told = "\n".join(bench.checked()["problems"])
    assert f"model.{'guide' if 'guide' in file else 'policy'}" in told and "row 4" in told


def test_rows_and_folders_that_cannot_be_used(bench):
    bench.row({"prompt": "half an emoji \ud83d"})
    bench.put("run.out", "prompts.jsonl/run")
    told = "\n".join(bench.checked()["problems"])
    assert (
        "row 4: 'half an emoji \\ud83d' holds half a character" in told
        and "run.out: " in told
        and "is a file; name another folder" in told
    )
