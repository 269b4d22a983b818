"""The seed that is sent with a request: one rule for all backends."""

from __future__ import annotations

from autointerp import draw
from autointerp.llm.exchange import Request


def seed_of(request: Request) -> int | None:
    """That of the request; where texts are drawn and this is one more answer (`index`), one made of both, below
    2**31, which every server takes. An engine that keeps a seed a request says the same to the same: without this
    five candidates would be paid and one be had. None: the engine draws as it likes."""
    if request.seed is None or not request.index or not request.temperature:
        return request.seed
    return draw.key(request.seed, "answer", request.index) >> 33
