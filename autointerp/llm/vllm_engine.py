"""vLLM itself, in a process of its own.

The asynchronous engine batches continuously: each request is handed on as it comes, hundreds at once. Prompts
are turned into tokens here, by the model's own chat template.
"""

from __future__ import annotations

import asyncio
import math
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

import orjson

from autointerp.llm.engine_child import end_on_fault, leave, run
from autointerp.llm.label_tokens import Spellings
from autointerp.types import Json

_T = TypeVar("_T")

ENOUGH_CONTEXT: Final = 16_384
"""Tokens a model takes at most unless told otherwise: four times a full prompt of the default recipe. What
many models could take (131,072 and more) would be set aside in the cache of each card."""
_N_TOP: Final = 20
"""Alternatives at each token of a prompt: as many as vLLM gives unless told otherwise."""
_MOST_LABEL_TOKENS: Final = 128
"""vLLM reports the probabilities of so many tokens."""


class Serving:
    """A running vLLM engine and what it answers."""

    def __init__(self, setup: Json, writer: asyncio.StreamWriter) -> None:
        """Loads the model. Raises whatever vLLM raises."""
        from vllm.v1.engine.async_llm import AsyncLLM  # type: ignore[import-not-found]  # an extra

        self.engine: Any = AsyncLLM.from_engine_args(_engine_args(setup))
        self.context_length: int = self.engine.model_config.max_model_len
        self._tokenizer: Any = self.engine.get_tokenizer()
        self._template_kwargs: Json = setup["chat_template_kwargs"]
        n_tokens = self.engine.model_config.get_vocab_size()
        self._spellings = Spellings(self._tokenizer, n_tokens)
        # One thread: tokenizers are not made for several, and the event loop must not wait for them.
        self._pool = ThreadPoolExecutor(1)
        self._writer = writer
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self.prompt_ids([{"role": "user", "content": "x"}])  # a model without a chat template fails here

    def add(self, request: Json) -> None:
        number: int = request["id"]
        self._tasks[number] = task = asyncio.create_task(self._reply(request))
        task.add_done_callback(lambda _: self._tasks.pop(number))
        task.add_done_callback(end_on_fault)

    def cancel(self, number: int) -> None:
        if (task := self._tasks.get(number)) is not None:
            task.cancel()

    def end(self) -> None:
        self.engine.shutdown(timeout=3.0)

    async def _reply(self, request: Json) -> None:
        import jinja2
        from vllm.exceptions import VLLMClientError  # type: ignore[import-not-found]  # an extra
        from vllm.v1.engine.exceptions import (  # type: ignore[import-not-found]  # an extra
            EngineDeadError,
            EngineGenerateError,
        )

        try:
            said = {"answer": await self.answer(request)}
        except (VLLMClientError, ValueError, jinja2.TemplateError) as error:
            said = {"refused": str(error)}
        except EngineGenerateError as error:
            said = {"failed": repr(error.__cause__ or error)}
        except EngineDeadError:
            traceback.print_exc()
            leave(1)
        self._writer.write(orjson.dumps({"id": request["id"], **said}) + b"\n")
        await self._writer.drain()

    async def answer(self, request: Json) -> Json:
        """Raises what vLLM raises, and ValueError for a prompt that leaves no room for its answer."""
        ids = await self._aside(self.prompt_ids, request["messages"])
        if request["kind"] == "logprobs":
            return await self._logprobs(ids, request)
        if request["kind"] == "fill":
            return await self._fill(ids, request)
        if len(ids) + request["max_tokens"] > self.context_length:
            raise ValueError(
                f"its prompt has {len(ids):,} tokens and its answer may have {request['max_tokens']:,}, "
                f"which is more than the {self.context_length:,} tokens of a context."
            )
        labels: dict[str, list[int]] = {}
        if request["label_tokens"]:
            labels = await self._aside(self._label_ids, request["label_tokens"])
        output = await self._run(request["id"], ids, **_sampling(request, labels))
        said = output.outputs[0]
        return {
            "text": said.text,
            "finish_reason": said.finish_reason,
            "label_logprobs": self._sums(said.token_ids, said.logprobs, labels) if labels else None,
            "prompt_tokens": len(ids),
            "cached_tokens": output.num_cached_tokens or 0,
            "completion_tokens": len(said.token_ids),
        }

    async def _logprobs(self, ids: list[int], request: Json) -> Json:
        added: list[int] = await self._aside(
            partial(self._tokenizer.encode, add_special_tokens=False), request["continuation"]
        )
        if not added:
            return {"logprobs": [], "prompt_tokens": 0, "completion_tokens": 0}
        both = [*ids, *added]
        output = await self._run(request["id"], both, max_tokens=1, temperature=0.0, prompt_logprobs=0)
        rows = output.prompt_logprobs[len(ids) :]
        logprobs = [row[token].logprob for row, token in zip(rows, added, strict=True)]
        return {"logprobs": logprobs, "prompt_tokens": len(both), "completion_tokens": 1}

    async def _fill(self, ids: list[int], request: Json) -> Json:
        """Reads what could stand in the place of each filler, behind everything before it."""
        encode = partial(self._tokenizer.encode, add_special_tokens=False)
        filler: list[int] = await self._aside(encode, request["filler"])
        labels = await self._aside(self._label_ids, request["label_tokens"])
        both, places = list(ids), list[int]()
        for piece in request["pieces"]:
            both += await self._aside(encode, piece)
            places.append(len(both))
            both += filler
        output = await self._run(request["id"], both, max_tokens=1, temperature=0.0, prompt_logprobs=_N_TOP)
        rows = (output.prompt_logprobs[place] for place in places)
        filled = [_likely(row, labels) for row in rows]
        return {"filled": filled, "prompt_tokens": len(both), "completion_tokens": 1}

    async def _run(self, number: int, ids: list[int], **sampling: Any) -> Any:
        from vllm.sampling_params import (  # type: ignore[import-not-found]  # an extra
            RequestOutputKind,
            SamplingParams,
        )

        params = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **sampling)
        last: Any = None
        async for output in self.engine.generate({"prompt_token_ids": ids}, params, str(number)):
            last = output
        return last

    # --- tokens ------------------------------------------------------------------------------------------

    async def _aside(self, work: Callable[..., _T], *given: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *given)

    def prompt_ids(self, messages: list[Json]) -> list[int]:
        """Raises what the chat template raises, which may refuse roles or their order."""
        return self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False, **self._template_kwargs
        )

    def _label_ids(self, labels: Sequence[str]) -> dict[str, list[int]]:
        """The tokens that spell each label: ` Yes`, `yes`, `YES`. ValueError where there are too many."""
        found = self._spellings.of(labels)
        if not any(found.values()) or sum(map(len, found.values())) > _MOST_LABEL_TOKENS:
            raise ValueError(f"the labels {', '.join(labels)} are no single tokens, or too many.")
        return found

    def _sums(
        self, tokens: Sequence[int], positions: Sequence[Mapping[int, Any]], labels: dict[str, list[int]]
    ) -> dict[str, float] | None:
        """Natural log of each label's probability over its spellings, at the first token of the answer that
        is not white space; None where there is none. A label without a spelling is absent."""
        answers = zip(tokens, positions, strict=True)
        at = next((position for token, position in answers if self._tokenizer.decode([token]).strip()), None)
        if at is None:
            return None
        sums = {label: sum(math.exp(at[token].logprob) for token in ids) for label, ids in labels.items()}
        return {label: math.log(mass) for label, mass in sums.items() if mass > 0.0}


