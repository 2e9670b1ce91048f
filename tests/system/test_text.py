"""Text of others acts on nothing that shows it: terminal, Markdown and HTML."""

import io
import json
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt
from rich.console import Console
from support.hostile_text import ESCAPES, MARKUP, acting
from support.run_summary import SUMMARY

from align.check import report as check_report
from align.result import report, verify
from align.result.card import card
from align.result.verify import Check
from align.run.terminal import say, stage
from align.system.text import for_code_span, for_markdown, for_terminal

MARKDOWN = MarkdownIt("commonmark").enable("table")


@pytest.mark.parametrize("text", ESCAPES.values(), ids=ESCAPES)
def test_for_terminal(text):
    shown = for_terminal(text)
    assert not acting(shown) and shown.encode()
    assert for_terminal(shown) == shown


@pytest.mark.parametrize("text", ["a\tb\nc", "é ü 漢字 العربية עברית हिन्दी 👩‍👩‍👧 \\x1b", "a  b", ""])
def test_plain_text_is_shown_as_it_is(text):
    assert for_terminal(text) == text
    assert for_terminal(text.replace("\n", "\r\n")) == text


@pytest.mark.parametrize("text", MARKUP.values(), ids=MARKUP)
@pytest.mark.parametrize("frame", ["# {}", "a {} b", "| a |\n| --- |\n| {} |", "- {}"])
def test_for_markdown(text, frame):
    plain = MARKDOWN.parse(frame.format("x"))
    for safe in (for_markdown(text), for_code_span(text)):
        assert "\n" not in safe and not acting(safe)
        found = MARKDOWN.parse(frame.format(safe))
        assert [token.type for token in found] == [token.type for token in plain]  # no block more
        inner = {child.type for token in found for child in token.children or ()}
        assert inner <= {"text", "text_special", "code_inline"}
    (said,) = [token for token in MARKDOWN.parse(f"x {for_markdown(text)}") if token.type == "inline"]
    assert "".join(child.content for child in said.children) == f"x {' '.join(for_terminal(text).split())}".rstrip()


@pytest.mark.parametrize("text", MARKUP.values(), ids=MARKUP)
def test_a_card_is_not_shaped_by_its_fields(text):
    row = {**SUMMARY.evaluation[0], "name": text}
    mine = {
        "objective": {**SUMMARY.objective, "name": text},
        "config": {**SUMMARY.config, "data": {"prompts": text}, "run": {"out": "runs/x", "steps": 1}},
        "command": text,
        "versions": {text: text},
        "evaluation": [row],
        "data": [{"source": text, "split": text, "rows": 3, "sha256": text}],
        "gate": {"measure": text, "at_least": 0.1, "value": 0.2},
        "verification": [{"name": text, "passed": True, "found": text}],
    }
    plain = {key: json.loads(json.dumps(value).replace(json.dumps(text), '"x"')) for key, value in mine.items()}
    for base in (text, "pypi:x"):
        shown = card(replace(SUMMARY, **mine, base_model=base)).partition("\n---\n")[2]
        other = card(replace(SUMMARY, **plain, base_model="x" if base == text else base)).partition("\n---\n")[2]
        assert not acting(shown)
        tokens = MARKDOWN.parse(shown)
        assert [token.type for token in tokens] == [token.type for token in MARKDOWN.parse(other)]
        inner = {child.type for token in tokens for child in token.children or ()}
        assert not inner & {"html_inline", "image", "link_open", "hardbreak"}
        codes, others = (
            [token.content for token in MARKDOWN.parse(one) if token.info == "python"] for one in (shown, other)
        )
        assert len(codes) == len(others) == 2
        for code, plain_code in zip(codes, others, strict=True):
            compile(code, "card", "exec")
            assert code.count("\n") == plain_code.count("\n")


@pytest.mark.parametrize("text", ESCAPES.values(), ids=ESCAPES)
def test_what_is_printed_does_not_act(text, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    say(text)
    with stage(text, text) as notes:
        notes.append(text)
    facts = {text: text, "x": {text: {"y": text}}, "launch": {"on": text}}
    facts |= {"memory_gib": {text: {text: 1.0, "total": 1.0}}, "chosen": {text: {"value": text, "why": text}}}
    check_report.show({"ok": True, "problems": [text], "notes": [text], "facts": facts})
    file = io.StringIO()
    console = Console(file=file, width=300, force_terminal=False)
    console.print(verify.table([Check(text, True, text), Check("x", False, text)]))
    console.print(report.table([{**SUMMARY.evaluation[0], "name": text}]))
    console.print(report.samples([{"prompt": text, "response": text}], [{"prompt": text, "response": text}]))
    shown = capsys.readouterr().out + file.getvalue()
    assert not acting(shown)
    assert shown.count("[bold red]x[/bold red]") >= (10 if "[bold red]" in text else 0)
