"""Check the chat template: the one that the recipe names, and whether it is that of the adapter that a run goes on
from."""

from __future__ import annotations

from pathlib import Path

from align.check.survey import Survey
from align.config.recipe_file import read
from align.model import chat_template
from align.model.load import load_tokenizer
from align.model.locate import ModelError
from align.result.record import NAME as RECORD

KEY = ("model", "chat_template")


def survey_template(found: Survey) -> None:
    """Give the policy's tokenizer the template that the recipe names, or the one that the recipe which makes the policy
    will give it.

    Where that is no good, the tokenizer is taken away: rows are not to be read with another one.
    """
    template = found.experiment.recipe.model.chat_template or found.staged_template
    if template is None:
        return
    if found.attempt(_usable, found, template, key=KEY) is None:
        found.tokenizer = None


def survey_start(found: Survey, folder: str) -> None:
    """Compare the template of the adapter in `folder`, from which the run goes on, with that of the run.

    Another one is a problem where the recipe does not name any, and align trained the adapter; else it is noted.
    """
    start, template = found.experiment.recipe.model.adapter.start, found.experiment.recipe.model.chat_template
    if found.tokenizer is None or not (Path(folder) / "tokenizer_config.json").is_file():
        return
    theirs = load_tokenizer(folder).chat_template
    if theirs is None or theirs == found.tokenizer.chat_template:
        return
    told = f"{start} was trained with another chat template than"
    if template is None and (Path(folder) / RECORD).is_file():
        file = Path(folder) / "chat_template.jinja"
        raise ModelError(f"{told} the tokenizer's own; write model.chat_template: {file if file.is_file() else '...'}")
    found.notes.append(f"model.adapter.from: {told} {template or 'that of the policy'}: answers may suffer")


def check_planned(found: Survey, stage: str) -> None:
    """Raise `ModelError` where the recipe `stage`, which trains the adapter that a run goes on from, names a chat
    template and this recipe names none."""
    section = read(stage).data.get("model")
    theirs = section.get("chat_template") if isinstance(section, dict) else None
    if theirs and found.experiment.recipe.model.chat_template is None:
        what = f"{stage} trains with {theirs}, and this recipe with the tokenizer's own"
        raise ModelError(f"{what}; write model.chat_template: {theirs}")


def _usable(found: Survey, template: str) -> bool:
    """Whether the tokenizer has the template now. Raises `ModelError` where it is no good."""
    if found.tokenizer is None:
        chat_template.read(template)
        return False
    chat_template.use(found.tokenizer, template)
    return True
