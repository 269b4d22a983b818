"""Before anything costly: does the LLM answer, is there room on the disk, what will it take."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from autointerp import plugins
from autointerp.asking import Asking
from autointerp.errors import DiskFull, Refused, Unreadable
from autointerp.explainers.plain import Plain
from autointerp.journal import Journal
from autointerp.llm.replay import Replayed
from autointerp.recipe import PluginSection, instance
from autointerp.resolve import Resolved
from autointerp.run import Run
from autointerp.stages.asked import Asked
from autointerp.types import Shown, Window

_BYTES_A_FIRING: Final = 8
_BYTES_A_TOKEN: Final = 4
_BYTES_A_FEATURE: Final = 60_000  # windows, sample, explanation, trials and replies, generously
_UNKNOWN_L0: Final = 100
"""Firings a token assumed of a dictionary whose selector doesn't say."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will take, before it starts."""

    n_tokens: int
    context_length: int
    n_features: int
    """Over all dictionaries."""
    n_requests: int
    """LLM requests, if every feature has enough windows and every answer is readable."""
    disk_bytes: int


def plan(run: Run, resolved: Resolved) -> Plan:
    recipe = run.recipe
    firings = sum(found.spec.k or _UNKNOWN_L0 for found in resolved.dictionaries.values())
    n_features = sum(len(run.asked(name)) for name in recipe.dictionaries)
    n_windows = recipe.sampling.n_heldout + recipe.sampling.n_heldout_silent
    explained = sum(_asks(run, "explainer", "explainers", section) for section in recipe.explainers.values())
    a_scorer = [
        _asks(run, "judge", "scorers", section) * -(-n_windows // _packing(section))
        for section in recipe.scorers.values()
    ]
    a_feature = explained + len(recipe.explainers) * sum(a_scorer)
    assert recipe.cache.context_length is not None  # filled by `resolve`
    return Plan(
        n_tokens=recipe.cache.n_tokens,
        context_length=recipe.cache.context_length,
        n_features=n_features,
        n_requests=n_features * a_feature,
        disk_bytes=recipe.cache.n_tokens * (_BYTES_A_TOKEN + _BYTES_A_FIRING * firings)
        + n_features * _BYTES_A_FEATURE,
    )


def _asks(run: Run, role: str, kind: plugins.Kind, section: PluginSection) -> bool:
    """Whether a plug-in's work makes requests that cost something."""
    llm: PluginSection | None = getattr(run.recipe.llms, role)
    return instance(kind, section).needs_llm and llm is not None and instance("llm", llm).paid


def _packing(section: PluginSection) -> int:
    """Windows a request of a scorer; one that doesn't say asks about all at once."""
    return getattr(instance("scorers", section), "windows_per_prompt", 1_000_000)


def check_disk(run: Run, planned: Plan) -> None:
    """Raises DiskFull where the plan needs more room than there is."""
    run.path.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(run.path).free
    used = sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file())
    if planned.disk_bytes - used > free:
        raise DiskFull(
            f"the run needs about {planned.disk_bytes / 1e9:.1f} GB, but {run.path} has {free / 1e9:.1f} GB "
            f"free. Use another --out, or fewer tokens: --set cache.n_tokens=..."
        )


async def check_llms(run: Run, llms: Mapping[str, Asked]) -> None:
    """One real prompt to each LLM; its answer is kept like any other. Raises LLMErrors."""
    for asked in {id(asked.llm): asked for asked in llms.values()}.values():
        if not asked.paid:
            continue
        journal = Journal(run.path / "requests" / "preflight", None)
        usage = Journal(run.path / "usage" / "preflight", None)
        remembered = Replayed(asked.llm, journal, usage, "preflight")
        try:
            asking = Asking(remembered, "preflight", run.recipe.seed, run.prompts)
            # What it says doesn't matter here, only that it says something.
            with contextlib.suppress(Unreadable, Refused):
                await Plain(max_tokens=64).explain(_example(), asking)
        finally:
            remembered.close_files()


def _example() -> Shown:
    """Two windows that could come from any run."""
    texts = (" the", " cat", " sat", " on", " the", " mat")
    active = Window("0" * 16, 0, tuple(range(6)), texts, (0.0, 3.0, 0.0, 0.0, 0.0, 0.0), band=0)
    silent = Window("1" * 16, 0, tuple(range(6)), texts[::-1], (0.0,) * 6, stratum="random")
    return Shown((active,), (silent,))
