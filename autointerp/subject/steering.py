"""The subject model, pushed at a site while it reads a prompt's last token and writes on.

    prompts without their last token --> keys and values, once
    last token + push  (R rows: prompts x pushes) --> next-token distribution --> token --> the same again

A push acts from the last prompt token on, so all before it is the same for every push and is read once. What
is added, strength times a decoder row, lands on the model's own activation, not on a reconstruction: the
dictionary's error stays where it is, as if the feature's code alone had grown by the strength.

Nothing depends on which other features are steered: a batch holds one feature's prompts.

Shapes: P prompts, R rows, S pushes, T tokens, V tokens of the vocabulary, O = what a decoder row writes, one
site behind the other; D its width at one site.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from autointerp.dictionaries.encode import Codes, Encoder
from autointerp.errors import SiteError
from autointerp.subject.model import See, Subject
from autointerp.subject.sites import width_at
from autointerp.types import Site, TokenEffects

ROWS: Final = 256
"""Rows at once, whatever the prompts: their keys and values are copied for each."""
ELEMENTS: Final = 2**27
"""Of a tensor [R, V]: half a gigabyte."""
SIGNIFICANT: Final = 4
"""Digits of a change that are kept."""


class Pushes(Protocol):
    """Ways of changing the model, S of them."""

    @property
    def n(self) -> int: ...

    def on(self, subject: Subject, push_R: Tensor) -> AbstractContextManager[None]:
        """Within, row r of a batch feels push number `push_R[r]`, at every token that goes through."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Adding:
    """Vectors added at sites."""

    sites: tuple[Site, ...]
    push_SO: Tensor

    @property
    def n(self) -> int:
        return len(self.push_SO)

    def on(self, subject: Subject, push_R: Tensor) -> AbstractContextManager[None]:
        widths = [width_at(site, subject.architecture) for site in self.sites]
        of_site = dict(zip(self.sites, self.push_SO[push_R].split(widths, dim=1), strict=True))

        def add(site: Site, x_RTD: Tensor) -> Tensor:
            return x_RTD + of_site[site].to(x_RTD.device, x_RTD.dtype)[:, None]

        return subject.hooked({}, dict.fromkeys(self.sites, add))


