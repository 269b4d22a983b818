"""The same features scored under two protocols: what a number of one is worth in the other.

Each protocol is a run of its own beside the one that is bridged, on the same rows and firings, which are not made
again: a second name of the same files. Of a protocol's recipe everything counts but what the activations come
from: model, dictionaries, corpus, cache, features, LLMs and seed are the run's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from autointerp import recipe as recipes
from autointerp.errors import RunError
from autointerp.files import carry
from autointerp.pipeline import prepare, run_line
from autointerp.progress import Progress, Stop
from autointerp.run import Run

OWN: Final = "own"
"""Names the protocol that the run itself has."""
_FROM_CACHE: Final = ("rows", "cache", "top-up", "directions")
_OF_PROTOCOL: Final = ("replica", "headline", "sampling", "explainers", "scorers")


def under(run: Run, protocol: str, folder: Path, progress: Progress, stop: Stop) -> Run:
    """The run's features under a protocol, a recipe file or the name of a shipped one; what is missing is made.

    `folder`: of all bridged runs; each has the recipe's name in it. Raises AutointerpErrors and Interrupted.
    """
    if protocol == OWN:
        run_line(run, progress=progress, stop=stop)
        return run
    if run.is_packed:
        raise RunError(
            f"{run.path} was packed without its cache, and another protocol needs other windows of it. Bridge the "
            f"run that it was packed from."
        )
    out = folder / Path(protocol).stem
    mapping = mapping_under(run, protocol)
    if not (out / "recipe.yaml").is_file():
        with run.lock():
            _share_cache(run, out)
    resolved, made = prepare(mapping, out)
    return run_line(made, progress=progress, stop=stop, resolved=resolved).run


def mapping_under(run: Run, protocol: str) -> dict[str, Any]:
    """The run's recipe with a protocol's windows, settings, explainers and scorers. Raises RecipeError."""
    of_file = recipes.read_file(protocol)
    recipes.check_shape(of_file)
    mapping = recipes.to_mapping(run.recipe)
    for name in _OF_PROTOCOL:
        mapping.pop(name, None)
    mapping["resources"] |= {"shard": None, "reuse_requests": None}
    mapping["controls"] = None  # what is asked is how far two protocols are apart
    return mapping | {name: of_file[name] for name in _OF_PROTOCOL if name in of_file}


def _share_cache(run: Run, out: Path) -> None:
    """What the device made. Parts come last: what they say of their files is then true."""
    for stage in _FROM_CACHE:
        files = [path for path in (run.path / stage).rglob("*") if path.is_file() and path.name[0] != "."]
        for path in sorted(files, key=lambda path: (path.suffix == ".jsonl", path)):
            target = out / path.relative_to(run.path)
            if not target.exists():
                carry(path, target)
