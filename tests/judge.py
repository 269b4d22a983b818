"""A scripted LLM for tests of the whole line: answers depend on the request alone, each is logged."""

from __future__ import annotations

import asyncio
import hashlib
import os

from autointerp.prompting import Prompt

LOG = "AUTOINTERP_TEST_LOG"
"""Environment variable: a file that gets one line a request, written before the answer is given."""
WAIT = "AUTOINTERP_TEST_WAIT"
"""Environment variable: seconds an answer takes."""


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
    await asyncio.sleep(float(os.environ.get(WAIT, "0")))
    if prompt.template.name.startswith("explain/"):
        if name[0] == "0" and index == 0:
            return "I am not sure."  # must be asked again
        return f"EXPLANATION: words like {name[:6]}\nLABEL: words {name[:6]}"
    n_windows = len(prompt.variables["views"])
    lines = [f"{n + 1}: {'yes' if int(name, 16) >> n & 1 else 'no'}" for n in range(n_windows)]
    if name[0] == "1":
        lines = lines[:-1]  # the last one is missing
    return "\n".join(lines)
