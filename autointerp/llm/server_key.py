"""The key of an OpenAI-compatible server, from the environment and kept nowhere else."""

from __future__ import annotations

import os

from autointerp.errors import LLMStopped


def key_of(name: str, model: str, *, required: bool) -> str:
    """The key in the environment variable `name`; empty where there is none and none is required, or where
    `name` is empty. Raises LLMStopped."""
    key = os.environ.get(name, "").strip() if name else ""
    if required and name and not key:
        raise LLMStopped(
            f"the environment variable {name} is not set, and the LLM '{model}' needs a key.\n"
            f"  export {name}=...        the server's key, or\n"
            "  api_key_env: OTHER_NAME  if the key is in another variable, or\n"
            "  api_key_env: ''          if the server asks for no key."
        )
    if not (key.isascii() and key.isprintable()):
        raise LLMStopped(f"{name} holds characters that no key has (not printable ASCII). Set it again.")
    return key
