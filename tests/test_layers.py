"""Imports point one way: what DESIGN calls layers, checked on the syntax trees."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "autointerp"

LAYERS = [
    {
        "errors",
        "types",
        "trials",
        "splits",
        "results",
        "sequential",
        "effects",
        "distant",
        "identity",
        "draw",
        "environment",
        "demo",
        "progress",
        "children",
        "garbage",
        "spread",
    },
    {"files", "portion"},
    {"journal", "lock", "metrics", "prompting", "plugins"},
    {"fill"},
    {"dictionaries", "subject", "llm"},
    {"activations"},
    {"sampling"},
    {"asking", "sections", "evidence"},
    {"explainers", "scorers"},
    {"recipe"},
    {"sources", "identities"},
    {"fits", "centring"},
    {"places"},
    {"resolve"},
    {"needs"},
    {"tables", "judges", "panel"},
    {"run"},
    {"stages"},
    {"scored", "verify", "floors", "shorthand"},
    {"pipeline", "prefetch", "repair", "rescore", "merge", "union", "pack", "report", "bench", "check"}
    | {"controls", "bridge", "comparison", "published", "publish", "view", "neuronpedia", "tracking"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

UPWARDS = {("run/__init__.py", "autointerp.report.notebook")}
"""What may import from a layer above, when it is called: a notebook asks the run itself how it looks."""

FENCES = {
    "vllm": {"llm/vllm_engine.py"},
    "sentence_transformers": {"llm/embedding_engine.py"},
    "openai": {"llm/endpoints.py", "bench/llm_child.py"},
    "asyncio_throttle": {"llm/pacing.py"},
    "typer": {"cli/"},
    "matplotlib": {"report/plots.py"},
    "wandb": {"tracking.py"},
}
TORCH_AT_IMPORT = (
    "subject/",
    "dictionaries/",
    "activations/",
    "stages/cache.py",
    "stages/calibrating.py",
    "stages/check.py",
    "stages/directions.py",
    "stages/frozen.py",
    "stages/intervene.py",
    "stages/probe.py",
    "stages/random_rates.py",
    "stages/sources.py",
    "stages/token_embedding.py",
    "bench/",
)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room(name: str) -> str:
    """`autointerp.sampling.store` -> `sampling`."""
    return name.split(".")[1] if "." in name else "__init__"


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether at import time); what only a type checker sees is left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))

    def walk(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                names = [f"{child.module}.{alias.name}" for alias in child.names]
                yield from (
                    (name if child.module == "autointerp" else str(child.module), at_import) for name in names
                )
            inside = at_import and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, inside)

    yield from walk(tree, True)


@pytest.mark.parametrize("path", modules(), ids=place)
def test_a_module_imports_only_from_layers_below_or_its_own(path: Path) -> None:
    own = place(path).split("/")[0].removesuffix(".py")
    if own == "__init__":
        return  # the public names, loaded when asked for
    for name, at_import in imports(path):
        if name.split(".")[0] != "autointerp" or room(name) in ("__init__", "__version__"):
            continue
        if (place(path), name) in UPWARDS and not at_import:
            continue
        other = room(name)
        assert other in LEVEL, f"{place(path)} imports {name}, which has no layer"
        same_room = other == own
        assert same_room or LEVEL[other] <= LEVEL[own], f"{place(path)} must not import {name}"


@pytest.mark.parametrize("path", modules(), ids=place)
def test_fenced_packages_are_imported_in_one_place(path: Path) -> None:
    for name, _ in imports(path):
        package = name.split(".")[0]
        if package in FENCES and not name.startswith("autointerp"):
            assert place(path).startswith(tuple(FENCES[package])), f"{place(path)} imports {package}"


@pytest.mark.parametrize("path", modules(), ids=place)
def test_torch_is_imported_at_import_time_only_where_tensors_are_made(path: Path) -> None:
    if place(path).startswith(TORCH_AT_IMPORT):
        return
    assert not [name for name, at_import in imports(path) if at_import and name.split(".")[0] == "torch"]


@pytest.mark.parametrize(
    "code",
    [
        "import autointerp",
        "import autointerp.cli",
        "from autointerp import explain, Run",
        "import autointerp.dictionaries.locate",
        "from autointerp.llm.vllm import is_default_here; is_default_here()",
        "from autointerp.plugins import names; [names(k) for k in ('explainers', 'scorers', 'llm', 'dictionaries')]",
    ],
)
def test_the_command_line_process_never_loads_torch(code: str) -> None:
    check = f"{code}; import sys; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_no_room_has_a_name_that_says_nothing() -> None:
    assert not {path.stem for path in modules()} & {"utils", "util", "helpers", "common", "misc", "manager"}
