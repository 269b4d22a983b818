"""The body of a chat completion request, the same whether it goes over HTTP or into a batch file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from autointerp.llm.chat_format import N_TOP, messages
from autointerp.llm.protocol import LLMIdentity
from autointerp.prompting import Prompt
from autointerp.types import Json, digest


class ChatOptions(Protocol):
    """The options of a backend that say what is sent; what each means stands at `Openai`."""

    @property
    def model(self) -> str: ...

    @property
    def revision(self) -> str: ...

    @property
    def system_role(self) -> bool: ...

    @property
    def max_tokens_field(self) -> Literal["max_tokens", "max_completion_tokens"]: ...

    @property
    def constrain(self) -> Literal["none", "structured_outputs"]: ...

    @property
    def extra_body(self) -> Mapping[str, Any]: ...


def identity(options: ChatOptions) -> LLMIdentity:
    """Model and revision; behind a `+` the digest of those options that change answers, if any is set."""
    asked = [options.system_role, options.constrain, options.extra_body]
    plain = asked == [True, "none", {}]
    return LLMIdentity(
        options.model, options.revision if plain else f"{options.revision}+{digest(asked)[:8]}"
    )


def chat_body(
    options: ChatOptions,
    prompt: Prompt,
    *,
    max_tokens: int,
    temperature: float,
    choices: Sequence[str] | None,
    schema: Json | None,
    label_tokens: Sequence[str] | None,
    seed: int | None,
) -> Json:
    """What is sent to /chat/completions; a field that is None is left out.

    With `label_tokens`, `choices` and `schema` are not sent: under a grammar a server reports
    probabilities among the allowed answers alone.
    """
    body: Json = {
        "model": options.model,
        "messages": messages(prompt, system_role=options.system_role),
        options.max_tokens_field: max_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    if label_tokens:
        body |= {"logprobs": True, "top_logprobs": N_TOP}
    elif options.constrain == "structured_outputs" and (choices or schema):
        body["structured_outputs"] = {"choice": list(choices)} if choices else {"json": schema}
    body |= options.extra_body
    return {name: value for name, value in body.items() if value is not None}
