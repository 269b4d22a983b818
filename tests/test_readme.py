"""The README's commands and code run, in its order, in one folder."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader types: holds the demo run after its first command."""
    where = tmp_path_factory.mktemp("reader")
    command = next(line for line in README.splitlines() if line.startswith("make demo")).partition("then: ")[
        2
    ]
    result = typed(command, where)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "balanced accuracy" in result.stdout
    return where


def typed(command: str, where: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command)
    assert words[0] == "autointerp"
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=where, capture_output=True, text=True, check=False
    )


def test_make_has_the_two_commands_and_runs_what_the_readme_says() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(
        r"^demo: install\n\t\$\(BIN\)/autointerp explain --sae demo --n-features 200$", makefile, re.M
    )
    assert re.search(r"^test: install-test\n\t\$\(BIN\)/python -m pytest$", makefile, re.M)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("row", [row for row in README.splitlines() if re.search(r"\| `autointerp", row)])
def test_each_command_of_the_table_runs(folder: Path, row: str) -> None:
    command = re.findall(r"`(autointerp [^`]*)`", row)[0]
    result = typed(command, folder)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.strip()


def test_the_python_example_runs_and_prints(folder: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 3 and lines[0].startswith("layers.2/")


def test_figures_are_those_of_the_demo() -> None:
    figures = yaml.safe_load((ROOT / "autointerp" / "demo" / "figures.json").read_text())
    for name, text in (
        ("nats_per_token_model", "{:.2f} nats a token"),
        ("nats_per_token_trigram", "trigram: {:.2f}"),
        ("l0", "L0 {:.0f}"),
        ("fvu", "FVU {:.3f}"),
    ):
        assert text.format(figures[name]) in README


def test_the_demo_meets_what_it_promises() -> None:
    figures = yaml.safe_load((ROOT / "autointerp" / "demo" / "figures.json").read_text())
    assert figures["nats_per_token_model"] < figures["nats_per_token_trigram"]
    assert figures["l0"] <= 32 and figures["fvu"] <= 0.25 and figures["alive_share"] >= 0.6


def test_names_in_the_readme_exist() -> None:
    for name in re.findall(r"`((?:pipelines|prompts|tests|autointerp)/[\w./]+)`", README):
        assert (ROOT / name).exists(), name


def test_shipped_recipes_parse_and_say_what_they_take() -> None:
    from autointerp import recipe as recipes

    for path in (ROOT / "pipelines").glob("*.yaml"):
        head = path.read_text().partition("\n\n")[0]
        assert "autointerp " in head and "Hardware" in head
        mapping = recipes.merge(
            yaml.safe_load(path.read_text()), {"dictionaries": {"auto": {"path": "demo"}}}
        )
        recipes.parse(mapping)