@dataclass(frozen=True, slots=True)
class Ablating:
    """One feature's own contribution taken away, on every token where it fires: what it adds to the dictionary's
    output, and nothing else."""

    encoder: Encoder
    column: int
    read: Site
    write: Site
    """The same in an autoencoder."""

    @property
    def n(self) -> int:
        return 1

    def on(self, subject: Subject, push_R: Tensor) -> AbstractContextManager[None]:
        if self.read == self.write:
            return subject.hooked({}, {self.read: lambda _, x_RTD: x_RTD - self._contribution(x_RTD)})
        passed: list[Tensor] = []

        def keep(_: Site, x_RTD: Tensor) -> None:
            passed[:] = [x_RTD]

        def subtract(_: Site, y_RTO: Tensor) -> Tensor:
            if not passed:
                raise SiteError(f"'{self.write}' is written before '{self.read}' is read.")
            return y_RTO - self._contribution(passed[0]).to(y_RTO.device, y_RTO.dtype)

        return subject.hooked({self.read: keep}, {self.write: subtract})

    def _contribution(self, x_RTD: Tensor) -> Tensor:
        """[R, T, O]: the difference that the feature's code makes to the decoded vector, so that whatever the
        dictionary does to its input and output is in it."""
        x_ND = x_RTD.reshape(-1, x_RTD.shape[-1]).to(self.encoder.device, torch.float32)
        codes = self.encoder.encode(x_ND)
        own = codes.feature_M == self.column
        alone = Codes(codes.token_M[own], codes.feature_M[own], codes.value_M[own])
        none = Codes(codes.token_M[:0], codes.feature_M[:0], codes.value_M[:0])
        added_NO = self.encoder.decode(alone, x_ND) - self.encoder.decode(none, x_ND)
        return added_NO.view(*x_RTD.shape[:-1], -1).to(x_RTD.device, x_RTD.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Begun:
    """Prompts, read up to their last tokens."""

    last_P: Tensor
    """Their last tokens."""
    mask_PT: Tensor
    """int64: 1 where a prompt has a token, its last one included; shorter ones are padded on the left."""
    cache: Any
    """transformers' keys and values of all but the last tokens; never written to."""
    clean_PV: Tensor
    """Natural-log probabilities of the next token without a push."""
    norm: float
    """Median over prompts of the norm of the activations at the last token, all sites of the pushes together."""

    def __len__(self) -> int:
        return len(self.last_P)


class Steering:
    """A subject that is pushed at `sites`."""

    def __init__(
        self, subject: Subject, sites: tuple[Site, ...], n_tokens: int, rows_at_once: int = ROWS
    ) -> None:
        """`n_tokens`: ids the tokenizer has. What the model gives ids beyond, which are padding, is left out of
        every distribution. Of `rows_at_once` results depend only as matrix products of another shape round."""
        self._subject = subject
        self._sites = sites
        self._n_tokens = n_tokens
        self.rows_at_once = max(1, min(rows_at_once, ELEMENTS // n_tokens))

    @torch.inference_mode()
    def begin(self, prompts: Sequence[Sequence[int]]) -> Begun:
        """Prompts of two tokens or more each."""
        longest = max(map(len, prompts))
        ids_PT = torch.zeros(len(prompts), longest, dtype=torch.int64)
        mask_PT = torch.zeros_like(ids_PT)
        for number, ids in enumerate(prompts):
            ids_PT[number, longest - len(ids) :] = torch.tensor(ids)
            mask_PT[number, longest - len(ids) :] = 1
        _, cache = self._subject.step(ids_PT[:, :-1], mask_PT[:, :-1])
        begun = Begun(ids_PT[:, -1], mask_PT, cache, torch.empty(0), 0.0)
        passed: dict[Site, Tensor] = {}
        see: dict[Site, See] = dict.fromkeys(self._sites, lambda site, x_PTD: passed.update({site: x_PTD}))
        with self._subject.hooked(see, {}):
            clean_PV = self._next(begun, torch.arange(len(prompts)))[0]
        at_last = [passed[site][:, -1].float().cpu() for site in self._sites]
        norm = float(torch.cat(at_last, dim=1).norm(dim=1).median())
        return Begun(begun.last_P, mask_PT, cache, clean_PV, norm)

    @torch.inference_mode()
    def kls(self, begun: Begun, pushes: Pushes) -> list[float]:
        """Of each push the mean over prompts of KL(clean || pushed) of the next token, nats."""
        kl_SP = torch.zeros(pushes.n, len(begun), dtype=torch.float64)
        for push_R, prompt_R in self._batches(pushes.n, len(begun)):
            with pushes.on(self._subject, push_R):
                logp_RV = self._next(begun, prompt_R)[0]
            clean_RV = begun.clean_PV[prompt_R]
            kl_SP[push_R, prompt_R] = (clean_RV.exp() * (clean_RV - logp_RV)).sum(dim=1).double().cpu()
        return kl_SP.mean(dim=1).tolist()

    @torch.inference_mode()
    def changes(self, begun: Begun, pushes: Pushes, n: int) -> list[tuple[TokenEffects, TokenEffects]]:
        """Of each push the n tokens whose log-probability rises most, the mean over prompts, and the n whose
        falls most; of equal ones the lowest id."""
        sum_SV = begun.clean_PV.new_zeros(pushes.n, self._n_tokens)
        for push_R, prompt_R in self._batches(pushes.n, len(begun)):
            with pushes.on(self._subject, push_R):
                logp_RV = self._next(begun, prompt_R)[0]
            sum_SV.index_add_(0, push_R.to(sum_SV.device), logp_RV - begun.clean_PV[prompt_R])
        return [(_most(mean_V, n), _most(-mean_V, n, sign=-1)) for mean_V in sum_SV / len(begun)]

    @torch.inference_mode()
    def continuations(
        self, begun: Begun, pushes: Pushes | None, uniform_PT: Tensor, on_batch: Callable[[], None]
    ) -> list[list[list[int]]]:
        """[S][P][T] token ids (without pushes S is 1): a token is where the cumulative distribution, in the
        order of ids, passes `uniform_PT` (float64 in [0, 1)), so that prompts with the same numbers part
        only where their distributions do. `on_batch` may raise to stop."""
        n_pushes, n_tokens = 1 if pushes is None else pushes.n, uniform_PT.shape[1]
        found_SPT = torch.zeros(n_pushes, len(begun), n_tokens, dtype=torch.int64)
        for push_R, prompt_R in self._batches(n_pushes, len(begun)):
            on_batch()
            step: tuple[Tensor, Any] | None = None
            mask_RT, token_R = begun.mask_PT[prompt_R], begun.last_P[prompt_R]
            for at in range(n_tokens):
                cache = _selected(begun.cache, prompt_R) if step is None else step[1]
                if pushes is None:
                    step = self._step(token_R, mask_RT, cache)
                else:
                    with pushes.on(self._subject, push_R):
                        step = self._step(token_R, mask_RT, cache)
                token_R = _drawn(step[0], uniform_PT[prompt_R, at])
                found_SPT[push_R, prompt_R, at] = token_R
                mask_RT = torch.cat([mask_RT, mask_RT.new_ones(len(mask_RT), 1)], dim=1)
        return found_SPT.tolist()

    def _batches(self, n_pushes: int, n_prompts: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(push, prompt) of each row, some at a time."""
        push_N = torch.arange(n_pushes).repeat_interleave(n_prompts)
        prompt_N = torch.arange(n_prompts).repeat(n_pushes)
        yield from zip(push_N.split(self.rows_at_once), prompt_N.split(self.rows_at_once), strict=True)

    def _next(self, begun: Begun, prompt_R: Tensor) -> tuple[Tensor, Any]:
        return self._step(begun.last_P[prompt_R], begun.mask_PT[prompt_R], _selected(begun.cache, prompt_R))

    def _step(self, token_R: Tensor, mask_RT: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Natural-log probabilities [R, V], float32, and the cache with these tokens in it."""
        logits_RV, cache = self._subject.step(token_R[:, None], mask_RT, cache)
        return logits_RV[:, : self._n_tokens].float().log_softmax(dim=1), cache


def _selected(cache: Any, prompt_R: Tensor) -> Any:
    """The cache of these prompts, a row each. Layers are copied flatly: their tensors are replaced by longer
    ones, never written to."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in chosen.layers:
        if layer.get_seq_length():
            layer.batch_select_indices(prompt_R.to(layer.keys.device))
    return chosen


def _drawn(logp_RV: Tensor, uniform_R: Tensor) -> Tensor:
    """[R] token ids, on the CPU."""
    cdf_RV = logp_RV.double().exp().cumsum(dim=1)
    at_R1 = uniform_R[:, None].to(cdf_RV.device) * cdf_RV[:, -1:]
    return torch.searchsorted(cdf_RV, at_R1, right=True)[:, 0].clamp_max(logp_RV.shape[1] - 1).cpu()


def _most(change_V: Tensor, n: int, sign: int = 1) -> TokenEffects:
    """The n largest; `sign` is given back to them."""
    order_V = torch.argsort(change_V, descending=True, stable=True)[:n]
    kept = (float(f"{sign * value:.{SIGNIFICANT}g}") for value in change_V[order_V].tolist())
    return TokenEffects(tuple(order_V.tolist()), tuple(kept))
