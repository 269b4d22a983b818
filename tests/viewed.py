"""Runs to look at, and the data of a page read back: what the tests of the explorer stand on."""

from __future__ import annotations

import base64
import gzip
import re
from pathlib import Path

import orjson

from autointerp.bench.made_up_cache import N_IDS
from autointerp.bench.made_up_run import make_run
from autointerp.pipeline import run_line
from autointerp.run import Run
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import Json

LEXICAL: Json = {"explainer": {"use": "lexical"}, "judge": {"use": "lexical"}}
SMALL: Json = {"n_shown": 10, "n_shown_silent": 10, "n_heldout": 20, "n_heldout_silent": 10}
SCORERS: Json = {name: {"use": name} for name in ("detection", "fuzzing", "intruder")}

BREAKS_OUT = "window.hacked=1"
HOSTILE = (
    f"<img src=x onerror={BREAKS_OUT}>",
    f"</script><script>{BREAKS_OUT}</script>",
    f"<svg onload={BREAKS_OUT}>",
    f'"><iframe srcdoc="<script>parent.{BREAKS_OUT}</script>">',
    f"javascript:{BREAKS_OUT}",
    "</style><style>*{display:none !important}</style>",
    "<!--", "]]>", "</textarea>", "${7*7}", "{{7*7}}", "\\u003cscript\\u003e", "'\"`;--", "&lt;b&gt;",
    "\u202eesrever", "\u2066isolate", "zero\u200bwidth", "\ufeffbom", "null\x00byte", "bell\x07", "line\u2028end",
    "שלום עולם", "مرحبا", "漢字かな", "👩‍👩‍👧‍👦", "ｅ́", "\n\n", "\t", " ",
)  # fmt: skip


def hostile(n: int) -> list[str]:
    """So many different ones: the words, each with a number, one of them a megabyte long."""
    found = [f"{HOSTILE[at % len(HOSTILE)]}{at or ''}" for at in range(n)]
    found[-1] = "long " * 200_000  # a rare one
    return found


TWO: Json = {name: {"path": "made-up", "hook": "layers.0"} for name in ("one", "two")}
"""Dictionaries that fire alike, each with windows of its own."""


def make_viewed_run(path: Path, n: int, tokens: list[str] | None = None, **sections: object) -> Run:
    """Explained and scored by corpus statistics; two features a unit. `tokens`: texts of the most frequent ones."""
    explainers = {"plain": {"use": "plain"}, "top_tokens": {"use": "top_tokens"}}
    given: Json = {
        "llms": LEXICAL,
        "sampling": SMALL,
        "explainers": explainers,
        "scorers": SCORERS,
    } | sections
    run = make_run(path, n, every=128, **given)
    if tokens:
        texts = [b"", *(text.encode() for text in tokens)]
        texts += [f" w{number}".encode() for number in range(len(texts), N_IDS + 1)]
        Vocabulary(texts).save(run.vocabulary)
    run_line(run)
    return run


def unpacked(payload: str) -> Json:
    return orjson.loads(gzip.decompress(base64.b64decode(payload)))


_SCRIPT = re.compile(r'receive\("(?P<name>\w+)",\[(?P<payloads>[^\]]*)\]\);\s*')
_BLOCK = re.compile(r'<script type="text/plain" id="(?P<name>\w+)">(?P<payloads>[^<]*)</script>')


def data_of(folder: Path) -> dict[str, list[Json]]:
    """All data of a page by name, wherever they lie."""
    found: dict[str, list[Json]] = {}
    for match in _BLOCK.finditer((folder / "index.html").read_text(encoding="utf-8")):
        found[match["name"]] = [unpacked(one) for one in match["payloads"].split(",")]
    for path in sorted(folder.glob("data/*.js")):
        match = _SCRIPT.fullmatch(path.read_text(encoding="ascii"))
        assert match is not None, path
        assert match["name"] == path.stem
        found[match["name"]] = [unpacked(one.strip(' \n"')) for one in match["payloads"].split(",")]
    return found


def features_of(folder: Path) -> list[Json]:
    """In the order of the index."""
    data = data_of(folder)
    return [one for name in sorted(data) if name.startswith("s0") for one in data[name]]
