"""index.html: the page's own style and scripts inside, and a policy that lets nothing else run.

The policy names each of our scripts by its hash. What is loaded from beside the page may run too (`file:`, and
`'self'` where a server hands it out): the data, which are scripts of base64. Nothing else is loaded: no picture,
no font, no address of the network.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Mapping
from importlib import resources
from typing import Final

GENERATOR: Final = '<meta name="generator" content="autointerp view">'
"""By this a page of ours is told from others."""
_SCRIPTS: Final = (
    "data.js", "address.js", "search.js", "order.js", "rows.js", "dom.js", "plots.js", "scores.js", "windows.js",
    "trials.js", "table.js", "card.js", "feature.js", "main.js",
)  # fmt: skip
"""In the order in which they are run."""


def page(title: str, blocks: Mapping[str, list[str]]) -> str:
    """`blocks`: data inside the page, by name, each payload base64; empty where they lie beside it."""
    scripts = [_asset(name) for name in _SCRIPTS]
    style = _asset("style.css")
    policy = (
        f"default-src 'none'; script-src 'self' file: {' '.join(map(_hash, scripts))}; "
        f"style-src {_hash(style)}; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "POLICY": policy,
        "TITLE": html.escape(title),
        "STYLE": style,
        "SCRIPTS": "\n".join(f"<script>{text}</script>" for text in scripts),
        "DATA": "\n".join(_block(name, payloads) for name, payloads in blocks.items()),
    }
    text = _asset("page.html")
    for name, content in parts.items():
        before, mark, after = text.partition(f"<!--{name}-->")
        assert mark, f"page.html has no place for {name}"
        text = before + content + after
    return text


def _block(name: str, payloads: list[str]) -> str:
    """Data, not a script: a browser runs nothing of a type that it doesn't know."""
    return f'<script type="text/plain" id="{name}">{",".join(payloads)}</script>'


def _asset(name: str) -> str:
    return (resources.files("autointerp.view") / "assets" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
