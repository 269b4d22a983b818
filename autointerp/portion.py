"""One of several processes' part of a cache: every n-th shard of rows, and what fires on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from autointerp.errors import RecipeError

CHECK_TOKENS: Final = 20_000
"""Tokens on which a dictionary is checked before anything is kept: the run's first, whoever checks."""


@dataclass(frozen=True, slots=True)
class Portion:
    """Number `index` (from 0) of `of`."""

    index: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Portion:
        """`0/4` is the first of four. Raises RecipeError."""
        index, _, of = text.partition("/")
        if not (index.isascii() and index.isdigit() and of.isascii() and of.isdigit()):
            raise RecipeError(f"--shard {text}: expected i/n, e.g. 0/4, 1/4, 2/4 and 3/4 for four processes.")
        if not 0 <= int(index) < int(of):
            raise RecipeError(
                f"--shard {text}: of {of} there are 0/{of} to {max(int(of) - 1, 0)}/{of}, counted from 0."
            )
        return cls(int(index), int(of))

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"

    @property
    def folder(self) -> str:
        """Its folder in the run's."""
        return f"shard-{self.index}-of-{self.of}"

    def takes(self, number: int) -> bool:
        """Whether what fires on shard `number` of the rows is this one's to make."""
        return number % self.of == self.index


WHOLE: Final = Portion(0, 1)


def is_front(n_tokens: int, n_rows: int) -> bool:
    """Whether every portion keeps a shard's rows, because only so many corpus tokens in so many rows lie
    before it. The check of a dictionary, whose median norm decides what is masked, must be the same in all.
    (At most one token a row is not looked at.)"""
    return n_tokens - n_rows < CHECK_TOKENS
