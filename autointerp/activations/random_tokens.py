"""Sequences of random tokens: what a feature must be silent on if it means something.

The specificity control of LangFIR (arXiv 2604.03532): a feature that fires on token soup as it does on text
follows positions or single tokens, not what is said. Here they are a corpus (`corpus.path: random-tokens`),
and rows for a cache stage that measures how often features fire on them.

Every token is a keyed hash of (seed, document, position), so the same settings give the same sequences on any
machine, from any document on, and more tokens contain fewer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from autointerp import draw
from autointerp.activations.rows import Rows, row_dtype, rows_of

N_REFERENCE_TOKENS: Final = 1_000_000
"""Tokens of the reference corpus that are counted for `unigram`."""


@dataclass(frozen=True, slots=True)
class TokenUrn:
    """The tokens to draw from, each with its number of balls."""

    token_ids: NDArray[np.uint32]
    """[V], ascending."""
    cumulative: NDArray[np.int64]
    """[V]: balls of the tokens up to and including each."""

    @classmethod
    def uniform(cls, token_ids: NDArray[np.uint32]) -> TokenUrn:
        """One ball a token."""
        return cls(token_ids, np.arange(1, len(token_ids) + 1, dtype=np.int64))

    @classmethod
    def unigram(
        cls, token_ids: NDArray[np.uint32], token_lists: Iterable[tuple[int, NDArray[np.uint32]]]
    ) -> TokenUrn:
        """As many balls as a token is found in the first million tokens of these (document, ids); those
        that aren't among `token_ids` are left out. Nothing found: uniform."""
        counts = np.zeros(int(token_ids.max(initial=0)) + 1, np.int64)
        left = N_REFERENCE_TOKENS
        for _, ids in token_lists:
            ids = ids[:left]
            counts += np.bincount(ids[ids < len(counts)], minlength=len(counts))
            left -= len(ids)
            if left <= 0:
                break
        found = counts[token_ids]
        return cls(token_ids, np.cumsum(found)) if found.any() else cls.uniform(token_ids)

    def draw(self, seed: int, document: int, n_tokens: int) -> NDArray[np.uint32]:
        """[n_tokens], with replacement; the shorter sequence is the beginning of the longer."""
        key = draw.key(seed, "random-tokens", document)
        hashes = draw.mix(key, np.arange(n_tokens, dtype=np.uint64))
        balls = (draw.unit_interval(hashes) * float(self.cumulative[-1])).astype(np.int64)
        return self.token_ids[np.searchsorted(self.cumulative, balls, side="right")]


def drawable(tokenizer: Any) -> NDArray[np.uint32]:
    """[V], ascending: ids of the tokenizer's vocabulary without its special tokens, which text never holds."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    known = set(tokenizer.get_vocab().values()) - special - set(tokenizer.all_special_ids)
    return np.array(sorted(known), np.uint32)


def random_documents(
    urn: TokenUrn, *, length: int, seed: int, first: int = 0
) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """(document id, `length` token ids) without end, from document number `first` on. The id follows the
    tokens, as a text's follows its characters."""
    number = first
    while True:
        ids = urn.draw(seed, number, length)
        yield int.from_bytes(hashlib.blake2b(ids.astype("<u4").tobytes(), digest_size=8).digest()), ids
        number += 1


def random_rows(
    urn: TokenUrn, *, n_tokens: int, context_length: int, bos: int | None, seed: int, first: int = 0
) -> Rows:
    """`n_tokens` random tokens (BOS not counted) as rows, one document each, from document number `first` on;
    the last one may be short.

    The same as the rows of a run on `random-tokens` with these settings.
    """
    room = context_length - (bos is not None)
    n_rows = -(-n_tokens // room)
    rows = np.zeros(n_rows, row_dtype(context_length))
    source = random_documents(urn, length=room, seed=seed, first=first)
    for number, (document, ids) in zip(range(n_rows), source, strict=False):
        rows[number] = rows_of(document, ids[: n_tokens - number * room], context_length, bos)[0]
    return rows
