"""transformers itself, in a process of its own (`engine_process.py` starts it and says what is exchanged).

Requests for log-probabilities that wait are read together. What the prompts of a batch begin with in common, the
task and its examples, is read once and its keys and values kept, for later batches too; the rest is padded on the
right, where a causal model sees none of it.

Shapes: B requests, T tokens behind the common beginning, V tokens of the vocabulary.
"""

from __future__ import annotations

import asyncio
import copy
import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import orjson

from autointerp.llm.engine_process import MAX_LINE
from autointerp.llm.process_guard import pass_over
from autointerp.types import Json

_SHORTEST_PREFIX: Final = 16
"""Tokens: a shorter common beginning is not worth keeping."""
_ELEMENTS: Final = 2**27
"""Of logits [B, T, V]."""


class Refusal(ValueError):
    """A request that can't be answered; the message says why."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A continuation whose probability is asked for."""

    prompt: list[int]
    added: list[int]


class Model:
    """A causal language model and its tokenizer."""

    def __init__(self, setup: Json) -> None:
        """Raises whatever transformers raises."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        device = setup["device"]
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = setup["dtype"]
        if dtype == "auto":
            dtype = "float32" if device == "cpu" else "bfloat16"
        known: Json = {"revision": setup["revision"] or "main", "trust_remote_code": False}
        load: Any = AutoModelForCausalLM
        self.model: Any = load.from_pretrained(
            setup["model"], dtype=getattr(torch, dtype), use_safetensors=True, **known
        )
        self.model.to(device).eval().requires_grad_(False)
        load = AutoTokenizer
        self.tokenizer: Any = load.from_pretrained(setup["model"], **known)
        template = self.tokenizer.chat_template
        if setup["chat"] and not template:
            raise ValueError("it has no chat template, and `chat` is true")
        self._chat = bool(template) if setup["chat"] is None else setup["chat"]
        self.context_length: int = getattr(
            self.model.config.get_text_config(), "max_position_embeddings", 2**20
        )
        self._prefix: tuple[list[int], Any] = ([], None)
        """The common beginning read last, and its keys and values."""

    # --- tokens ------------------------------------------------------------------------------------------

    def prompt_ids(self, turns: Sequence[Json]) -> list[int]:
        """Raises what the chat template raises, which may refuse roles or their order."""
        if self._chat:
            return self.tokenizer.apply_chat_template(
                list(turns), add_generation_prompt=True, tokenize=True, return_dict=False
            )
        text = "".join(turn["content"].rstrip() + "\n" for turn in turns)
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        tokens = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        first = next((token for token in tokens if token is not None), None)
        return ids if first is None else [first, *ids]

    def asked(self, request: Json) -> Asked:
        """Raises Refusal for a prompt that is too long."""
        prompt = self.prompt_ids(request["messages"])
        added = self.tokenizer.encode(request["continuation"], add_special_tokens=False)
        self._check_length(len(prompt), len(added))
        return Asked(prompt, added)

    def _check_length(self, n_prompt: int, n_answer: int) -> None:
        if n_prompt + n_answer > self.context_length:
            raise Refusal(
                f"its prompt has {n_prompt:,} tokens and its answer up to {n_answer:,}, which is more than the "
                f"{self.context_length:,} tokens of a context."
            )

    # --- log-probabilities -------------------------------------------------------------------------------

    def logprobs(self, batch: Sequence[Asked]) -> list[list[float]]:
        """Of each continuation the natural-log probability of each token."""
        longest = max(len(one.prompt) + len(one.added) for one in batch)
        size = max(1, _ELEMENTS // (longest * self.model.config.get_text_config().vocab_size))
        found: list[list[float]] = []
        for start in range(0, len(batch), size):
            found += self._logprobs(batch[start : start + size])
        return found

    def _logprobs(self, batch: Sequence[Asked]) -> list[list[float]]:
        import torch

        # The last token of a prompt is read with the rest: its logits are the first that are needed.
        n_prefix, cache = self._common([one.prompt[:-1] for one in batch])
        rests = [(one.prompt + one.added[:-1])[n_prefix:] if one.added else one.prompt[-1:] for one in batch]
        ids_BT = torch.zeros(len(batch), max(map(len, rests)), dtype=torch.int64)
        for row, rest in enumerate(rests):
            ids_BT[row, : len(rest)] = torch.tensor(rest)
        with torch.inference_mode():
            own = None
            if cache is not None:
                own = copy.copy(cache)
                own.layers = [copy.copy(layer) for layer in cache.layers]
                own.batch_repeat_interleave(len(batch))
            logits_BTV = self.model(
                input_ids=ids_BT.to(self.model.device), past_key_values=own, use_cache=own is not None
            ).logits
            found: list[list[float]] = []
            for row, one in enumerate(batch):
                first = len(one.prompt) - 1 - n_prefix
                logp_tV = logits_BTV[row, first : first + len(one.added)].float().log_softmax(dim=-1)
                at = torch.tensor(one.added, dtype=torch.int64, device=logp_tV.device)
                found.append(logp_tV.gather(1, at[:, None])[:, 0].tolist())
        return found

    def _common(self, prompts: Sequence[list[int]]) -> tuple[int, Any]:
        """How many tokens all begin with, and the keys and values of these; (0, None) where they are few."""
        import torch

        known, cache = self._prefix
        if known and all(prompt[: len(known)] == known for prompt in prompts):
            return len(known), cache
        n = _n_common(min(prompts), max(prompts))  # in the order of lists these differ first
        if n < _SHORTEST_PREFIX or len(prompts) < 2:
            return 0, None
        prefix = prompts[0][:n]
        with torch.inference_mode():
            out = self.model(
                input_ids=torch.tensor([prefix], device=self.model.device), use_cache=True, logits_to_keep=1
            )
        if getattr(out, "past_key_values", None) is None:
            return 0, None
        self._prefix = (prefix, out.past_key_values)
        return n, out.past_key_values

    # --- text --------------------------------------------------------------------------------------------

    def generate(self, request: Json) -> Json:
        """One answer. Raises Refusal."""
        import torch

        ids, most = self.prompt_ids(request["messages"]), request["max_tokens"]
        self._check_length(len(ids), most)
        prompt_1T = torch.tensor([ids], device=self.model.device)
        # A stream of its own for each request, whatever was drawn before: this process answers nothing else.
        torch.manual_seed(int.from_bytes(orjson.dumps(request["seed"])) % 2**63)
        drawn: Json = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if request["temperature"] > 0:
            drawn = {"do_sample": True, "temperature": request["temperature"], "top_p": 1.0, "top_k": 0}
        with torch.inference_mode():
            output = self.model.generate(
                prompt_1T,
                attention_mask=torch.ones_like(prompt_1T),
                max_new_tokens=most,
                output_scores=True,
                output_logits=True,
                return_dict_in_generate=True,
                pad_token_id=self.tokenizer.eos_token_id or 0,
                **drawn,
            )
        said: list[int] = output.sequences[0, len(ids) :].tolist()
        ended = bool(said) and said[-1] == self.tokenizer.eos_token_id
        labels = request["label_tokens"]
        return {
            "text": self.tokenizer.decode(said, skip_special_tokens=True),
            "finish_reason": "stop" if ended else "length",
            "label_logprobs": self._labels(output.logits[0][0], labels) if labels else None,
            "prompt_tokens": len(ids),
            "completion_tokens": len(said),
        }

    def _labels(self, logits_V: Any, labels: Sequence[str]) -> Json:
        """Natural log of each label's probability as the first token, over its spellings (` Yes`, `yes`, `YES`)
        that are a single token. A label without one is absent."""
        logp_V, found = logits_V.float().log_softmax(dim=-1), dict[str, float]()
        for label in labels:
            word = label.strip()
            spellings = {
                space + form
                for space in ("", " ")
                for form in (word, word.lower(), word.title(), word.upper())
            }
            encoded = [self.tokenizer.encode(text, add_special_tokens=False) for text in sorted(spellings)]
            ids = sorted({one[0] for one in encoded if len(one) == 1})
            if ids:
                found[label] = float(logp_V[ids].logsumexp(dim=0))
        return found


def _n_common(one: list[int], other: list[int]) -> int:
    """How many items two lists begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


