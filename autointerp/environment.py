"""What a run was made with: versions, for whoever has to explain a difference."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

from autointerp import __version__
from autointerp.types import Json


def environment() -> Json:
    """Versions of this package, Python, the platform and the libraries that results depend on."""
    packages = ("torch", "transformers", "numpy", "datasets", "openai", "safetensors", "tokenizers")
    versions: Json = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "autointerp": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": versions,
    }
