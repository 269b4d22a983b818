"""SAELens' names, from its list: a package of that name is made up, and must not be imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from autointerp.dictionaries import locate
from autointerp.dictionaries.locate import find_dictionary
from autointerp.dictionaries.registry import registered
from autointerp.dictionaries.spec import Expected
from autointerp.errors import CheckpointError
from tiny import Tiny

LIST = {
    "a-release": {
        "conversion_func": None, "model": "gpt2-small", "repo_id": "org/repo",
        "config_overrides": {
            "dataset_path": "org/text", "model_from_pretrained_kwargs": {"center_writing_weights": True}
        },
        "saes": [
            {"id": "blocks.1.hook_resid_post", "path": "layer_1", "l0": 24, "variance_explained": 0.75},
            {"id": "other", "path": "x/y"},
        ],
    },
    "a-release-2": {"model": "m", "repo_id": "o/r", "saes": [{"id": "x", "path": "p"}]},
    "odd": {
        "model": "m", "repo_id": "o/r", "config_overrides": {"apply_b_dec_to_input": False},
        "saes": [{"id": "x", "path": "p"}],
    },
}  # fmt: skip


@pytest.fixture
def sae_lens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "packages" / "sae_lens"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "pretrained_saes.yaml").write_text(yaml.safe_dump(LIST))
    monkeypatch.syspath_prepend(str(folder.parent))


@pytest.mark.usefixtures("sae_lens")
def test_a_name_is_a_repository_folder_and_what_is_expected(
    made: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[tuple[str, str, str | None]] = []

    def fetch(repo: str, place: str, revision: str | None) -> Path:
        fetched.append((repo, place, revision))
        return made.sae

    monkeypatch.setattr(locate, "_fetched", fetch)
    spec = find_dictionary("a-release/blocks.1.hook_resid_post")
    assert fetched == [("org/repo", "layer_1", None)]
    assert spec.expected == Expected(l0=24.0, fvu=0.25)
    assert (spec.model, spec.corpus, spec.model_was_centred) == ("tiny", "org/text", True)
    assert find_dictionary("a-release/other").expected == Expected()
    assert find_dictionary("a-release-2/x").model_was_centred is False
    assert fetched[1:] == [("org/repo", "x/y", None), ("o/r", "p", None)]
    assert "sae_lens" not in sys.modules


@pytest.mark.usefixtures("sae_lens")
def test_what_the_list_does_not_have(made: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    assert registered("some-org/some-repo") is None and registered("a") is None
    with pytest.raises(
        CheckpointError, match=r"release 'a-release' has no 'x'. It has: blocks.1.hook_resid_post, other"
    ):
        registered("a-release/x")
    monkeypatch.setattr(locate, "_fetched", lambda *_: made.sae)
    with pytest.raises(CheckpointError, match="overrides apply_b_dec_to_input of o/r:p, which is not read"):
        find_dictionary("odd/x")


def test_without_the_package_a_name_is_a_repository() -> None:
    assert registered("a-release/other") is None
