"""How fast a page of the explorer is, in Chromium through playwright, where both are there.

Every time is until the browser has painted what was asked for: two frames at most behind the work itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome")
_N_OPENED: Final = 40
_QUERIES: Final = ("river delta", "gradient", '"medical dosage"', "colour apology tag", "77", "qqqq")
"""Typed letter by letter: common words, a phrase, words together, an id, and what is nowhere."""
_ALL_S: Final = 300.0
"""Until a page must be there."""

_TIMES: Final = """async ({queries, n}) => {
  const painted = () => new Promise((go) => requestAnimationFrame(() => setTimeout(go)));
  const rested = async () => { await painted(); await painted(); };
  const timed = async (act) => {
    const began = performance.now();
    await act();
    await painted();
    return performance.now() - began;
  };
  const box = document.getElementById("search");
  const typed = (text) => { box.value = text; box.dispatchEvent(new Event("input", {bubbles: true})); };
  const found = {search: [], sort: [], open: [], whole: []};
  for (const query of queries)
    for (let end = 1; end <= query.length; end++) found.search.push(await timed(() => typed(query.slice(0, end))));
  typed("");
  const columns = document.querySelectorAll("#head button").length;
  for (let at = 0; at < columns; at++)
    for (let times = 0; times < 2; times++)
      found.sort.push(await timed(() => document.querySelectorAll("#head button")[at].click()));
  const pane = document.getElementById("pane");
  const many = Math.min(n, index.n); // to open what is open already shows nothing new
  for (let at = 0; at < many; at++) {
    const row = Math.floor(((at + 0.5) * index.n) / many);
    const began = performance.now();
    found.open.push(await timed(() => new Promise((go) => {
      const seen = new MutationObserver(() => { seen.disconnect(); go(); });
      seen.observe(pane, {childList: true});
      openRow(row);
    })));
    await rested();
    found.whole.push(performance.now() - began);
  }
  return found;
}"""


@dataclass(frozen=True, slots=True)
class Times:
    """Of many, in milliseconds."""

    median: float
    worst: float
    n: int

    @classmethod
    def of(cls, times: list[float]) -> Times:
        return cls(statistics.median(times), max(times), len(times))


@dataclass(frozen=True, slots=True)
class Browsed:
    """A page that was looked at. Milliseconds, bytes."""

    usable: float
    """From the start of loading until the table is there."""
    searchable: float
    """Until explanations are in memory, too: the first search needs them."""
    search: Times
    """A letter typed."""
    sort: Times
    open: Times
    """A feature from a file that was not read before, until what is in sight of it is painted. The one before it is
    there in full."""
    whole: Times
    """The same, until it is there in full."""
    heap: int
    """Behind all this, of the page's JavaScript."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Nobody looked."""

    why: str


def browse(page: Path) -> Browsed | Missing:
    """`page`: its index.html."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        return Missing(f"no browser: none of {', '.join(_BROWSERS)} is installed")
    if importlib.util.find_spec("playwright") is None:
        return Missing("no playwright: `make install-view` makes an environment that has it")
    # By name: `make install-view` has it, the environment that types are checked in has not.
    api: Any = importlib.import_module("playwright.sync_api")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=browser, args=["--no-sandbox", "--enable-precise-memory-info"]
        )
        found = _look(opened.new_page(viewport={"width": 1300, "height": 800}), page)
        opened.close()
        return found


def _look(page: Any, path: Path) -> Browsed:
    page.set_default_timeout(1e3 * _ALL_S)
    page.goto(path.resolve().as_uri())
    usable, searchable = _mark(page, "usable"), _mark(page, "searchable")
    page.wait_for_selector("#pane > *")
    times: dict[str, list[float]] = page.evaluate(_TIMES, {"queries": _QUERIES, "n": _N_OPENED})
    return Browsed(
        usable=usable,
        searchable=searchable,
        search=Times.of(times["search"]),
        sort=Times.of(times["sort"]),
        open=Times.of(times["open"]),
        whole=Times.of(times["whole"]),
        heap=page.evaluate("performance.memory.usedJSHeapSize"),
    )


def _mark(page: Any, name: str) -> float:
    """When the page says it, in milliseconds from its start. (`wait_for_function` would evaluate inside the page,
    which its policy forbids.)"""
    ends = time.monotonic() + _ALL_S
    while True:
        found = page.evaluate(f"performance.getEntriesByName('{name}')[0]?.startTime ?? null")
        if found is not None:
            return found
        if time.monotonic() > ends:
            raise TimeoutError(f"the page is not {name} after {_ALL_S:.0f} s")
        page.wait_for_timeout(20)
