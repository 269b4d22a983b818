"""sentence-transformers itself, in a process of its own (`engine_process.py` starts it and says what is
exchanged). Requests are answered one after the other: each holds all texts of a feature."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from typing import Any, NoReturn

import orjson

from autointerp.llm.engine_process import MAX_LINE
from autointerp.llm.process_guard import pass_over
from autointerp.types import Json


def _load(setup: Json) -> Any:
    """Raises whatever the package raises."""
    from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]  # an extra

    return SentenceTransformer(
        setup["model"],
        revision=setup["revision"] or None,
        device=setup["device"],
        trust_remote_code=False,  # a checkpoint is data
    )


async def _serve(fd: int) -> None:
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=fd), limit=MAX_LINE)
    setup: Json = orjson.loads(await reader.readline())
    try:
        model = _load(setup)
    except Exception as error:
        writer.write(orjson.dumps({"fatal": f"{type(error).__name__}: {error}"}) + b"\n")
        await writer.drain()
        raise
    writer.write(orjson.dumps({"ready": {}}) + b"\n")
    while line := await reader.readline():
        request: Json = orjson.loads(line)
        if "cancel" in request:
            continue  # it was answered before this could be read
        vectors_NK = model.encode(
            request["texts"],
            batch_size=setup["batch_size"],
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        answer = {"vectors": [[float(x) for x in vector] for vector in vectors_NK]}
        writer.write(orjson.dumps({"id": request["id"], "answer": answer}) + b"\n")
        await writer.drain()


def _main() -> NoReturn:
    # Schedulers send it to all processes of a job; the parent says what it means. See `process_guard`.
    signal.signal(signal.SIGTERM, pass_over)
    asyncio.run(_serve(int(sys.argv[1])))
    sys.exit(0)


if __name__ == "__main__":
    _main()
