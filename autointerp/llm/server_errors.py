"""What an OpenAI-compatible server's failures mean: for every request, for this one, or just for now.

Servers disagree about statuses; `Server.verdict` holds all we know of it on one page. Sources: the error
pages of OpenAI and OpenRouter, and vLLM's, llama.cpp's and Azure's answers.
"""

from __future__ import annotations

import difflib
import email.utils
import ipaddress
import math
import os
import re
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from autointerp.errors import LLMBadRequest, LLMError, LLMFiltered, LLMStopped, LLMUnavailable
from autointerp.llm.retries import Passing
from autointerp.types import Json

MAX_RETRY_AFTER_S = 300.0
"""A server that asks for a longer wait is unavailable: the next run asks again."""

# Values of `code` and `type` in error bodies, in lower case.
_QUOTA = {"insufficient_quota", "insufficient_user_quota", "billing_hard_limit_reached", "billing_not_active"}
_SETTING = {"unsupported_parameter", "unsupported_value"}
_NO_MODEL = {"model_not_found", "not_found_error", "notfounderror"}
_BAD_KEY = {"invalid_api_key", "authentication_error"}
_FILTERED = {"content_filter", "content_policy_violation", "responsibleaipolicyviolation"}
"""OpenAI's, and Azure's, which stands under `innererror` too."""
_NO_CREDIT: Final = re.compile(
    r"credit balance is too low|insufficient (credits|balance|funds)|exceeded your current quota"
    r"|check your plan and billing|key limit exceeded"
)
"""As Anthropic, DeepSeek, Gemini and OpenRouter say it, whose codes say less."""
_WRONG_KEY: Final = re.compile(r"api key (not valid|expired|not found)|invalid api key|incorrect api key")
_NO_ENDPOINT: Final = re.compile(r"no endpoints? found .*(requested parameters|support)")
"""OpenRouter's 404 under `require_parameters`: the model is there, and nobody takes all that was sent."""
_THOUGHT: Final = re.compile(r"reasoning is mandatory|reasoning .*(cannot|can't|can not) be disabled")
UNNAMED: Final = "(some setting)"
"""Name of a refused setting where the server doesn't say which."""
_BAD_REQUEST = {
    *("invalid_request_error", "badrequesterror", "context_length_exceeded", "invalid_prompt"),
    *_FILTERED,
}


_ADAPTABLE: Final = (
    *("temperature", "seed", "top_logprobs", "logprobs", "max_tokens", "max_completion_tokens"),
    *("response_format", "structured_outputs"),
)
_REFUSAL = re.compile(r"unsupported|not support|not allowed|unrecognized|unknown|extra inputs|not permitted")


class RefusedSetting(Exception):
    """The server takes no field of this name (`system`: no system turn): a signal, which no user sees."""

    def __init__(self, name: str, stopped: LLMStopped) -> None:
        super().__init__(name)
        self.name = name
        self.stopped = stopped
        """What to raise where nothing can be left out."""


