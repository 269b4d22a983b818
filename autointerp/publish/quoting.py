"""How much of a window's text is quoted, where the corpus may not be passed on."""

from __future__ import annotations

from collections.abc import Sequence


def visible(texts: Sequence[str], activations: Sequence[float], most: int | None) -> slice:
    """The tokens that are quoted: around the strongest one (of a silent window the middle one), as many as have
    at most so many characters together. None where that one alone has more.

    The other tokens keep their activation and lose their text, so that places in the window stay what they are.
    """
    if most is None:
        return slice(0, len(texts))
    maximum = max(activations, default=0.0)
    middle = list(activations).index(maximum) if maximum > 0 else len(texts) // 2
    n_left = most - len(texts[middle]) if texts else 0
    if n_left < 0 or not texts:
        return slice(0, 0)
    begin, end = middle, middle + 1
    grew = True
    while grew:
        grew = False
        if end < len(texts) and len(texts[end]) <= n_left:
            n_left -= len(texts[end])
            end, grew = end + 1, True
        if begin > 0 and len(texts[begin - 1]) <= n_left:
            begin -= 1
            n_left -= len(texts[begin])
            grew = True
    return slice(begin, end)
