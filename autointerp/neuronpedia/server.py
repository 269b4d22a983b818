"""Neuronpedia's API over HTTP: one call, tried again where its failure may be over.

It keeps windows as often as they come. So after a failure that leaves open whether the call was taken (a 5xx, a cut,
no answer) the feature is looked for there before the call is repeated.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote

import orjson

from autointerp.errors import HubError, PublishError
from autointerp.llm.retries import MAX_WAIT_S, Passing, try_again
from autointerp.llm.server_errors import (
    MAX_RETRY_AFTER_S,
    Server,
    address_fault,
    causes_of,
    is_this_machine,
    retry_after_s,
    said,
)
from autointerp.types import Json

if TYPE_CHECKING:  # importing it takes a while
    import aiohttp

T = TypeVar("T")

DEFAULT_URL: Final = "https://www.neuronpedia.org"
KEY: Final = "NEURONPEDIA_API_KEY"
URL: Final = "NEURONPEDIA_BASE_URL"
_UPLOAD: Final = "/api/feature/upload-batch"
_FEATURE: Final = "/api/feature/"
_PASSING: Final = (408, 409, 425, 429)
_NOT_TAKEN: Final = (409, 425, 429)
_LOOKS: Final = 6
"""With 2, 4, ... and then 20 s between them a minute or so: a server that stopped answering may still be at work on
the call. Their transaction has 5 s; explanations are embedded before it."""
_WHERE_500: Final = "(It answers 500 too where the source set doesn't exist, or you are not its creator.)"


def address_of(given: str | None) -> str:
    """Raises PublishError for what is no address."""
    url = (given or os.environ.get(URL) or DEFAULT_URL).rstrip("/")
    if (fault := address_fault(url)) is not None:
        raise PublishError(f"{fault}. Neuronpedia's is {DEFAULT_URL}: --base-url, or ${URL}.")
    return url


class Neuronpedia:
    """A server that takes features, as long as the context is open."""

    def __init__(
        self, url: str, *, max_tries: int = 6, first_wait_s: float = 1.0, timeout_s: float = 300.0
    ) -> None:
        """Raises PublishError where the environment has no key."""
        key = os.environ.get(KEY, "").strip()
        if not key:
            raise PublishError(
                f"{KEY} is not set. Make a key in your account's settings at {url}, and put it into the environment: "
                f"export {KEY}=..."
            )
        self._server, self._key = Server(url, "", KEY, key), key
        self._max_tries, self._first_wait_s, self._timeout_s = max_tries, first_wait_s, timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Neuronpedia:
        import aiohttp

        url = self._server.url
        tls = True if url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls),
            headers={"X-Api-Key": self._key},
            trust_env=not is_this_machine(url),
            timeout=aiohttp.ClientTimeout(total=None, sock_read=self._timeout_s, sock_connect=10.0),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def upload(self, body: Json) -> None:
        """Brings features there, once, where none of them were. Raises HubError; what that leaves unknown `has` tells
        later."""
        content, doubt = orjson.dumps(body), list[_InDoubt]()

        async def once() -> None:
            if doubt and await self._has(body, n_looks=_LOOKS):
                return
            doubt.clear()
            try:
                await self._asked("POST", _UPLOAD, content)
            except _InDoubt as error:
                doubt.append(error)
                raise

        try:
            await self._tried(once)
        except Passing as error:
            if doubt and await self.has(body, why=f" It said at last: {error}."):
                return
            raise HubError(
                f"{self._server.address}: no success after {self._max_tries} tries; at last: {error}. What it took "
                f"stays, the same command goes on. {_WHERE_500}"
            ) from None

    async def has(self, body: Json, why: str = "") -> bool:
        """Whether features that were sent are there. Raises HubError where the server doesn't tell."""
        try:
            return await self._tried(partial(self._has, body))
        except Passing as error:
            place = "/".join(_place(body))
            raise HubError(
                f"{self._server.address} doesn't tell whether it took the features that were sent to it "
                f"({error}).{why} They are not sent again before that is known, since it would keep their windows "
                f"twice: the same command asks first whether {place} is there. {_WHERE_500}"
            ) from None

    async def _tried(self, once: Callable[[], Awaitable[T]]) -> T:
        """Raises the last try's Passing, HubError."""
        try:
            return await once()
        except Passing as error:
            failed = error
        return await try_again(once, failed, max_tries=self._max_tries, first_wait_s=self._first_wait_s)

    async def _has(self, body: Json, *, n_looks: int = 1) -> bool:
        """A batch is kept in one transaction, so its first feature says it of all. Another's windows of that feature
        are not ours. Raises Passing, HubError."""
        path = _FEATURE + "/".join(quote(part, safe="") for part in _place(body))
        for number in range(n_looks):
            if number:
                await asyncio.sleep(min(self._first_wait_s * 2**number, MAX_WAIT_S))
            found = await self._asked("GET", path)
            if found is None:
                continue
            try:
                kept: list[Json] = orjson.loads(found)["activations"]
                windows = [(one["tokens"], one["values"]) for one in kept]
            except (orjson.JSONDecodeError, KeyError, TypeError):
                raise Passing("what it says of a feature can't be read") from None
            sent = body["features"][0]["activations"][0]
            if (sent["tokens"], sent["values"]) in windows:
                return True
        return False

    async def _asked(self, method: str, path: str, content: bytes | None = None) -> str | None:
        """What the server says; None where it has no such feature. Raises Passing, HubError."""
        import aiohttp

        assert self._session is not None
        try:
            async with self._session.request(
                method,
                f"{self._server.url}{path}",
                data=content,
                headers={"Content-Type": "application/json"},
            ) as response:
                text = await response.text(errors="replace")
                status, headers = response.status, response.headers
        except TimeoutError:
            raise _InDoubt(f"no answer within {self._timeout_s:g} s") from None
        except aiohttp.ClientConnectorError as error:
            raise Passing(self._server.shown(said(causes_of(error)[-1]))) from None
        except aiohttp.ClientError as error:
            raise _InDoubt(self._server.shown(said(causes_of(error)[-1]))) from None
        words = self._server.shown(_words(text))
        if status < 300:
            return text
        if status == 404 and method == "GET":
            return None
        wait_s = retry_after_s(headers)
        if status in _PASSING or status >= 500:
            if wait_s is None or wait_s <= MAX_RETRY_AFTER_S:
                raise (Passing if status in _NOT_TAKEN else _InDoubt)(
                    f"status {status}: {words}", wait_s=wait_s
                )
            raise HubError(
                f"{self._server.address} asks to wait {wait_s:,.0f} s ({status}): {words} Go on after that."
            )
        if status in (401, 403):
            raise HubError(f"{self._server.address} refuses the key in {KEY} ({status}): {words}")
        raise HubError(f"{self._server.address} refuses these features ({status}): {words}")


class _InDoubt(Passing):
    """A failure that does not say whether the call was taken: it may have been, or still be at work."""


def _place(body: Json) -> tuple[str, str, str]:
    """Of the first feature."""
    return body["modelId"], body["source"], str(body["features"][0]["index"])


def _words(text: str) -> str:
    """The message of an answer, whatever its form."""
    try:
        answer = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    if not isinstance(answer, dict):
        return text
    found = [str(answer[name]) for name in ("error", "message", "path") if answer.get(name)]  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]  JSON
    return ", ".join(found) or text
