"""sentence-transformers itself, in a process of its own. Requests are answered one after the other: each holds all
texts of a feature."""

from __future__ import annotations

import asyncio
from typing import Any

from autointerp.llm.engine_child import InTurn, Serving, run
from autointerp.types import Json


def _load(setup: Json, writer: asyncio.StreamWriter) -> Serving:
    """Raises whatever the package raises."""
    from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]  # an extra

    model: Any = SentenceTransformer(
        setup["model"],
        revision=setup["revision"] or None,
        device=setup["device"],
        trust_remote_code=False,  # a checkpoint is data
    )

    def answer(batch: list[Json]) -> list[Json]:
        said: list[Json] = []
        for request in batch:
            vectors_NK = model.encode(
                request["texts"],
                batch_size=setup["batch_size"],
                normalize_embeddings=True,
                show_progress_bar=False,
            )
            vectors = [[float(x) for x in vector] for vector in vectors_NK]
            said.append({"id": request["id"], "answer": {"vectors": vectors}})
        return said

    return InTurn(answer, writer)


if __name__ == "__main__":
    run(_load)