def _likely(row: Mapping[int, Any], labels: dict[str, list[int]]) -> dict[str, float]:
    """Natural log of each label's probability over those of its spellings that are in the row."""
    sums = {
        label: sum(math.exp(row[token].logprob) for token in ids if token in row)
        for label, ids in labels.items()
    }
    return {label: math.log(mass) for label, mass in sums.items() if mass > 0.0}


def _engine_args(setup: Json) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs  # type: ignore[import-not-found]  # an extra
    from vllm.platforms import current_platform  # type: ignore[import-not-found]  # an extra

    args: Json = {
        "model": setup["model"],
        "revision": setup["revision"] or None,
        "dtype": setup["dtype"],
        "quantization": setup["quantization"],
        "max_model_len": setup["context_length"],
        "tensor_parallel_size": setup["tensor_parallel"],
        "gpu_memory_utilization": setup["memory"],
        "disable_log_stats": True,
        # Compact JSON: small models else fill a whole answer with white space.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    if current_platform.is_cpu():  # for tests: compiling takes longer there than all that it saves
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
        args["enforce_eager"] = True
    args |= setup["engine_args"]
    if args["max_model_len"] is None:
        args["max_model_len"] = min(
            ENOUGH_CONTEXT, AsyncEngineArgs(**args).create_model_config().max_model_len
        )
    return AsyncEngineArgs(**args)


def _sampling(request: Json, labels: dict[str, list[int]]) -> Json:
    """SamplingParams of a request. Under a grammar vLLM reports probabilities among the allowed answers
    alone, so with labels there is none."""
    from vllm.sampling_params import StructuredOutputsParams  # type: ignore[import-not-found]  # an extra

    sampling = {name: request[name] for name in ("max_tokens", "temperature", "seed")}
    if labels:
        sampling["logprob_token_ids"] = [token for ids in labels.values() for token in ids]
    elif request["choices"]:
        sampling["structured_outputs"] = StructuredOutputsParams(choice=request["choices"])
    elif request["schema"]:
        sampling["structured_outputs"] = StructuredOutputsParams(json=request["schema"])
    return sampling


if __name__ == "__main__":
    run(Serving)