class Server:
    """A server as messages show it: its address, and its words without the key."""

    def __init__(self, address: str, model: str, key_env: str, key: str) -> None:
        self.url = address
        self.address = _without_secrets(address)
        self._model = model
        self._key_env = key_env
        self._has_key = bool(key)
        # Servers echo keys whole, cut short or starred; the first characters give each of these away.
        echo = [re.escape(key[:8]) + r"\S*"] if key else []
        self._secrets = re.compile("|".join([*echo, r"\S*\*{3}\S*"]))

    def shown(self, text: str, n_characters: int = 300) -> str:
        """Somebody else's text as it may stand in a message: without keys, on one line, short."""
        text = self._secrets.sub("[key]", " ".join(text.split()))
        return text if len(text) <= n_characters else f"{text[:n_characters]}..."

    def verdict(
        self, status: int, error: object, headers: Mapping[str, str], models: Sequence[str] = ()
    ) -> LLMError | Passing | RefusedSetting:
        """What to raise for an error; `models` are the names of those the server has, if known.

        A status that nobody foresaw stops the run: to go on would record a failure for each feature.
        """
        error = unwrapped(error)
        kinds = _kinds(error)
        said = self.shown(_message(error))
        wait_s = retry_after_s(headers) or _stated_wait_s(error)
        # Also "now", or a moment that is past: whoever says when to ask again means that it helps.
        named = any(headers.get(name) for name in ("retry-after", "retry-after-ms"))
        may_pass = named or wait_s is not None
        if _is_out_of_credit(status, error, may_pass=may_pass):
            return LLMStopped(f"the account at {self.address} has no credit left ({status}): {said}")
        if status == 400 and _WRONG_KEY.search(said.lower()):
            return LLMStopped(f"{self.address} refuses the key in {self._key_env} ({status}): {said}")
        if is_missing(status, error):
            return LLMStopped(f"{self.address} has no model '{self._model}': {said} {self._hint(models)}")
        if status in (400, 403, 422) and _is_filtered(error):
            return LLMFiltered(f"a content filter at {self.address} refuses this prompt ({status}): {said}")
        name = _refused_setting(error) if status in (400, 403, 404, 422) else None
        if name or (status == 400 and kinds & _SETTING):
            stopped = LLMStopped(
                f"{self.address} refuses a setting ({status}): {said} The LLM's options max_tokens_field, "
                "system_role and extra_body change what is sent; null in extra_body takes a field out."
            )
            return RefusedSetting(name, stopped) if name else stopped
        if status in (400, 413, 422):
            return LLMBadRequest(f"{self.address} refuses this request ({status}): {said}")
        if status in (402, 408, 409, 425, 429) or status >= 500:
            if wait_s is None or wait_s <= MAX_RETRY_AFTER_S:
                return Passing(f"status {status}: {said}", wait_s=wait_s)
            return LLMUnavailable(
                f"{self.address} answers {status} and asks to wait {wait_s:,.0f} s: {said} "
                "Start the run again after that."
            )
        if status in (401, 403):
            key = f"the key in {self._key_env}" if self._has_key else "a request without a key"
            way = "" if self._has_key else f" Set {self._key_env or 'api_key_env'}."
            return LLMStopped(f"{self.address} refuses {key} ({status}): {said}{way}")
        return LLMStopped(f"{self.address} answers {status}; is base_url that of a chat server? {said}")

    def _hint(self, models: Sequence[str]) -> str:
        if not models:
            return "Has base_url its /v1? GET /models there lists what it has."
        near = difflib.get_close_matches(self._model, models, n=8, cutoff=0.3)
        first = list(dict.fromkeys([*near, *sorted(models)]))[:8]
        return f"It has: {self.shown(', '.join(first))}{', ...' if len(first) < len(models) else '.'}"


# --- error bodies -------------------------------------------------------------------------------------


def unwrapped(error: object) -> object:
    """Gemini's stand in a list, and there under `error`."""
    if isinstance(error, list) and error:
        error = cast(list[object], error)[0]
        return cast(Json, error).get("error", error) if isinstance(error, dict) else error
    return error


def is_missing(status: int, error: object) -> bool:
    """True where the model, or the whole endpoint, doesn't exist."""
    if _NO_ENDPOINT.search(_message(unwrapped(error)).lower()):
        return False
    return status == 404 or bool(_kinds(error) & _NO_MODEL)


def _is_out_of_credit(status: int, error: object, *, may_pass: bool) -> bool:
    """`may_pass`: the server says when to ask again."""
    if _kinds(error) & _QUOTA or (status == 402 and not may_pass):
        return True
    # Where the server says when to come back, it is a limit of the minute, whatever its words are.
    if status not in (400, 403, 429) or not _NO_CREDIT.search(_message(error).lower()):
        return False
    return (
        not may_pass or "perday" in str(error).lower()
    )  # Gemini names a wait of seconds for a day's quota too


def _stated_wait_s(error: object) -> float | None:
    """Seconds, as Gemini says them: in words."""
    found = re.search(r"retry in (\d+(?:\.\d+)?)\s?s", _message(error).lower())
    return float(found[1]) if found else None


def error_in(answer: object) -> object:
    """What stands under `error` in a body with status 200, or in its first choice; None if nothing."""
    if not isinstance(answer, dict):
        return None
    answer = cast(Json, answer)
    choices = answer.get("choices")
    first = cast(list[Any], choices)[0] if isinstance(choices, list) and choices else None
    return answer.get("error") or (cast(Json, first).get("error") if isinstance(first, dict) else None)


