"""Markdown documents from templates. What several documents say alike is said once, in `tables.md.jinja`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

import jinja2

from autointerp.llm.spending import Spent
from autointerp.metrics import MeanOver
from autointerp.metrics.differences import Difference
from autointerp.publish.local import public
from autointerp.report.markdown import code, escaped, fenced
from autointerp.report.summary import spoken
from autointerp.types import Json

_SHARED: Final = Path(__file__).parent


@cache
def markdown_template(path: Path) -> jinja2.Template:
    """A name that is not given is an error."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FileSystemLoader([path.parent, _SHARED]),
    )
    environment.filters |= {"md": escaped, "code": code, "fenced": fenced, "mean": mean_of, "short": _short}
    environment.filters |= {"publicly": public, "spoken": spoken, "dollars": dollars}
    return environment.get_template(path.name)


def mean_of(mean: MeanOver | Difference | Json | None) -> str:
    """0.665 [0.634, 0.696]; the interval where there is one."""
    if mean is None:
        return "–"
    value, low, high = (
        (mean.value, mean.low, mean.high)
        if isinstance(mean, MeanOver | Difference)
        else (mean["value"], mean["low"], mean["high"])
    )
    return f"{value:.3f}" + ("" if low is None or high is None else f" [{low:.3f}, {high:.3f}]")


def _short(mean: MeanOver | None) -> str:
    return "–" if mean is None else f"{mean.value:.2f}"


def dollars(spent: Spent) -> str:
    """0.1250, and how many requests have no known price."""
    known = f"{spent.cost:,.4f}" if spent.n_unpriced < spent.n_requests else ""
    if known and spent.n_unpriced:
        return f"{known} + {spent.n_unpriced:,} unpriced"
    return known or "unknown"
