"""The line on a real pretrained model and real text; skipped where they don't lie beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from autointerp import pipeline


def test_a_real_model_and_corpus_go_through_the_line(real: Path, tmp_path: Path) -> None:
    """stories260K on children's stories, with a rotated basis of its residual stream as dictionary."""
    tiny.make_sae(tmp_path / "sae", d_in=64, hook="blocks.2.hook_resid_post")
    recipe = {
        "dictionaries": {"auto": {"path": str(tmp_path / "sae")}},
        "model": {"path": str(real / "models" / "stories260K")},
        "corpus": {"path": str(real / "corpora" / "tinystories_sample.txt")},
        "cache": {"n_tokens": 60_000},
        "features": {"n": 12},
        "llms": {"explainer": {"use": "lexical"}, "judge": {"use": "lexical"}},
    }
    run = pipeline.explain(recipe, out=tmp_path / "run")
    features = run.features().to_pylist()
    assert len(features) == 12 and all(row["n_tokens"] <= 60_000 for row in features)
    scores = run.scores().to_pylist()
    assert len(scores) >= 8
    assert {row["status"] for row in scores if row["scorer"] == "detection"} == {"ok"}
    # In a rotated basis a feature fires on half of all tokens: of some no mark would be wrong.
    assert {row["status"] for row in scores} <= {"ok", "untestable"}


@pytest.mark.parametrize("layout", ["toy-routing/saelens"])
def test_a_real_dense_dictionary_is_described(real: Path, layout: str) -> None:
    from autointerp.dictionaries.locate import find_dictionary

    spec = find_dictionary(str(real / "saes" / layout))
    assert (spec.d_in, spec.width, spec.selector, str(spec.site)) == (32, 64, "relu", "layers.1")
