"""Which GPUs this process may use, asked without CUDA: only children that compute may initialise it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc/driver/nvidia/gpus")


def visible_gpus() -> tuple[str, ...]:
    """NVIDIA GPUs as CUDA_VISIBLE_DEVICES names them, those that it hides left out; empty where none is."""
    found = _installed()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not found:
        return found
    visible: list[str] = []
    for name in map(str.strip, chosen.split(",")):
        # As CUDA does: the first name that is none hides all behind it.
        if not (name.startswith(("GPU-", "MIG-")) or (name.isdigit() and int(name) < len(found))):
            break
        visible.append(name)
    return tuple(visible)


def _installed() -> tuple[str, ...]:
    """Indices; of a machine whose cards are cut into MIG instances the instances' ids."""
    if (tool := shutil.which("nvidia-smi")) is None:
        n = len(list(_PROC.iterdir())) if _PROC.is_dir() else 0
        return tuple(map(str, range(n)))
    try:
        said = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    cards = re.findall(r"^GPU (\d+):", said, re.MULTILINE)
    return tuple(re.findall(r"UUID: (MIG-[^)\s]+)", said) or cards)
