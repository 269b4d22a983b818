"""The subject model's tokenizer, and documents through it. No torch of our own (transformers loads it)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from autointerp.errors import CorpusError, ModelError
from autointerp.progress import Stop
from autointerp.subject.chat import Conversation
from autointerp.subject.chat_template import ChatTemplate, Refused
from autointerp.subject.corpus import Document
from autointerp.subject.model_files import ModelFiles
from autointerp.subject.tokenizer_files import TokenizerFiles

_DOCUMENTS_AT_ONCE: Final = 256


def load_tokenizer(files: ModelFiles | TokenizerFiles) -> Any:
    """transformers' fast tokenizer of a model, its files fetched first for a hub model. `Any`: its class
    depends on the model, and its methods are barely typed. Raises ModelError where there is none."""
    from transformers import AutoTokenizer

    folder = files.with_tokenizer()
    load = cast(Any, AutoTokenizer).from_pretrained
    try:
        tokenizer = load(str(folder), use_fast=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise ModelError(f"'{files.name}' has no tokenizer that transformers can load: {error}") from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"'{files.name}' has only a slow tokenizer ({type(tokenizer).__name__}). Convert it: a folder "
            f"with tokenizer.json is needed."
        )
    return tokenizer


def bos_of(tokenizer: Any) -> int:
    """The token put before each row. Raises ModelError where the tokenizer has none."""
    for name in ("bos_token_id", "eos_token_id"):
        if (token := getattr(tokenizer, name, None)) is not None:
            return int(token)
    raise ModelError(
        "contexts are to begin with BOS, as the checkpoint says or, where it says nothing, as is usual; but the "
        "model's tokenizer has neither a BOS nor an EOS token. If the dictionary was trained without: --set "
        "cache.prepend_bos=false."
    )


class Tokenised(Iterator[tuple[int, NDArray[np.uint32]]]):
    """(document id as a number, token ids) of documents, in batches for the tokenizer's sake.

    `bos`: what rows begin with, or None; a chat template's own at the front is dropped where rows have it.
    A conversation that the template refuses has no tokens, and is counted. Raises, on the way, Interrupted,
    ModelError for conversations without a template, and what `source` raises: behind the last document that
    it gave.
    """

    def __init__(self, source: Iterator[Document], tokenizer: Any, bos: int | None, stop: Stop) -> None:
        self._tokenizer, self._bos, self._stop = tokenizer, bos, stop
        self._template: ChatTemplate | None = None
        self._lists = self._all(source)
        self.n_refused = 0
        self._refusal = ""

    def refused(self) -> str | None:
        """A sentence part about conversations that the template doesn't take; None where it takes all."""
        if not self.n_refused:
            return None
        return f"the chat template refuses {self.n_refused:,} conversations, the first: {self._refusal}"

    def __next__(self) -> tuple[int, NDArray[np.uint32]]:
        return next(self._lists)

    def _all(self, source: Iterator[Document]) -> Iterator[tuple[int, NDArray[np.uint32]]]:
        batch: list[Document] = []
        failure: CorpusError | None = None
        while failure is None:
            try:
                document = next(source, None)
            except CorpusError as error:
                failure, document = error, None
            if document is not None:
                batch.append(document)
            if document is None or len(batch) >= _DOCUMENTS_AT_ONCE:
                self._stop.check()
                yield from self._batch(batch)
                batch = []
            if document is None:
                break
        if failure is not None:
            raise failure

    def _batch(self, batch: list[Document]) -> Iterator[tuple[int, NDArray[np.uint32]]]:
        texts = [document.text for document in batch if document.turns is None]
        encoded = iter(self._encoded(texts) if texts else [])
        for document in batch:
            ids = next(encoded) if document.turns is None else self._conversation(document.turns)
            yield int(document.id, 16), np.asarray(ids, np.uint32)

    def _encoded(self, texts: list[str]) -> list[list[int]]:
        # The corpus is data: its "<|endoftext|>" is text, not the token that ends a document.
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        try:
            return self._tokenizer(texts, **options)["input_ids"]
        except Exception as error:
            if type(error) is not Exception:  # errors of the tokenizers library have no class of their own
                raise
            if len(texts) > 1:  # one of them is meant, so alone it fails as well
                return [self._encoded([text])[0] for text in texts]
            raise CorpusError(
                f"the model's tokenizer can't take a document that begins with {texts[0][:60]!r}: {error}. Is this "
                f"text of the kind that the model was made for?"
            ) from error

    def _conversation(self, turns: Conversation) -> list[int]:
        self._template = self._template or ChatTemplate(self._tokenizer)
        try:
            ids = self._template.token_ids(turns)
        except Refused as refused:
            self.n_refused += 1
            self._refusal = self._refusal or str(refused)
            return []
        return ids[1:] if ids and ids[0] == self._bos else ids
