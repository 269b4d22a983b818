"""A run -> a folder with its report: Markdown for a README or a paper, and PNGs of its figures."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from autointerp import __version__
from autointerp.errors import PackageMissing, RunError
from autointerp.files import disk_errors
from autointerp.publish.local import public
from autointerp.report.authors import authors, is_counted, is_imported, journals_of
from autointerp.report.drawn import drawn
from autointerp.report.figures import Shown, shown
from autointerp.report.funnel import n_open
from autointerp.report.summary import beside_all
from autointerp.report.templates import markdown_template
from autointerp.run import NO_EXPLAINER, Run
from autointerp.stages.spent import in_all

REPORT: Final = "report.md"
_TEMPLATE: Final = Path(__file__).with_name("report.md.jinja")
_OURS: Final = re.compile(r"report\.md|(?:funnel|scores|density|pairs|deciles|spent)(?:-.+)?\.png")


@dataclass(frozen=True, slots=True)
class Written:
    """What was written."""

    report: Path
    images: list[Path]
    n_open: int
    """Steps that features still have before them."""


def write_report(run: Run, out: Path, *, with_plots: bool = True) -> Written:
    """Replaces a report that is there.

    Raises PackageMissing, before anything is read, where plots are wanted and matplotlib is not installed; RunError
    where `out` holds something else, and what reading a run raises.
    """
    if with_plots:
        _check_plots()
    _check_free(out)
    content = shown(run)
    images = _drawn_images(content) if with_plots else {}
    text = markdown(run, content, [(name, title) for name, (title, _) in images.items()])
    partial = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(out):
            partial.mkdir(parents=True)
            for name, (_, png) in images.items():
                (partial / name).write_bytes(png)
            (partial / REPORT).write_text(text, encoding="utf-8")
            if out.exists():
                shutil.rmtree(out)
            partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    n_left = sum(n_open(one.summary) for one in content.dictionaries)
    return Written(out / REPORT, [out / name for name in images], n_left)


def _check_plots() -> None:
    if find_spec("matplotlib") is None:
        raise PackageMissing(
            "plots are drawn by matplotlib, which is not installed: pip install '.[plots]'. Without it the tables "
            "alone can be written: --no-plots."
        )


def _check_free(out: Path) -> None:
    if not out.exists() or (out.is_dir() and all(_OURS.fullmatch(path.name) for path in out.iterdir())):
        return
    raise RunError(
        f"{out} is there already, and holds other things than a report that `autointerp report` wrote: it stays as "
        f"it is. Name a new folder with --out."
    )


def _drawn_images(content: Shown) -> dict[str, tuple[str, bytes]]:
    """By name of the file: what it shows, and its PNG."""
    from autointerp.report.plots import plots  # half a second, and not everybody has it

    return {name: (title, png) for name, title, png in plots(content)}


def markdown(run: Run, content: Shown, images: list[tuple[str, str]]) -> str:
    """`images`: (name of the file, what it shows). From records alone: the same run has the same report."""
    recipe, summaries = run.recipe, [one.summary for one in content.dictionaries]
    journals = journals_of(run)
    by = authors(journals)
    variables: dict[str, Any] = {
        "name": run.path.resolve().name,
        "run": run,
        "recipe": recipe,
        "corpus": public(recipe.corpus.path) if recipe.corpus else None,
        "activations": public(recipe.activations.path) if recipe.activations else None,
        "summaries": summaries,
        "images": images,
        "funnels": {one.summary.dictionary: one.steps for one in content.dictionaries},
        "n_open": sum(map(n_open, summaries)),
        "controls": list(beside_all(summaries)),
        "drawn": {one.dictionary: list(drawn(run, one.dictionary)) for one in summaries},
        "spent": content.spent,
        "spent_in_all": in_all(content.spent),
        "authors": by,
        "is_counted": is_counted(journals, recipe),
        "imported": is_imported(journals),
        "no_explainer": NO_EXPLAINER,
        "package": __version__,
    }
    text = markdown_template(_TEMPLATE).render(variables)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"
