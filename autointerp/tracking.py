"""A run's totals on Weights & Biases, where `resources.wandb` names a project.

A thread of its own speaks to W&B, every half minute and when the run ends, so that a server which is slow or away
costs the run nothing. Whatever goes wrong there is said once; the run goes on without it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Final

import orjson

from autointerp.errors import PackageMissing
from autointerp.files import write_atomically
from autointerp.progress import Progress
from autointerp.publish.local import public_recipe
from autointerp.recipe import Recipe
from autointerp.report.summary import summarise
from autointerp.run import Run
from autointerp.stages.spent import spent_in_all

KEPT: Final = "wandb.json"
"""In the run's folder: the name that W&B has for it, so that resuming goes on there."""
EVERY_S: Final = 30.0
LAST_S: Final = 60.0
"""The run is done, and waits so long for W&B to take the end of it."""
_SHARE: Final = 0.02
"""Of the time at most goes into adding up usage, however much of it there is."""


def check_tracking(recipe: Recipe) -> None:
    """Raises PackageMissing where W&B is asked for and not installed."""
    if recipe.resources.wandb is not None and find_spec("wandb") is None:
        raise PackageMissing(
            f"resources.wandb names the project '{recipe.resources.wandb}', and wandb is not installed: pip install "
            f"'.[wandb]', or leave it out: --set resources.wandb=null"
        )


@contextmanager
def tracked(run: Run, progress: Progress) -> Generator[Progress]:
    """`progress`, told to W&B too; itself where the recipe names no project. Raises PackageMissing."""
    project = run.recipe.resources.wandb
    if project is None:
        yield progress
        return
    check_tracking(run.recipe)
    teller = _Teller(run, project)
    told = _Tracked(progress, teller)
    teller.start()
    try:
        yield told
        teller.is_whole = True
    finally:
        teller.ending.set()
        teller.join(LAST_S)
        while teller.is_adding and teller.is_alive():
            teller.join(LAST_S)  # means over many features take their time, which is ours, not W&B's
        if teller.is_alive():
            progress.note(f"wandb took no answer in {LAST_S:g} s; the run itself is complete")
        told.check()


class _Tracked:
    """Progress that counts for a teller."""

    def __init__(self, progress: Progress, teller: _Teller) -> None:
        self._progress, self._teller, self._stage = progress, teller, ""

    def begin(self, stage: str, total: int, unit: str, done: int = 0) -> None:
        self._stage = stage
        self._teller.counts[f"{stage}/{unit}"] = total
        self._teller.counts[f"{stage}/done"] = done
        self._progress.begin(stage, total, unit, done)
        self.check()

    def advance(self, n: int = 1, stage: str = "") -> None:
        self._teller.counts[f"{stage or self._stage}/done"] += n
        self._progress.advance(n, stage)

    def note(self, text: str) -> None:
        self._progress.note(text)

    def end(self) -> None:
        self._progress.end()
        self.check()

    def check(self) -> None:
        """Says once what went wrong: here, since progress is told from one thread alone."""
        if self._teller.fault:
            self._progress.note(f"wandb: {self._teller.fault} The run goes on without it.")
            self._teller.fault = ""


class _Teller(threading.Thread):
    """What speaks to W&B."""

    def __init__(self, run: Run, project: str) -> None:
        super().__init__(name="wandb", daemon=True)  # a hanging one does not keep the process
        self._run, self._project = run, project
        self.counts: dict[str, int] = {}
        self.ending = threading.Event()
        self.is_whole = False
        """Whether the run came to its end."""
        self.is_adding = False
        """Whether it is adding up scores."""
        self.fault = ""

    def run(self) -> None:
        try:
            self._tell()
        except Exception as error:  # noqa: BLE001  another's client and server may raise anything: the run goes on
            self.fault = " ".join(f"{type(error).__name__}: {error}".split())

    def _tell(self) -> None:
        there = self._begun()
        pause = EVERY_S
        while not self.ending.wait(pause):
            began = time.monotonic()
            there.log(self._totals())
            pause = max(EVERY_S, (time.monotonic() - began) / _SHARE)
        there.log(self._totals())
        if self.is_whole:
            self.is_adding = True
            scores = self._scores()
            self.is_adding = False
            there.summary.update(scores)
        there.finish(exit_code=0 if self.is_whole else 1)

    def _begun(self) -> Any:
        import wandb  # type: ignore[import-not-found]  # an extra; takes seconds to load

        entity, _, project = self._project.rpartition("/")
        kept = self._run.path / KEPT
        kept.parent.mkdir(parents=True, exist_ok=True)
        before = orjson.loads(kept.read_bytes()) if kept.is_file() else {}
        there: Any = wandb.init(
            entity=entity or None,
            project=project,
            name=self._run.path.resolve().name,
            id=before.get("id") if before.get("project") == self._project else None,
            resume="allow",
            reinit="create_new",  # a process may make several runs: each beside the others
            dir=str(self._run.path),
            config=public_recipe(self._run.recipe),
            mode=None if _is_logged_in(wandb) else "offline",
            settings=wandb.Settings(console="off", silent=True),  # the terminal is ours
        )
        write_atomically(kept, orjson.dumps({"project": self._project, "id": there.id}))
        return there

    def _totals(self) -> dict[str, float]:
        total = spent_in_all(self._run)
        return dict(self.counts) | {
            "requests": total.n_requests,
            "tokens in": total.prompt_tokens,
            "tokens out": total.completion_tokens,
            "US dollars": total.cost,
        }

    def _scores(self) -> dict[str, float]:
        """Means over features with their intervals, and those of controls."""
        found: dict[str, float] = {}
        for dictionary in self._run.recipe.dictionaries:
            summary = summarise(self._run, dictionary)
            for score in summary.scores:
                place = f"score/{dictionary}/{score.explainer}/{score.scorer}"
                found[f"{place}/features"] = score.n_scored
                if score.value is not None:
                    ends = {"": score.value.value, "/low": score.value.low, "/high": score.value.high}
                    found |= {f"{place}{end}": value for end, value in ends.items() if value is not None}
            for one in summary.controls:
                found[f"control/{dictionary}/{one.kind}/{one.explainer}/{one.scorer}"] = one.control.value
        return found


def _is_logged_in(wandb: Any) -> bool:
    """Else the client would ask for a key on the terminal. Without one it writes files for `wandb sync`."""
    return bool(os.environ.get("WANDB_MODE") or wandb.login(prompt=False, verify=False))
