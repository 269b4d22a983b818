"""What a model and its server take and cost: looked up in `dialects.yaml`, overruled by the recipe.

A new run writes what was looked up into its recipe (`written_out`), so that a later table changes no answer
of a run that has begun. Prices are looked up each time: they change no answer.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol, runtime_checkable

import pydantic
import yaml

from autointerp.errors import LLMStopped
from autointerp.llm.exchange import Prices, Reply, Usage

OPENAI: Final = "https://api.openai.com/v1"
OWN_TABLE: Final = "AUTOINTERP_DIALECTS"
"""Environment variable: a table of the user's own."""

Constrain = Literal["none", "structured_outputs", "response_format"]
MaxTokensField = Literal["max_tokens", "max_completion_tokens"]


THOUGHTS: Final = ("reasoning", "reasoning_effort", "thinking")
"""Fields that say how much a model thinks, as OpenRouter, OpenAI and Anthropic call them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How a model on a server is asked. What each option means stands at `openai.Openai`."""

    system_role: bool = True
    max_tokens_field: MaxTokensField = "max_tokens"
    constrain: Constrain = "none"
    logprobs: bool = True
    """Log-probabilities of the answer's tokens are given where they are asked for."""
    extra_body: Mapping[str, Any] = field(default_factory=dict[str, Any])
    cached_from: int | None = None
    """Tokens that a prompt must have to be cached; 0: never is; None: nobody knows."""
    prices: Prices | None = None

    def without(self, name: str) -> Dialect | None:
        """The same for a server that refuses the field of this name, or a `system` turn; None if it is the
        same."""
        changed: dict[str, Any] = {
            "system": {"system_role": False},
            "logprobs": {"logprobs": False},
            "top_logprobs": {"logprobs": False},
            "max_tokens": {"max_tokens_field": "max_completion_tokens"},
            "max_completion_tokens": {"max_tokens_field": "max_tokens"},
            "response_format": {"constrain": "none"},
            "structured_outputs": {"constrain": "none"},
            "reasoning": {"extra_body": {**self.extra_body, **dict.fromkeys(self._thoughts(), None)}},
        }.get(name, {"extra_body": {**self.extra_body, name: None}})
        other = dataclasses.replace(self, **changed)
        return None if other == self else other

    def sends(self, name: str) -> bool:
        """Whether a request may hold the field of this name, or a `system` turn; `extra_body` goes first."""
        if name in self.extra_body:
            return self.extra_body[name] is not None
        return {
            "system": self.system_role,
            "logprobs": self.logprobs,
            "top_logprobs": self.logprobs,
            "max_tokens": self.max_tokens_field == "max_tokens",
            "max_completion_tokens": self.max_tokens_field == "max_completion_tokens",
            "response_format": self.constrain == "response_format",
            "structured_outputs": self.constrain == "structured_outputs",
            "reasoning": bool(self._thoughts()),
        }.get(name, True)

    def _thoughts(self) -> list[str]:
        return [name for name in THOUGHTS if self.extra_body.get(name) is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry(Dialect):
    match: tuple[str, ...]
    server: str = "*"

    def fits(self, model: str, address: str) -> bool:
        name = model.lower().rpartition("/")[2]
        return fnmatch.fnmatchcase(address, self.server) and any(
            fnmatch.fnmatchcase(name, pattern) for pattern in self.match
        )


class Options(Protocol):
    """What the recipe says; None where it leaves it to the table."""

    @property
    def model(self) -> str: ...

    @property
    def system_role(self) -> bool | None: ...

    @property
    def max_tokens_field(self) -> MaxTokensField | None: ...

    @property
    def constrain(self) -> Constrain | None: ...

    @property
    def logprobs(self) -> bool | None: ...

    @property
    def extra_body(self) -> Mapping[str, Any] | None: ...

    @property
    def prices(self) -> Prices | None: ...


@runtime_checkable
class Addressed(Options, Protocol):
    """A backend that talks to servers."""

    def addresses(self) -> list[str]: ...

    def dialect(self) -> Dialect:
        """What its servers take and charge. Raises LLMStopped for a faulty table of dialects."""
        ...


SAID: Final = ("system_role", "max_tokens_field", "constrain", "logprobs", "extra_body")
"""Options that a run keeps."""


def dialect_of(options: Options, address: str) -> Dialect:
    """What the recipe says, and of the rest what the table knows of this model at this address."""
    known = look_up(options.model, address)
    said = {name: getattr(options, name) for name in (*SAID, "prices")}
    return dataclasses.replace(known, **{name: value for name, value in said.items() if value is not None})


def with_cost(reply: Reply, prices: Prices | None) -> Reply:
    """With its cost, where that is known."""
    return dataclasses.replace(reply, usage=priced(reply.usage, prices))


def priced(usage: Usage, prices: Prices | None) -> Usage:
    """With its cost by the prices, where the server counted and didn't say it, and the prices are known."""
    if usage.cost is not None or prices is None or not usage.counted:
        return usage
    return dataclasses.replace(usage, cost=prices.of(usage))


def look_up(model: str, address: str) -> Dialect:
    """The first entry that fits; a plain dialect where none does. Raises LLMStopped for a faulty table."""
    for entry in (*_own(os.environ.get(OWN_TABLE, "")), *_shipped()):
        if entry.fits(model, address):
            names = [one.name for one in dataclasses.fields(Dialect)]
            return Dialect(**{name: getattr(entry, name) for name in names})
    return Dialect()


def written_out(section: Mapping[str, Any], address: str) -> dict[str, Any]:
    """An LLM's section of a recipe with what the table knows and it doesn't say."""
    known = look_up(str(section.get("model")), address)
    plain = Dialect()
    found = {name: getattr(known, name) for name in SAID if getattr(known, name) != getattr(plain, name)}
    return {**found, **{name: value for name, value in section.items() if value is not None}}


@functools.lru_cache(maxsize=1)
def _shipped() -> tuple[_Entry, ...]:
    return _read(Path(__file__).with_name("dialects.yaml"))


def _own(path: str) -> tuple[_Entry, ...]:
    return _read(Path(path).expanduser()) if path else ()


def _read(path: Path) -> tuple[_Entry, ...]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return pydantic.TypeAdapter(tuple[_Entry, ...]).validate_python(content or [], extra="forbid")
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise LLMStopped(f"{path}: {where}: {fault['msg']} (found {fault['input']!r}).") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LLMStopped(f"{path} ({OWN_TABLE}) can't be read: {error}") from None