# --- the process ---------------------------------------------------------------------------------------


class Serving:
    """One thread works; requests that come meanwhile wait, and those for log-probabilities are read together."""

    def __init__(self, model: Model, batch_size: int, writer: asyncio.StreamWriter) -> None:
        self._model, self._batch_size, self._writer = model, batch_size, writer
        self._waiting: dict[int, Json] = {}
        self._came = asyncio.Event()
        self._pool = ThreadPoolExecutor(1)

    def add(self, request: Json) -> None:
        if "cancel" in request:
            self._waiting.pop(request["cancel"], None)
            return
        self._waiting[request["id"]] = request
        self._came.set()

    async def work(self) -> None:
        while True:
            await self._came.wait()
            await asyncio.sleep(0)  # whatever has come with it goes into the same batch
            while self._waiting:
                batch = self._next_batch()
                for said in await asyncio.get_running_loop().run_in_executor(self._pool, self._answer, batch):
                    self._writer.write(orjson.dumps(said) + b"\n")
                await self._writer.drain()
            self._came.clear()

    def _next_batch(self) -> list[Json]:
        """Log-probabilities first, some at a time; a text alone."""
        of_kind = [n for n, request in self._waiting.items() if request["kind"] == "logprobs"]
        numbers = of_kind[: self._batch_size] or [next(iter(self._waiting))]
        return [self._waiting.pop(number) for number in numbers]

    def _answer(self, batch: list[Json]) -> list[Json]:
        import jinja2

        said: list[Json] = []
        asked: dict[int, Asked] = {}
        for request in batch:
            try:
                if request["kind"] == "generate":
                    said.append({"id": request["id"], "answer": self._model.generate(request)})
                else:
                    asked[request["id"]] = self._model.asked(request)
            except (Refusal, jinja2.TemplateError) as error:
                said.append({"id": request["id"], "refused": str(error)})
        if asked:
            found = self._model.logprobs(list(asked.values()))
            answers = zip(asked, found, strict=True)
            said += [{"id": number, "answer": {"logprobs": one}} for number, one in answers]
        return said


