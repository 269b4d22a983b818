"""autointerp: what every feature of a sparse dictionary does, in a sentence, with numbers to trust it by.

    import autointerp
    run = autointerp.explain(sae="demo", n_features=200, out="outputs/demo")
    run.scores()

Importing this loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["Run", "__version__", "explain"]

if TYPE_CHECKING:
    from autointerp.pipeline import explain
    from autointerp.run import Run


def __getattr__(name: str) -> Any:
    if name == "explain":
        from autointerp.pipeline import explain

        return explain
    if name == "Run":
        from autointerp.run import Run

        return Run
    raise AttributeError(f"module 'autointerp' has no attribute '{name}'")
