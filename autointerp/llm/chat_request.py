"""The body of a chat completion request, the same whether it goes over HTTP or into a batch file."""

from __future__ import annotations

from typing import Any

from autointerp.llm.chat_format import N_TOP, messages
from autointerp.llm.dialects import Dialect, Options
from autointerp.llm.exchange import Request
from autointerp.llm.protocol import LLMIdentity
from autointerp.llm.seeds import seed_of
from autointerp.types import Json, digest


def identity(options: Options, revision: str) -> LLMIdentity:
    """Model and revision; behind a `+` the digest of those options that change answers, if any is set."""
    asked: list[Any] = [
        options.system_role is not False,
        options.constrain or "none",
        options.extra_body or {},
    ]
    plain = asked == [True, "none", {}]
    return LLMIdentity(options.model, revision if plain else f"{revision}+{digest(asked)[:8]}")


def chat_body(model: str, dialect: Dialect, request: Request) -> Json:
    """What is sent to /chat/completions; a field that is None is left out.

    With `label_tokens`, `choices` and `schema` are not sent: under a grammar a server reports
    probabilities among the allowed answers alone.
    """
    body: Json = {
        "model": model,
        "messages": messages(request.prompt, system_role=dialect.system_role),
        dialect.max_tokens_field: request.max_tokens,
        "temperature": request.temperature,
        "seed": seed_of(request),
    }
    if request.label_tokens and dialect.logprobs:
        body |= {"logprobs": True, "top_logprobs": N_TOP}
    elif dialect.constrain == "structured_outputs" and (request.choices or request.schema):
        body["structured_outputs"] = (
            {"choice": list(request.choices)} if request.choices else {"json": request.schema}
        )
    elif dialect.constrain == "response_format" and request.schema:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": request.schema, "strict": True},
        }
    body |= dialect.extra_body
    return {name: value for name, value in body.items() if value is not None}
