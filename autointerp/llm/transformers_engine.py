"""transformers itself, in a process of its own. Requests for log-probabilities that wait are read together."""

from __future__ import annotations

import asyncio
from functools import partial

from autointerp.llm.engine_child import InTurn, Serving, run
from autointerp.llm.transformers_model import Asked, Model, Refusal
from autointerp.types import Json


def _load(setup: Json, writer: asyncio.StreamWriter) -> Serving:
    """Raises whatever transformers raises."""
    model = Model(setup)
    return InTurn(
        partial(_answer, model),
        writer,
        context_length=model.context_length,
        take=partial(_next, setup["batch_size"]),
    )


def _next(batch_size: int, waiting: dict[int, Json]) -> list[int]:
    """Log-probabilities first, some at a time; a text alone."""
    of_kind = [number for number, request in waiting.items() if request["kind"] != "generate"]
    return of_kind[:batch_size] or [next(iter(waiting))]


def _answer(model: Model, batch: list[Json]) -> list[Json]:
    import jinja2

    said: list[Json] = []
    asked: dict[int, Asked] = {}
    for request in batch:
        try:
            if request["kind"] == "generate":
                said.append({"id": request["id"], "answer": model.generate(request)})
            else:
                asked[request["id"]] = model.asked(request)
        except (Refusal, jinja2.TemplateError) as error:
            said.append({"id": request["id"], "refused": str(error)})
    answers = zip(asked, model.likely(list(asked.values())), strict=True)
    return said + [{"id": number, "answer": answer} for number, answer in answers]


if __name__ == "__main__":
    run(_load)
