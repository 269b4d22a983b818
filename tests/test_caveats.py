"""What readers of explanations are told of how codes were made, and of a dictionary in which nothing fires."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import test_calibration
import test_gradient
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from autointerp import pipeline
from autointerp.cli import app
from autointerp.dictionaries.caveats import caveats, silence
from autointerp.dictionaries.spec import DictionarySpec
from autointerp.dictionaries.thresholds import Calibration
from autointerp.errors import CheckpointError
from autointerp.fits import Fit, verdicts
from autointerp.publish.folder import build
from autointerp.publish.importing import import_published
from autointerp.publish.manifest import Options
from autointerp.report.folder import write_report
from autointerp.run import CHECK, Run
from here import device_here
from tiny import D_MODEL, WIDTH, Tiny, make_sae

sae = test_calibration.sae
fitting = test_gradient.fitting

APPROXIMATE = "It is an approximation of what was trained: activations are plain top k"
BY_GRADIENT = "what fires on a token depends on the tokens behind it as well."
CALIBRATED = "thresholds that were found on the run's own tokens (batch_topk, 24 a token) and are the same"


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Generator[None]:
    with device_here():
        yield


def spec(**fields: Any) -> DictionarySpec:
    given: dict[str, Any] = {
        "format": "native", "path": Path("ckpt"), "identity": "", "d_in": 64, "width": 1_000, "selector": "topk",
        "k": 3, "hook": None, "site": None, "model": None, "corpus": None, "context_length": None,
        "prepend_bos": True,
    }  # fmt: skip
    return DictionarySpec(**(given | fields))


# --- sentences -----------------------------------------------------------------------------------------


def test_one_that_is_as_it_was_trained_needs_no_word() -> None:
    assert not list(caveats(spec()))


def test_each_has_its_sentence() -> None:
    (approximate,) = caveats(spec(approximation="what is negative is left out. "))
    assert approximate == "It is an approximation of what was trained: what is negative is left out."
    (chosen,) = caveats(spec(gradient_weight=0.5))
    assert "(gradient_weight 0.5)" in chosen and BY_GRADIENT in chosen
    (pooled,) = caveats(spec(selector="jumprelu", calibration=Calibration("sampled", 24, pool=1_500)))
    assert (
        "(sampled, 24 a token among the 1,500 features with the largest scores there, and no others" in pooled
    )
    assert len(list(caveats(spec(approximation="a", gradient_weight=1.0)))) == 2


def test_silence_is_told_where_something_should_have_fired() -> None:
    """Of 1,000 features on 2,000 tokens each may fire on one in 2,000,000; of one feature on one in 2,000."""
    assert silence(spec(), 2_000, 1e-3) is None and silence(spec(), 999, 0.0) is None
    assert silence(spec(width=1), 20_000, 0.0) is None
    said = silence(spec(), 2_000, 0.0)
    assert said is not None and said.startswith(
        "on 2,000 tokens none of its 1,000 features fires (L0 0). Look at"
    )
    for look_at, fields in (
        ("what its encode gives", {"selector": "custom", "format": "my.module:f"}),
        ("whether the checkpoint is complete", {"selector": "custom"}),
        ("its thresholds", {"selector": "jumprelu"}),
    ):
        assert f"Look at {look_at}" in str(silence(spec(k=None, **fields), 2_000, 0.0))


def test_sae_check_has_it_as_a_verdict() -> None:
    silent = Fit("as read", 2_000, 0.0, None, 1_000, None)
    assert any(line.startswith("It is silent: on 2,000 tokens none") for line in verdicts(spec(), [silent]))
    fires = Fit("as read", 2_000, 3.0, None, 0, None)
    assert not any("silent" in line for line in verdicts(spec(), [fires]))


# --- through the line ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(
    made: Tiny, sae: Path, fitting: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """By gradients, the same without them, one that is calibrated, and one of which nothing is to be said."""
    folder = tmp_path_factory.mktemp("caveats")
    plain = test_gradient.written(folder / "plain", fitting[1])
    named = {"gradient": fitting[0], "plain": plain, "calibrated": sae, "trained": made.sae}
    recipe = made.recipe(
        dictionaries={name: {"path": str(path)} for name, path in named.items()},
        cache={"n_tokens": 6_000, "shard_tokens": 4_096, "context_length": 64, "calibration_tokens": 3_000},
        features={"first": 2},
        sampling={"minimum": 5, "minimum_full": 10},
    )
    return pipeline.explain(recipe, out=folder / "run")


def of(text: str, sentence: str) -> int:
    return " ".join(text.split()).count(sentence)


def test_they_are_kept_with_the_run_and_only_where_there_are_any(run: Run) -> None:
    kept = {name: run.cache(name).read(CHECK)[CHECK].get("caveats") for name in run.recipe.dictionaries}
    assert kept["trained"] is None and "caveats" not in run.cache("trained").read(CHECK)[CHECK]
    assert [len(kept[name]) for name in ("gradient", "plain", "calibrated")] == [1, 1, 1]
    assert kept["plain"][0].startswith(APPROXIMATE)


def test_status_report_and_card_say_them(run: Run, tmp_path: Path) -> None:
    status = CliRunner().invoke(app, ["status", str(run.path)], env={"COLUMNS": "300"})
    assert status.exit_code == 0, status.output
    report = write_report(run, tmp_path / "report", with_plots=False).report.read_text()
    build(run, tmp_path / "set", Options(), to="org/name", licence="unknown")
    card = (tmp_path / "set" / "README.md").read_text()
    for text in (status.output, report.replace("\\", ""), card.replace("\\", "")):
        assert [of(text, said) for said in (APPROXIMATE, BY_GRADIENT, CALIBRATED)] == [1, 1, 1], text
    (row,) = [line for line in report.splitlines() if "dictionary `trained`" in line]
    assert "It " not in row
    (row,) = [line for line in report.splitlines() if "dictionary `gradient`" in line]
    assert "`. Features are chosen by their effect" in row and row.endswith("as well. |")

    imported = import_published(tmp_path / "set", tmp_path / "imported").run
    again = CliRunner().invoke(app, ["status", str(imported.path)], env={"COLUMNS": "300"})
    assert again.exit_code == 0 and not of(again.output, BY_GRADIENT), "its cache is elsewhere"


def test_explain_and_check_print_them(
    made: Tiny, fitting: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    plain = test_gradient.written(tmp_path / "plain", fitting[1])
    given = [str(plain), "--model", str(made.model), "--corpus", str(made.corpus)]
    small = ["--first", "2", "--llm", "lexical", "--set", "cache.n_tokens=3000"]
    done = CliRunner().invoke(app, ["explain", "--sae", *given, *small, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if line.startswith("layers.1: ")]
    assert "features a token" in lines[0] and lines[1].startswith(f"layers.1: {APPROXIMATE}")
    checked = CliRunner().invoke(app, ["sae", "check", *given, "--n-tokens", "1000"])
    assert checked.exit_code == 0 and of(checked.output, APPROXIMATE) == 1


def test_a_file_of_which_nothing_fires_is_refused_and_a_random_model_is_not_blamed(
    made: Tiny, tmp_path: Path
) -> None:
    make_sae(tmp_path / "sae")
    file = tmp_path / "sae" / "sae_weights.safetensors"
    save_file(
        load_file(file) | {"b_enc": torch.full((WIDTH,), -1e6), "W_dec": torch.eye(WIDTH, D_MODEL)}, file
    )
    sections: dict[str, Any] = {
        "dictionaries": {"auto": {"path": str(tmp_path / "sae")}},
        "cache": {"n_tokens": 3_000, "shard_tokens": 4_096},
        "features": {"first": 2},
    }
    with pytest.raises(
        CheckpointError, match=r"is silent: on [23],\d+ tokens none of its 208 features fires"
    ):
        pipeline.explain(made.recipe(**sections), out=tmp_path / "run")
    control = made.recipe(**sections, model={"path": str(made.model), "weights": "random"})
    table = pipeline.explain(control, out=tmp_path / "control", until="sample").features().to_pydict()
    assert table["status"] == ["dead", "dead"]
