"""OpenAI's chat completions as bytes on a wire: Prompt -> messages, a body -> Reply.

Pure functions, shared by all that speak this format, whether the bodies go over HTTP or into batch files.
A body that is not what it should be raises NotAnAnswer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from autointerp.llm.exchange import FinishReason, Reply, Usage
from autointerp.prompting import Prompt
from autointerp.types import Json

N_TOP = 20
"""Alternatives asked for at each token: the most that OpenAI, and vLLM unless told otherwise, will give."""


class NotAnAnswer(ValueError):
    """A body with status 200 that holds no answer; the message says what it is instead."""


# --- requests ------------------------------------------------------------------------------------------


def messages(prompt: Prompt, *, system_role: bool = True) -> list[Json]:
    """The turns as JSON. Without `system_role` the system's text goes on top of the first user turn."""
    turns = [{"role": turn.role, "content": encodable(turn.content)} for turn in prompt.messages]
    if system_role:
        return turns
    system = [turn["content"] for turn in turns if turn["role"] == "system"]
    others = [turn for turn in turns if turn["role"] != "system"]
    if not system:
        return others
    if not others or others[0]["role"] != "user":
        return [{"role": "user", "content": "\n\n".join(system)}, *others]
    return [{"role": "user", "content": "\n\n".join([*system, others[0]["content"]])}, *others[1:]]


def encodable(text: str) -> str:
    """`text`, a question mark in place of each lone surrogate, which UTF-8 can't say."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text


# --- answers -------------------------------------------------------------------------------------------

_FINISH: dict[object, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
}


FILTERED = Reply("", "content_filter", usage=Usage(counted=False))
"""To a prompt that a content filter refuses before a model has seen it. Some servers charge for that."""


def read_reply(answer: Json, latency_s: float = 0.0, label_tokens: Sequence[str] | None = None) -> Reply:
    """A chat completion's first choice. Raises NotAnAnswer."""
    try:
        choice: Json = answer["choices"][0]
        message: Json = choice["message"]
        content, is_first = _said(message.get("content"))
        finish = _FINISH.get(choice.get("finish_reason"), "other")
        if not content and message.get("refusal"):
            finish = "content_filter"
        text = without_thought(content)
        # Behind a thought the first token is not the answer's: unknown, which is not the same as improbable.
        is_first = is_first and text == content
        labels = _label_logprobs(choice, label_tokens) if label_tokens and is_first else None
        return Reply(text, finish, labels, usage_of(answer, latency_s))
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise NotAnAnswer(f"it is no chat completion ({error!r})") from None


def _said(content: Any) -> tuple[str, bool]:
    """The text, and whether it begins with the first token. Some gateways send a list of parts, of which those that
    are no text are thoughts."""
    if not isinstance(content, list):
        return content or "", True
    parts = cast(list[Json], content)
    texts: list[str] = [part["text"] for part in parts if part["type"] == "text"]
    return "".join(texts), len(texts) == len(parts)


def without_thought(text: str) -> str:
    """What stands behind `</think>`; nothing where a thought was begun and not ended."""
    _, end, said = text.partition("</think>")  # some chat templates open the thought in the prompt
    if end:
        return said.lstrip()
    return "" if text.lstrip().startswith("<think>") else text


def read_vectors(answer: Json, n: int) -> list[list[float]]:
    """The `n` vectors of a reply to an embeddings request, in the order of the texts. Raises NotAnAnswer."""
    try:
        entries = [(entry["index"], entry["embedding"]) for entry in answer["data"]]
    except (KeyError, TypeError) as error:
        raise NotAnAnswer(f"it holds no embeddings ({error!r})") from None
    vectors = {index: vector for index, vector in entries if type(index) is int}
    if len(entries) != n or vectors.keys() != set(range(n)):
        raise NotAnAnswer(f"{n} texts were sent and {len(entries)} embeddings came back, numbered otherwise")
    if not all(_is_vector(vector) for vector in vectors.values()):
        raise NotAnAnswer("an embedding holds something else than finite numbers")
    if len({len(vector) for vector in vectors.values()}) > 1:
        raise NotAnAnswer("its embeddings differ in length")
    return [vectors[i] for i in range(n)]


def _is_vector(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    entries = cast(list[Any], value)
    return all(type(one) in (float, int) and -math.inf < one < math.inf for one in entries)


def read_model_names(answer: Json) -> list[str]:
    """What GET /models lists. Raises NotAnAnswer."""
    try:
        return [entry["id"] for entry in answer["data"]]
    except (KeyError, TypeError) as error:
        raise NotAnAnswer(f"it lists no models ({error!r})") from None


def usage_of(answer: Json, latency_s: float = 0.0) -> Usage:
    """What an answer says it used; where it doesn't, or says what can't be, its tokens are not counted."""
    counts = _object(answer.get("usage"))
    stated: object = counts.get("cost")
    cost = None
    if isinstance(stated, int | float) and not isinstance(stated, bool) and 0 <= stated < math.inf:
        cost = float(stated)
    n_prompt, n_answer = _count(counts, "prompt_tokens"), _count(counts, "completion_tokens")
    n_all = _count(counts, "total_tokens")
    if n_prompt and n_answer is None and n_all is not None and n_all >= n_prompt:
        n_answer = n_all - n_prompt  # embeddings have no answer to count
    if not n_prompt or n_answer is None:
        return Usage(cost=cost, latency_s=latency_s, counted=False)
    prompt, completion = (_object(counts.get(f"{of}_tokens_details")) for of in ("prompt", "completion"))
    n_cached = min(_count(prompt, "cached_tokens") or 0, n_prompt)
    return Usage(
        prompt_tokens=n_prompt,
        cached_tokens=n_cached,
        written_tokens=min(_count(prompt, "cache_write_tokens") or 0, n_prompt - n_cached),
        completion_tokens=n_answer,
        reasoning_tokens=min(_count(completion, "reasoning_tokens") or 0, n_answer),
        cost=cost,
        latency_s=latency_s,
    )


def _object(value: object) -> Json:
    return cast(Json, value) if isinstance(value, dict) else {}


def _count(counts: Json, name: str) -> int | None:
    """None where nothing that can be a count stands there."""
    value: object = counts.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _label_logprobs(choice: Json, labels: Sequence[str]) -> dict[str, float] | None:
    """Natural log of each label's probability, summed over its spellings (` Yes`, `yes`, `YES`).

    Read at the first token that is not white space, given what stands before it. A label with no spelling
    among the N_TOP is absent. None where the server sent no logprobs, or nothing but white space.
    """
    sent: Json = choice.get("logprobs") or {}
    positions: list[Json] = sent.get("content") or []
    first = next((position for position in positions if position["token"].strip()), None)
    if first is None:
        return None
    tops: list[Json] = first.get("top_logprobs") or []
    if all(top["token"] != first["token"] for top in tops):
        tops = [*tops, first]  # the sampled token is not always among the most likely
    masses: dict[str, float] = {}
    for top in tops:
        spelling = top["token"].strip().casefold()
        masses[spelling] = masses.get(spelling, 0.0) + math.exp(top["logprob"])
    sums = {label: masses.get(label.strip().casefold(), 0.0) for label in labels}
    # vLLM says -9999 for "not allowed", which is no probability at all.
    return {label: math.log(mass) for label, mass in sums.items() if mass > 0.0}
