"""Texts that act on what shows them."""

ESCAPES = {
    "colour": "\x1b[31mred",
    "clear": "\x1b[2J\x1b[H",
    "title": "\x1b]0;owned\x07",
    "link": "\x1b]8;;http://evil.example\x1b\\here\x1b]8;;\x1b\\",
    "one byte": "\x9b31mred",
    "carriage": "fine\rFAILED",
    "backspace": "ab\b\bcd",
    "bell": "\a",
    "null": "a\0b",
    "direction": "\u202egnp.exe",
    "isolate": "\u2066a\u2069",
    "hidden": "a\u200bb\ufeff\u00adc",
    "line separator": "a\u2028b\u2029c\x85d",
    "surrogate": "a\udcffb",
    "tags": "a\U000e0041",
    "markup": "[bold red]x[/bold red] [link=http://evil.example]y[/link]",
}

MARKUP = {
    "heading": "x\n\n# Injected",
    "rule": "x\n---\ny",
    "html": "<img src=x onerror=alert(1)><script>alert(1)</script>",
    "entity": "&lt;b&gt;",
    "comment": "<!-- x",
    "link": "[here](http://evil.example)",
    "image": "![x](http://evil.example/x.png)",
    "table": "a | b |\n| --- | --- |",
    "code": "`x` ``` y",
    "fence": "x\n```\n# Injected\n",
    "emphasis": "**bold** ~~gone~~",
    "backslash": "\\[x](y)",
    "autolink": "<http://evil.example>",
    **{f"terminal {name}": text for name, text in ESCAPES.items()},
}


def acting(shown: str) -> list[str]:
    """The characters of a shown text that would act on a terminal."""
    return [c for c in shown if c != "\n" and (not c.isprintable() and c not in " \t\u200c\u200d")]
