"""A scripted LLM for tests of the whole line: answers depend on the request alone, each is logged."""

from __future__ import annotations

import asyncio
import hashlib
import os

from autointerp.errors import LLMBadRequest, LLMStopped
from autointerp.prompting import Prompt

LOG = "AUTOINTERP_TEST_LOG"
"""Environment variable: a file that gets one line a request, written before the answer is given."""
WAIT = "AUTOINTERP_TEST_WAIT"
"""Environment variable: seconds an answer takes."""

AT_ONCE = MOST_AT_ONCE = 0
"""Requests being answered in this process, now and at most."""


def request_digest(prompt: Prompt, index: int) -> str:
    text = "\n".join(f"{turn.role}: {turn.content}" for turn in prompt.messages)
    return hashlib.blake2b(f"{index}\n{text}".encode(), digest_size=12).hexdigest()


async def answer(prompt: Prompt, index: int) -> str:
    """An explanation, or yes/no for each window by a hash of its text; some answers are faulty."""
    name = request_digest(prompt, index)
    if log := os.environ.get(LOG):
        fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{name}\n".encode())
        os.close(fd)
    global AT_ONCE, MOST_AT_ONCE
    AT_ONCE += 1
    MOST_AT_ONCE = max(MOST_AT_ONCE, AT_ONCE)
    await asyncio.sleep(float(os.environ.get(WAIT, "0")))
    AT_ONCE -= 1
    if prompt.template.name.startswith("explain/"):
        if name[0] == "0" and index == 0:
            return "I am not sure."  # must be asked again
        return f"EXPLANATION: words like {name[:6]}\nLABEL: words {name[:6]}"
    n_windows = len(prompt.variables["views"])
    lines = [f"{n + 1}: {'yes' if int(name, 16) >> n & 1 else 'no'}" for n in range(n_windows)]
    if name[0] == "1":
        lines = lines[:-1]  # the last one is missing
    return "\n".join(lines)


def short_context(prompt: Prompt, index: int) -> str:
    """Takes prompts of up to 3,500 characters."""
    if sum(len(turn.content) for turn in prompt.messages) > 3_500:
        raise LLMBadRequest("this model's maximum context length is 1024 tokens.")
    return "EXPLANATION: words\nLABEL: words"


def dead(prompt: Prompt, index: int) -> str:
    raise LLMStopped("the key is not valid any more.")
