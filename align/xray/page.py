"""Write the page: one file that opens anywhere, offline, and that can call nobody."""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader

from align.system.files import write_whole
from align.system.text import for_terminal
from align.xray.data import Look, Page, page

ASSETS = Path(__file__).parent / "assets"

SCRIPTS = ("data.js", "colour.js", "against.js", "draw.js", "tokens.js", "views.js", "charts.js", "main.js")

KINDS = {"uint32": "u4", "int8": "i1", "float32": "f4", "float64": "f8"}

FIRST = ("start", "id", "text", "taken 0", "credit 0", "weight 0")  # what is drawn first, before the rest is read


def html(made: Page) -> str:
    """The page as one text. Its data is base64, in which no markup can hide; the rest goes through autoescape."""
    script = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    style = (ASSETS / "page.css").read_text(encoding="utf-8")
    columns = [
        {"name": name, "kind": KINDS[str(values.dtype)], "data": _packed(_planes(values))}
        for name, values in made.columns.items()
    ]
    environment = Environment(loader=FileSystemLoader(ASSETS), autoescape=True)
    return environment.get_template("page.html").render(
        title=for_terminal(made.head["title"]),
        policy=f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; base-uri 'none'",
        script=script,
        style=style,
        head=_packed(json.dumps(made.head, allow_nan=False).encode()),
        columns=columns,
        first=FIRST,
    )


def write(look: Look, path: Path) -> int:
    """Write the page of a look; its size in bytes. Raises `DiskError`."""
    text = html(page(look))
    write_whole(path, text)
    return len(text.encode())


def _planes(values: np.ndarray) -> bytes:
    """Little-endian bytes, the first of each value first, then the second ...: like stands beside like."""
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return little.view(np.uint8).reshape(len(values), values.itemsize).T.tobytes()


def _packed(data: bytes) -> str:
    return b64encode(gzip.compress(data, 6, mtime=0)).decode()


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
