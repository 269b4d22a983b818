"""An OpenAI-compatible server that answers at once, in the format of our prompts: what `bench llm` asks. As
little HTTP as an honest client needs, so that it is never what is waited for.

Run as `python -m autointerp.bench.instant_server`: prints its port, and ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import functools
import re
import sys
from typing import Final

import orjson

from autointerp.scorers.question import SLACK_TOKENS, TOKENS_A_WINDOW

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_MAX_TOKENS: Final = re.compile(rb'"max_tokens":(\d+)')


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (head := self._received.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._received, 0, head)
            end = head + 4 + (int(length[1]) if length else 0)
            if len(self._received) < end:
                return
            asked = _MAX_TOKENS.search(self._received, head, end)
            max_tokens = int(asked[1]) if asked else 0  # a match reads what is deleted next
            del self._received[:end]
            assert self._transport is not None
            self._transport.write(_response(max_tokens))


def answer_to(max_tokens: int) -> str:
    """A judge is allowed so many tokens a window, an explainer another number: who asks is told by that."""
    n_windows, rest = divmod(max_tokens - SLACK_TOKENS, TOKENS_A_WINDOW)
    if rest:
        return "EXPLANATION: words that follow a number.\nLABEL: words after numbers"
    return "\n".join(f"{n}: {'yes' if n % 3 else 'no'}" for n in range(1, n_windows + 1))


@functools.lru_cache(maxsize=256)
def _response(max_tokens: int) -> bytes:
    body = orjson.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "instant",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": answer_to(max_tokens)},
                    "finish_reason": "stop",
                    "logprobs": None,
                }
            ],
            "usage": {"prompt_tokens": 700, "completion_tokens": 40, "total_tokens": 740},
        }
    )
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        len(body),
        body,
    )


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Connection, "127.0.0.1", 0, backlog=2_048)
    async with server:
        sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve())