async def _serve(fd: int) -> None:
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=fd), limit=MAX_LINE)
    setup: Json = orjson.loads(await reader.readline())
    try:
        model = Model(setup)
    except Exception as error:
        writer.write(orjson.dumps({"fatal": f"{type(error).__name__}: {error}"}) + b"\n")
        await writer.drain()
        raise
    writer.write(orjson.dumps({"ready": {"context_length": model.context_length}}) + b"\n")
    serving = Serving(model, setup["batch_size"], writer)
    working = asyncio.create_task(serving.work())
    working.add_done_callback(_check)
    while line := await reader.readline():
        serving.add(orjson.loads(line))
    _leave(0)


def _check(task: asyncio.Task[None]) -> None:
    """A fault that nobody foresaw ends the process: else requests would wait forever."""
    if not task.cancelled() and (error := task.exception()) is not None:
        traceback.print_exception(error)
        _leave(1)


def _leave(status: int) -> NoReturn:
    """At once: a batch that is being read must not hold up the end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _main() -> NoReturn:
    # Schedulers send it to all processes of a job; the parent says what it means. See `process_guard`.
    signal.signal(signal.SIGTERM, pass_over)
    status = 1
    try:
        asyncio.run(_serve(int(sys.argv[1])))
        status = 0
    finally:
        if status:
            traceback.print_exc()
        _leave(status)


if __name__ == "__main__":
    _main()
