"""Neuronpedia's API over HTTP: one call, tried again where its failure may be over."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING, Final

import orjson

from autointerp.errors import HubError, PublishError
from autointerp.llm.retries import Passing, try_again
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

DEFAULT_URL: Final = "https://www.neuronpedia.org"
KEY: Final = "NEURONPEDIA_API_KEY"
URL: Final = "NEURONPEDIA_BASE_URL"
_PATH: Final = "/api/feature/upload-batch"
_PASSING: Final = (408, 409, 425, 429)


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

    async def upload(self, body: Json) -> str:
        """What the server says to it. Raises HubError."""
        content = orjson.dumps(body)

        async def once() -> str:
            return await self._once(content)

        try:
            return await once()
        except Passing as error:
            failed = error
        try:
            return await try_again(once, failed, max_tries=self._max_tries, first_wait_s=self._first_wait_s)
        except Passing as error:
            raise HubError(
                f"{self._server.address}: no success after {self._max_tries} tries; at last: {error}. What it took "
                f"stays, the same command goes on. (It answers 500 too where the source set doesn't exist, or you "
                f"are not its creator.)"
            ) from None

    async def _once(self, content: bytes) -> str:
        import aiohttp

        assert self._session is not None
        try:
            async with self._session.post(
                f"{self._server.url}{_PATH}", data=content, headers={"Content-Type": "application/json"}
            ) as response:
                text = await response.text(errors="replace")
                status, headers = response.status, response.headers
        except TimeoutError:
            raise Passing(f"no answer within {self._timeout_s:g} s") from None
        except aiohttp.ClientError as error:
            raise Passing(self._server.shown(said(causes_of(error)[-1]))) from None
        words = self._server.shown(_words(text))
        if status < 300:
            return words
        wait_s = retry_after_s(headers)
        if status in _PASSING or status >= 500:
            if wait_s is None or wait_s <= MAX_RETRY_AFTER_S:
                raise Passing(f"status {status}: {words}", wait_s=wait_s)
            raise HubError(
                f"{self._server.address} asks to wait {wait_s:,.0f} s ({status}): {words} Go on after that."
            )
        if status in (401, 403):
            raise HubError(f"{self._server.address} refuses the key in {KEY} ({status}): {words}")
        raise HubError(f"{self._server.address} refuses these features ({status}): {words}")


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
