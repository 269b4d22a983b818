"""What is installed: pins that agree with the ranges, a wheel that holds all it needs and runs elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = (line.partition("==") for line in lines if line and not line.startswith("#"))
    return {canonical(name): Version(version) for name, _, version in found}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    texts = [*PROJECT["dependencies"], *extras["test"], *extras["dev"]]
    return [one for one in map(Requirement, texts) if canonical(one.name) != "autointerp-pipeline"]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda one: one.name)
def test_every_requirement_is_pinned_inside_its_range(requirement: Requirement) -> None:
    pinned = pins()[canonical(requirement.name)]
    assert requirement.specifier.contains(pinned, prereleases=True)


def test_torch_and_transformers_are_the_pair_that_vllm_wants() -> None:
    assert pins()["torch"] == Version("2.13.0")
    assert pins()["transformers"].release[:2] == (5, 19)


def test_heavy_things_are_extras() -> None:
    base = {canonical(Requirement(text).name) for text in PROJECT["dependencies"]}
    assert not base & {"vllm", "ray", "sentence-transformers", "scikit-learn", "pytest"}
    assert {"vllm", "embed", "test", "dev"} <= set(PROJECT["optional-dependencies"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Without isolation the build runs offline; the build backend is among the test tools.
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_prompts_recipes_and_the_demo(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "autointerp/prompts/explain/plain.jinja",
        "autointerp/prompts/score/detection.jinja",
        "autointerp/pipelines/default.yaml",
        "autointerp/demo/model/model.safetensors",
        "autointerp/demo/dictionary/sae_weights.safetensors",
    ):
        assert name in names
    assert wheel.stat().st_size < 9e6
    assert not [name for name in names if name.startswith(("tests/", "outputs/"))]


def test_the_demo_is_at_most_8_mb() -> None:
    files = [path for path in (ROOT / "autointerp" / "demo").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files if path.suffix != ".pyc") <= 8e6


def test_an_installed_wheel_runs_the_demo_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    """Installed without its dependencies into an environment that borrows them from this one."""
    home = tmp_path / "env"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True)
    site = subprocess.run(
        [str(python), "-c", "import site; print(site.getsitepackages()[0])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (Path(site) / "borrowed.pth").write_text("\n".join(borrowed))
    out = tmp_path / "elsewhere"
    out.mkdir()
    command = [str(home / "bin" / "autointerp"), "explain", "--sae", "demo", "--n-features", "4"]
    result = subprocess.run(
        [*command, "--set", "cache.n_tokens=30000", "--set", "sampling.minimum=10"],
        cwd=out, capture_output=True, text=True, check=False,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "scored · plain · fuzzing" in result.stdout
    assert (out / "outputs" / "demo" / "recipe.yaml").is_file()
    where = subprocess.run(
        [str(python), "-c", "import autointerp; print(autointerp.__file__)"],
        capture_output=True, text=True, check=True, cwd=out,
    ).stdout  # fmt: skip
    assert str(home) in where  # the wheel, not this checkout
