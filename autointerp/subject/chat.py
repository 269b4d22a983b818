"""Conversations: lists of messages in a corpus, as Hugging Face chat templates and ShareGPT write them.

    {"messages": [{"role": "user", "content": "Hi"}, ...]}
    {"conversations": [{"from": "human", "value": "Hi"}, ...]}

What is kept of a message is who speaks and what is said. Rendering: `chat_template.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from autointerp.errors import CorpusError

ROLE = re.compile(r"[\w .-]{1,64}", re.ASCII)
"""What a role may be: templates write it between turn tokens, so it must not be able to hold one."""

_SHAREGPT: Final = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_response": "tool",
    "observation": "tool",
}
"""Names of speakers in ShareGPT's format -> roles of chat templates; others are roles already."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message."""

    role: str
    """`user`, `assistant`, `system`, `tool`, or what else a template knows."""
    content: str


Conversation = tuple[Turn, ...]


def canonical(turns: Conversation) -> str:
    """JSON of the messages with these two keys in this order, no spaces, no escapes but JSON's own."""
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    return json.dumps(messages, ensure_ascii=False, separators=(",", ":"))


def conversation_in(value: object, place: str) -> Conversation:
    """The messages of a field: a list of objects, or (as datasets' sequences come) an object of lists.

    Contents may be null, a text, or a list of parts of which only texts are known. Other keys of a message
    (names, tool calls, weights) are left out. Raises CorpusError.
    """
    if isinstance(value, Mapping):
        columns = cast(Mapping[str, Any], value)
        if not all(isinstance(column, list) for column in columns.values()):
            raise CorpusError(f"{place} holds an object, not a list of messages. {_EXPECTED}")
        rows = zip(*columns.values(), strict=False)
        value = [dict(zip(columns, row, strict=True)) for row in rows]
    if not isinstance(value, list):
        raise CorpusError(f"{place} holds a {type(value).__name__}, not a list of messages. {_EXPECTED}")
    return tuple(_turn(message, place) for message in cast(list[object], value))


_EXPECTED: Final = "Expected: [{role, content}, ...] or [{from, value}, ...]."


def _turn(message: object, place: str) -> Turn:
    if not isinstance(message, Mapping):
        raise CorpusError(f"{place} holds a {type(message).__name__} as a message. {_EXPECTED}")
    fields = cast(Mapping[str, Any], message)
    if "role" in fields and "content" in fields:
        role, content = fields["role"], fields["content"]
    elif "from" in fields and "value" in fields:
        role, content = _SHAREGPT.get(str(fields["from"]), fields["from"]), fields["value"]
    else:
        raise CorpusError(f"{place} holds a message with {', '.join(fields) or 'no keys'}. {_EXPECTED}")
    if not isinstance(role, str) or not ROLE.fullmatch(role):
        raise CorpusError(
            f"{place} holds a message of role {str(role)[:80]!r}: letters, digits, spaces, '_', '.' and '-' "
            "are expected, 64 at most."
        )
    return Turn(role, _text(content, place))


def _text(content: object, place: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_part(part, place) for part in cast(list[object], content))
    raise CorpusError(f"{place} holds a message whose content is a {type(content).__name__}, not a text.")


def _part(part: object, place: str) -> str:
    if isinstance(part, Mapping):
        fields = cast(Mapping[str, Any], part)
        if fields.get("type") == "text" and isinstance(fields.get("text"), str):
            return fields["text"]
        raise CorpusError(f"{place} holds a part of type {fields.get('type')!r}: only texts are read.")
    raise CorpusError(f"{place} holds a message with a {type(part).__name__} as a part: only texts are read.")
