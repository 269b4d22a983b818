"""Conversations -> token ids, through the tokenizer's own chat template.

The turn tokens that the template writes become special tokens; the same strings inside a message stay text,
so no corpus can end a turn. How:

1. Where no message holds the string of a special token (nearly always), the rendered text is tokenised as
   `apply_chat_template(tokenize=True)` would. The special ids that come out are counted against the strings.
2. Elsewhere the template is rendered with a sentinel in place of each message. What the template wrote then
   is known from what the messages hold; its special tokens are spelled by secret names, the messages put
   back, and all of it is tokenised by a copy of the tokenizer that knows special tokens by those names only.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final, cast

import jinja2
import orjson

from autointerp.errors import ModelError
from autointerp.subject.chat import Conversation, Turn
from autointerp.types import Json

# Noncharacters of Unicode: no text has them, no normaliser knows them. In a message they become U+FFFD.
_NAME_OPEN, _NAME_CLOSE, _SENTINEL_OPEN, _SENTINEL_CLOSE = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
_RESERVED = re.compile("[\ufdd0-\ufdd3]")
_SENTINEL = re.compile(f"{_SENTINEL_OPEN}([0-9]+){_SENTINEL_CLOSE}")

_TODAY: Final = datetime.datetime(2024, 7, 26)
"""Some templates write today's date; the same conversation must be the same tokens tomorrow. This day is what
those of Llama 3 take where they can't ask for another."""


class Refused(Exception):
    """(signal) The template doesn't take this conversation: roles that don't alternate, ..."""


class ChatTemplate:
    """A tokenizer's chat template. `tokenizer`: transformers' fast one."""

    def __init__(self, tokenizer: Any) -> None:
        """Raises ModelError where the tokenizer has none."""
        if not tokenizer.chat_template:
            raise ModelError(
                "the corpus holds conversations, but the model's tokenizer has no chat template to render "
                "them. Use a model with one (an instruct model), or name a field of plain text: "
                "--set corpus.chat=false --set corpus.field=..."
            )
        self._tokenizer = tokenizer
        added = cast(dict[int, Any], tokenizer.added_tokens_decoder)
        self._special = {str(token): number for number, token in added.items() if token.special}
        longest_first = sorted(self._special, key=len, reverse=True)
        self._found = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def token_ids(self, turns: Conversation) -> list[int]:
        """The conversation's ids, from what the template begins with to what it ends with, no prompt for an
        answer behind. Raises Refused."""
        if any(self._found.search(turn.content) for turn in turns):
            return self._guarded(turns)
        text = self._rendered(turns)
        options = {"add_special_tokens": False, "verbose": False}
        ids = cast(list[int], self._tokenizer(text, **options)["input_ids"])
        special = set(self._special.values())
        n_special = sum(token in special for token in ids)
        return ids if n_special == len(self._found.findall(text)) else self._guarded(turns)

    def _rendered(self, turns: Conversation) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            return str(
                self._tokenizer.apply_chat_template(messages, tokenize=False, strftime_now=_TODAY.strftime)
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            # Templates raise on purpose, and stumble over what their author didn't think of.
            raise Refused(str(error).strip().partition("\n")[0][:200] or type(error).__name__) from error

    def _guarded(self, turns: Conversation) -> list[int]:
        clean = [Turn(turn.role, _RESERVED.sub("\ufffd", turn.content)) for turn in turns]
        # Where a template strips a message, the white space around the sentinel goes with it.
        contents = [turn.content.strip() for turn in clean]
        stand_ins = [
            turn.content.replace(content, f"{_SENTINEL_OPEN}{number}{_SENTINEL_CLOSE}", 1)
            if content
            else turn.content
            for number, (turn, content) in enumerate(zip(clean, contents, strict=True))
        ]
        pieces = _SENTINEL.split(
            self._rendered(tuple(Turn(t.role, text) for t, text in zip(clean, stand_ins, strict=True)))
        )
        # Every second piece is the number of a message; the others are the template's own text.
        pieces[::2] = [self._found.sub(lambda match: self._names[match[0]], piece) for piece in pieces[::2]]
        pieces[1::2] = [contents[int(number)] for number in pieces[1::2]]
        encoded = self._copy.encode("".join(pieces), add_special_tokens=False)
        return [self._id_of.get(token, token) for token in cast(Sequence[int], encoded.ids)]

    @cached_property
    def _names(self) -> dict[str, str]:
        """Special token -> its secret name."""
        return {text: f"{_NAME_OPEN}{number}{_NAME_CLOSE}" for text, number in self._special.items()}

    @cached_property
    def _copy(self) -> Any:
        from tokenizers import Tokenizer

        content = cast(Json, orjson.loads(self._tokenizer.backend_tokenizer.to_str()))
        return Tokenizer.from_str(orjson.dumps(_renamed(content, self._names)).decode())

    @cached_property
    def _id_of(self) -> dict[int, int]:
        """The copy's ids of special tokens -> the tokenizer's."""
        return {self._copy.token_to_id(name): self._special[text] for text, name in self._names.items()}


def _renamed(content: Json, names: dict[str, str]) -> Json:
    """A tokenizer.json in which special tokens have other names, also where the model's vocabulary has them.
    Nothing is put around a text."""
    for added in content["added_tokens"]:
        added["content"] = names.get(added["content"], added["content"])
    model = content["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        entries = cast(dict[str, int], vocabulary).items()
        model["vocab"] = {names.get(text, text): number for text, number in entries}
    else:  # unigram: [token, score] in order of id
        model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
    unknown = model.get("unk_token")
    if unknown in names:
        model["unk_token"] = names[unknown]
    return content | {"post_processor": None, "truncation": None, "padding": None}
