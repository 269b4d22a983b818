"""Windows, and what pushing a feature does, of full size and from no run: for prompts that are tried or counted
before there is any."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from autointerp.effects import Arm, EffectTexts, Intervention, SceneTexts, Written
from autointerp.evidence import Evidence, Promoted
from autointerp.run import Run
from autointerp.splits import Select, Shown
from autointerp.types import Stratum, Window

_WORDS: Final = " the cat sat on a warm stone and looked at some birds that sang in an old tree".split(" ")[
    1:
]


_TOKENS: Final = tuple(f" {word}" for word in _WORDS[:10])


def example_evidence(run: Run, *, few: bool = False) -> Evidence:
    """Of full size, with everything that an explainer may need. `few`: no more pushes than a prompt shows."""
    sampling = run.recipe.sampling
    active, silent = example_windows(run, sampling.n_shown, sampling.n_shown_silent)
    select = Select(*example_windows(run, sampling.n_select, sampling.n_select))
    heldout, _ = example_windows(run, sampling.n_heldout, 0)
    settings = few_pushes(run.recipe.intervention) if few else run.recipe.intervention
    pushed = example_pushes(settings, active, select.active, heldout)
    return Evidence(
        shown=Shown(active, silent + example_windows(run, 0, sampling.n_shown_hard or 0, "same_token")[1]),
        select=select,
        directions=Promoted(_TOKENS, _TOKENS),
        effects=None if pushed is None else pushed.effects,
    )


def example_windows(
    run: Run, n_active: int, n_silent: int, stratum: Stratum = "random"
) -> tuple[tuple[Window, ...], tuple[Window, ...]]:
    """Windows of full width that could come from any run."""
    width = run.recipe.sampling.width
    texts = tuple(f" {_WORDS[n % len(_WORDS)]}" for n in range(width))
    fires = tuple(float(n % 16 == min(13, width - 1)) for n in range(width))
    ids = tuple(range(width))
    rolled = [texts[n:] + texts[:n] for n in range(len(_WORDS))]
    active = tuple(Window(f"{n:016x}", 0, ids, rolled[n % len(_WORDS)], fires, 0) for n in range(n_active))
    silent = tuple(
        Window(f"{n:016x}", 0, ids, rolled[n % len(_WORDS)], (0.0,) * width, None, stratum)
        for n in range(n_silent)
    )
    return active, silent


@dataclass(frozen=True, slots=True)
class Pushed:
    """What the intervene stage will record of a feature, in form and number."""

    effects: EffectTexts
    heldout: SceneTexts
    ablated: SceneTexts | None


def few_pushes(settings: Intervention) -> Intervention:
    """One prompt to choose by or to test on, and the strongest pushes."""
    return dataclasses.replace(settings, n_select=1, n_heldout=1, minimum=1, targets=settings.targets[-2:])


def example_pushes(
    settings: Intervention, shown: Sequence[Window], select: Sequence[Window], heldout: Sequence[Window]
) -> Pushed | None:
    """On prompts cut from these active windows, every strength found; None where there are too few prompts."""
    prompts = {
        "shown": _prompts(settings, shown, settings.n_shown),
        "select": _prompts(settings, select, settings.n_select),
        "heldout": _prompts(settings, heldout, settings.n_heldout),
    }
    if min(map(len, prompts.values())) < settings.minimum:
        return None
    targets = settings.targets
    behind = _prompts(settings, heldout, settings.n_heldout, behind=True)
    return Pushed(
        EffectTexts(
            _scene(settings, prompts["shown"], ("feature",), targets),
            _scene(settings, prompts["select"], ("feature",), targets),
        ),
        _scene(settings, prompts["heldout"], ("feature", "random", "other"), targets),
        _scene(settings, behind, ("ablated",), (None,)) if settings.ablate else None,
    )


def _prompts(
    settings: Intervention, active: Sequence[Window], n: int, *, behind: bool = False
) -> list[tuple[str, str]]:
    """(text, document) of windows cut before their first active token, `behind` it to ablate, where enough stands
    before the cut."""
    found: list[tuple[str, str]] = []
    for window in active:
        end = next((at for at, activation in enumerate(window.activations) if activation > 0), 0) + behind
        if end >= settings.shortest:
            found.append(("".join(window.texts[max(0, end - settings.longest) : end]), window.document))
    return found[:n]


def _scene(
    settings: Intervention,
    prompts: Sequence[tuple[str, str]],
    arms: Sequence[Arm],
    targets: Sequence[float | None],
) -> SceneTexts:
    """Texts begin with words of their own: two alike would be asked about once."""
    pushes: list[tuple[Arm, float | None]] = [(arm, target) for arm in arms for target in targets]

    def texts(number: int) -> tuple[str, ...]:
        words = "".join(f" {_WORDS[n % len(_WORDS)]}" for n in range(number, number + settings.n_tokens - 1))
        return tuple(f" {number}{words}" for _ in prompts)

    return SceneTexts(
        prompts=tuple(text for text, _ in prompts),
        documents=tuple(document for _, document in prompts),
        clean=texts(0),
        steered=tuple(
            Written(arm, target, "ok", target or 0.0, _TOKENS[: settings.n_changes], (), texts(number))
            for number, (arm, target) in enumerate(pushes, 1)
        ),
    )