def status_of(error: object) -> int:
    """The HTTP status that an error in a body with status 200 stands for; 500 where it doesn't say."""
    kinds = _kinds(error)
    codes = [int(kind) for kind in kinds if re.fullmatch(r"[45]\d\d", kind, re.ASCII)]
    if codes:
        return codes[0]
    by_kind = ((_QUOTA, 429), (_NO_MODEL, 404), (_BAD_KEY, 401), (_SETTING | _BAD_REQUEST, 400))
    return next((status for names, status in by_kind if kinds & names), 500)


def _kinds(error: object) -> set[str]:
    if not isinstance(error, dict):
        return set()
    return {str(value).lower() for name, value in cast(Json, error).items() if name in ("code", "type")}


def _message(error: object) -> str:
    if isinstance(error, dict):
        return str(cast(Json, error).get("message") or cast(Json, error))
    return str(error)


def _refused_setting(error: object) -> str | None:
    """The field that the server doesn't take, if that is what it says and we could do without; `system` where
    the model's template has no system turn."""
    text = _message(error).lower()
    if _NO_ENDPOINT.search(text):
        return UNNAMED
    if _THOUGHT.search(text):
        return "reasoning"
    if not _REFUSAL.search(text):
        return None
    if re.search(r"\bsystem (role|message|prompt|turn)", text):
        return "system"
    param = cast(Json, error).get("param") if isinstance(error, dict) else None
    if param in _ADAPTABLE:
        return str(param)
    return next((name for name in _ADAPTABLE if re.search(rf"\b{name}\b", text)), None)


def _is_filtered(error: object) -> bool:
    """True where a moderation in front of the model refused this one prompt (OpenRouter says so in `metadata`)."""
    if not isinstance(error, dict):
        return False
    error = cast(Json, error)
    inner, metadata = error.get("innererror"), error.get("metadata")
    is_flagged = isinstance(metadata, dict) and not cast(Json, metadata).keys().isdisjoint(
        ("flagged_input", "reasons")
    )
    return bool((_kinds(error) | _kinds(inner)) & _FILTERED) or is_flagged


# --- headers, causes, addresses ------------------------------------------------------------------------


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds from `retry-after-ms`, or `retry-after` in seconds or as a date; None if there is no wait."""
    exact, plain = (headers.get(name) for name in ("retry-after-ms", "retry-after"))
    waits_s = (_number(exact, 0.001), _number(plain, 1.0), _until(plain))
    return next((wait_s for wait_s in waits_s if wait_s is not None and 0.0 < wait_s < math.inf), None)


def _number(text: str | None, unit_s: float) -> float | None:
    try:
        return float(text or "") * unit_s
    except ValueError:
        return None


def _until(date: str | None) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(date or "").timestamp() - time.time()
    except (ValueError, OverflowError):  # no date; a year or a zone that there is not
        return None


def causes_of(error: BaseException) -> list[BaseException]:
    """The error, what it came from, and so on; the root last."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    return causes


def said(error: BaseException) -> str:
    """An exception in words for a message."""
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno).lower()  # asyncio writes "Connect call failed" for a refusal
    return f"{type(error).__name__}: {error}"


def address_fault(address: str) -> str | None:
    """What is wrong with a base URL, if anything."""
    shown = _without_secrets(address)
    try:
        parts = urllib.parse.urlsplit(address)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, half an IPv6 address
        parts, fits = None, False
    if parts is None or not fits:
        return f"'{shown}' is no address; one looks like http://localhost:8000/v1"
    if "@" in parts.netloc:
        return f"'{shown}' must not hold a user or password; what the server asks for goes into the key"
    return None


def is_this_machine(address: str) -> bool:
    host = urllib.parse.urlsplit(address).hostname or ""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return ip.is_loopback or ip.is_unspecified  # 0.0.0.0 is what servers print when they start


def _without_secrets(address: str) -> str:
    """Without `user:password@`, a query, and a slash at the end."""
    return re.sub(r"//[^/]*@", "//", address).partition("?")[0].rstrip("/")
