"""YAML beside checkpoints: plain values, and nothing that costs more than it weighs."""

from __future__ import annotations

from pathlib import Path

import pytest

from autointerp.dictionaries.checkpoint import folder_of, read_settings
from autointerp.errors import CheckpointError


def test_yaml_is_read_by_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("model_kind: transcoder_set\nk: 3\nsub: {x: [1, 2]}\n7: number\n")
    settings = read_settings(tmp_path / "a.yaml")
    assert (settings.text("model_kind"), settings.count("k")) == ("transcoder_set", 3)
    assert settings.section("sub").values == {"x": [1, 2]}
    assert settings.text("7") == "number"


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("a: &a [x]\nb: *a\n", "aliases, and more than 50 levels, are not read"),
        ("a: !!python/object/apply:os.system ['touch hacked']", "not YAML"),
        ("a: !!python/tuple [1]", "not YAML"),
        ('a: !!int ""', "not YAML"),
        ("a: [", "not YAML"),
        ("[" * 5000, "not YAML"),
        ("- 1", "holds a list"),
        ("{}: " + "x" * 2**18, "too many for a configuration"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, point: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=point):
        read_settings(tmp_path / "a.yaml")
    assert not (tmp_path / "hacked").exists()


def test_only_its_own_files_name_a_folder(tmp_path: Path) -> None:
    for name in ("cfg.json", "other.pt"):
        (tmp_path / name).touch()
    assert folder_of(tmp_path / "cfg.json", "cfg.json") == tmp_path
    assert folder_of(tmp_path / "other.pt", "cfg.json") == tmp_path / "other.pt"
    assert folder_of(tmp_path / "other.pt") == tmp_path
    assert folder_of(tmp_path, "cfg.json") == tmp_path
