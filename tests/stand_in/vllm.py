"""Stands in for vLLM in tests of what is around it: the few names that `llm/vllm_engine.py` uses, in one file.

A token is a character, but for a few whole words. What an answer is, or how a request fails, stands in the
prompt's last line. AUTOINTERP_STAND_IN names a file that gets a line for each thing that happens.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2

WORDS = {200: "yes", 201: " Yes", 202: "no", 203: " "}
LOGPROBS = {200: -1.0, 201: -2.0, 202: -3.0, 203: -9.0}


class VLLMClientError(Exception):
    pass


class EngineDeadError(Exception):
    pass


class EngineGenerateError(Exception):
    pass


class SamplingParams(SimpleNamespace):
    pass


class StructuredOutputsParams(SimpleNamespace):
    pass


class RequestOutputKind:
    FINAL_ONLY = "final"


class AsyncEngineArgs(SimpleNamespace):
    def create_model_config(self) -> Any:
        return SimpleNamespace(max_model_len=40_000)


def note(text: str) -> None:
    with Path(os.environ["AUTOINTERP_STAND_IN"]).open("a", encoding="utf-8") as file:
        file.write(text + "\n")


class Tokenizer:
    def __len__(self) -> int:
        return 204

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(character) for character in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(WORDS.get(token) or chr(token) for token in tokens)

    def apply_chat_template(self, messages: list[dict[str, str]], **kwargs: Any) -> list[int]:
        assert kwargs.pop("add_generation_prompt") and kwargs.pop("tokenize")
        assert kwargs == {"return_dict": False, "enable_thinking": False}
        if messages[0]["role"] == "system" and "no system" in messages[0]["content"]:
            raise jinja2.TemplateError("there is no system role")
        return [ord(character) for character in "\n".join(turn["content"] for turn in messages)]


class AsyncLLM:
    @classmethod
    def from_engine_args(cls, args: AsyncEngineArgs) -> AsyncLLM:
        # What vLLM starts in turn, and it does not end when it is asked to.
        code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
        grandchild = subprocess.Popen([sys.executable, "-c", code])
        note(f"pid {os.getpid()}\npid {grandchild.pid}\nstarted {args.model}")
        if args.model == "org/missing":
            raise OSError("there is no such model on the hub")
        if args.model == "org/slow":
            re.match("(a|aa)+$", "a" * 70 + "b")  # holds the interpreter's lock for hours
        return cls(args)

    def __init__(self, args: AsyncEngineArgs) -> None:
        self.args = args
        self.model_config = SimpleNamespace(max_model_len=args.max_model_len, get_vocab_size=lambda: 300)

    def get_tokenizer(self) -> Tokenizer:
        return Tokenizer()

    def shutdown(self, timeout: float) -> None:
        note("shutdown")

    async def generate(self, prompt: dict[str, list[int]], params: Any, number: str) -> AsyncIterator[Any]:
        ids = prompt["prompt_token_ids"]
        text = Tokenizer().decode(ids).rpartition("\n")[2]
        try:
            if text.startswith("wait"):
                await asyncio.sleep(float(text.split()[1]))
        except asyncio.CancelledError:
            note("aborted")
            raise
        if text == "kill me":
            os.kill(os.getpid(), signal.SIGKILL)
        errors = {
            "refused": VLLMClientError("the prompt is bad"), "dead": EngineDeadError("see above"),
            "failed": EngineGenerateError("this time"), "bug": TypeError("nobody foresaw this"),
        }  # fmt: skip
        if text in errors:
            raise errors[text]
        said, tokens = self.said(text, params)
        positions = [
            {token: SimpleNamespace(logprob=LOGPROBS[token]) for token in (params.logprob_token_ids or [])}
            for _ in tokens
        ] if hasattr(params, "logprob_token_ids") else None  # fmt: skip
        yield SimpleNamespace(
            outputs=[SimpleNamespace(text=said, token_ids=tokens, finish_reason="stop", logprobs=positions)],
            num_cached_tokens=3,
            prompt_logprobs=[{token: SimpleNamespace(logprob=-n / 10)} for n, token in enumerate(ids)],
        )

    def said(self, text: str, params: Any) -> tuple[str, list[int]]:
        if text == "cards":
            return os.environ.get("CUDA_VISIBLE_DEVICES", "none"), [200]
        if text == "settings":
            kinds = getattr(params, "structured_outputs", SimpleNamespace())
            return f"{vars(kinds)} {self.args.max_model_len} {self.args.gpu_memory_utilization}", [200]
        if text == "think":
            return "<think>hm</think> yes", [200]
        return f"said: {text}", [203, 200]


def _module(name: str, **content: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module


for _name in ("vllm.v1", "vllm.v1.engine", "vllm.engine"):
    _module(_name, __path__=[])
_module("vllm.v1.engine.async_llm", AsyncLLM=AsyncLLM)
_module("vllm.v1.engine.exceptions", EngineDeadError=EngineDeadError, EngineGenerateError=EngineGenerateError)
_module("vllm.engine.arg_utils", AsyncEngineArgs=AsyncEngineArgs)
_module("vllm.exceptions", VLLMClientError=VLLMClientError)
_module("vllm.platforms", current_platform=SimpleNamespace(is_cpu=lambda: False))
_module(
    "vllm.sampling_params",
    RequestOutputKind=RequestOutputKind,
    SamplingParams=SamplingParams,
    StructuredOutputsParams=StructuredOutputsParams,
)
__path__: list[str] = []
