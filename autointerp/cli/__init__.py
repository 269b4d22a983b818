"""The command line: one short function a verb, each in the module of its group. All work is done elsewhere; torch
is never loaded here (but by transformers, whose tokenizers `prefetch` needs)."""

from autointerp.cli import bench, comparing, explain, exporting, llm, publishing, runs, sae, view
from autointerp.cli.apps import app

__all__ = [
    "app",
    "bench",
    "comparing",
    "explain",
    "exporting",
    "llm",
    "main",
    "publishing",
    "runs",
    "sae",
    "view",
]  # a module's import adds its verbs


def main() -> None:
    """The console script."""
    app()
