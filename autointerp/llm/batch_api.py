"""OpenAI's files and batches over HTTP: upload, create, look, download.

Files are streamed both ways. A batch is begun once: a creation whose outcome is unknown (a kill, a cut
connection) is looked up by its input file, whose id is unique, before it is tried again.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import orjson

from autointerp.errors import LLMStopped, LLMUnavailable
from autointerp.files import disk_errors
from autointerp.llm import chat_format
from autointerp.llm.retries import Passing, try_again
from autointerp.llm.server_errors import RefusedSetting, Server, causes_of, is_this_machine, said
from autointerp.types import Json

if TYPE_CHECKING:  # importing it takes a while
    import aiohttp

T = TypeVar("T")

_MAX_CONNECT_S: Final = 10.0
_CHUNK: Final = 1 << 20
_A_PAGE: Final = 100

NO_BATCHES: Final = (
    "It has no batches, it seems. With the LLM's option submit: false the requests are only written to files, "
    "which `vllm run-batch` or any other means can answer."
)


class _NotThere(Exception):
    """Status 404; the message is the server's."""


class BatchServer:
    """A server's /files and /batches."""

    def __init__(
        self, address: str, key: str, server: Server, *, timeout_s: float, max_tries: int, first_wait_s: float
    ) -> None:
        self.server = server
        self._address = address.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout_s, self._max_tries, self._first_wait_s = timeout_s, max_tries, first_wait_s
        self._session: aiohttp.ClientSession | None = None
        self._has_answered = False

    async def models(self) -> list[str]:
        """The names of what the server has; empty where it doesn't say. Raises LLMErrors."""
        try:
            return chat_format.read_model_names(await self._tried(partial(self._json, "GET", "/models")))
        except (_NotThere, chat_format.NotAnAnswer):
            return []

    async def upload(self, path: Path) -> str:
        """The server's id of the uploaded file. Raises LLMErrors, and RefusedSetting where it looks into the file."""
        import aiohttp

        async def once() -> Json:
            with path.open("rb") as file:
                form = aiohttp.FormData()
                form.add_field("purpose", "batch")
                form.add_field("file", file, filename=path.name, content_type="application/jsonl")
                return await self._json("POST", "/files", form=form)

        try:
            return _id(await self._tried(once))
        except _NotThere as error:
            raise LLMStopped(f"{self.server.address}/files answers 404: {error} {NO_BATCHES}") from None

    async def create(self, file: str, url: str, window: str, metadata: dict[str, str], *, look: bool) -> str:
        """The id of the batch that runs an uploaded file. `look` first: one may have been begun already.

        Raises LLMErrors, and RefusedSetting where the server looks into the file.
        """
        body: Json = {
            "input_file_id": file,
            "endpoint": url,
            "completion_window": window,
            "metadata": metadata,
        }
        has_tried = look

        async def once() -> str:
            nonlocal has_tried
            if has_tried and (found := await self._find(file)):
                return found
            has_tried = True
            return _id(await self._json("POST", "/batches", body=body))

        try:
            return await self._tried(once)
        except _NotThere as error:
            raise LLMStopped(f"{self.server.address}/batches answers 404: {error} {NO_BATCHES}") from None

    async def batch(self, name: str) -> Json | None:
        """How far a batch is; None where the server doesn't know it. Raises LLMErrors."""
        try:
            return await self._tried(partial(self._json, "GET", f"/batches/{name}"))
        except _NotThere:
            return None

    async def download(self, file: str, path: Path) -> None:
        """A file's content, whole or not there. Raises LLMErrors and DiskFull."""
        partial_path = path.with_name(f".{path.name}.{os.getpid()}.tmp")

        async def write(response: aiohttp.ClientResponse) -> None:
            with disk_errors(path), partial_path.open("wb") as out:
                async for chunk in response.content.iter_chunked(_CHUNK):
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
            partial_path.replace(path)

        try:
            await self._tried(partial(self._once, "GET", f"/files/{file}/content", write))
        except _NotThere as error:
            raise LLMStopped(
                f"{self.server.address} has the file {file} no more, which held answers: {error}"
            ) from None
        finally:
            partial_path.unlink(missing_ok=True)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _find(self, file: str) -> str | None:
        """The batch that was begun on an uploaded file."""
        after = ""
        while True:
            page = await self._json("GET", f"/batches?limit={_A_PAGE}{after}")
            batches: list[Json] = page.get("data") or []
            for batch in batches:
                if batch.get("input_file_id") == file:
                    return _id(batch)
            if not batches or not page.get("has_more"):
                return None
            after = f"&after={_id(batches[-1])}"

    # --- one request ---------------------------------------------------------------------------------

    async def _tried(self, once: Callable[[], Awaitable[T]]) -> T:
        try:
            return await once()
        except Passing as error:
            failed = error
        address = self.server.address
        if failed.unconnected and not self._has_answered:
            raise LLMUnavailable(
                f"no server answers at {address} ({failed}). Is it running, and is base_url right?"
            )
        try:
            return await try_again(once, failed, max_tries=self._max_tries, first_wait_s=self._first_wait_s)
        except Passing as error:
            raise LLMUnavailable(
                f"{address}: no answer after {self._max_tries} tries; at last: {error}."
            ) from None

    async def _json(self, method: str, path: str, *, body: Json | None = None, form: Any = None) -> Json:
        async def read(response: aiohttp.ClientResponse) -> Json:
            return _object(await response.read())

        content = orjson.dumps(body) if body is not None else form
        return await self._once(method, path, read, content, is_json=body is not None)

    async def _once(
        self,
        method: str,
        path: str,
        read: Callable[[aiohttp.ClientResponse], Awaitable[T]],
        content: Any = None,
        *,
        is_json: bool = False,
    ) -> T:
        import aiohttp

        # A file of 200 MB takes its time: only silence is limited.
        timeout = aiohttp.ClientTimeout(
            total=None, sock_read=self._timeout_s, sock_connect=min(self._timeout_s, _MAX_CONNECT_S)
        )
        headers = {"Content-Type": "application/json"} if is_json else {}
        try:
            async with self._connected().request(
                method, f"{self._address}{path}", data=content, headers=headers, timeout=timeout
            ) as response:
                self._has_answered = True
                if response.status < 400:
                    return await read(response)
                text = await response.text(errors="replace")
                status, answered = response.status, response.headers
        except TimeoutError:
            raise Passing(f"no answer within {self._timeout_s:g} s") from None
        except aiohttp.ClientError as error:
            unconnected = isinstance(error, aiohttp.ClientConnectorError)
            raise Passing(self.server.shown(said(causes_of(error)[-1])), unconnected=unconnected) from None
        try:
            error = orjson.loads(text)
            error = cast(Json, error).get("error", error) if isinstance(error, dict) else text
        except orjson.JSONDecodeError:
            error = text
        if status == 404:
            raise _NotThere(self.server.shown(str(error)))
        verdict = self.server.verdict(status, error, answered)
        # Who looks at a file or a batch sends no setting.
        raise verdict.stopped if isinstance(verdict, RefusedSetting) and method == "GET" else verdict

    def _connected(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            local = is_this_machine(self._address)
            # A proxy from the environment can't reach this machine's own servers. And http needs no certificates.
            tls = True if self._address.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=tls), headers=self._headers, trust_env=not local
            )
        return self._session


def _object(content: bytes) -> Json:
    try:
        answer = orjson.loads(content)
    except orjson.JSONDecodeError:
        raise Passing("its answer is not JSON, or not all of it") from None
    if not isinstance(answer, dict):
        raise Passing(f"its answer is no JSON object but {type(answer).__name__}")
    return cast(Json, answer)


def _id(answer: Json) -> str:
    if not isinstance(name := answer.get("id"), str) or not name:
        raise Passing("its answer has no id")
    return name
