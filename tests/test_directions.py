"""What the weights alone say, as a stage: records, growing, kills, and where it is shown."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from autointerp import pipeline
from autointerp.cli import app
from autointerp.errors import Interrupted, RecipeChanged
from autointerp.progress import Silent, Stop
from autointerp.report.windows import print_directions
from autointerp.resolve import resolve
from autointerp.run import Run
from autointerp.stages.directions import run_directions
from autointerp.stages.known import load_directions
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import Directions, TokenEffects
from tiny import Tiny, make_sae

UNIT = "000000000"


class Noted(Silent):
    """Keeps what a terminal would show."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.begun: dict[str, tuple[int, int]] = {}

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, stage: str, total: int, unit: str, done: int = 0) -> None:
        self.begun[stage] = (total, done)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]  # used by pytest
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def records(out: Path) -> list[bytes]:
    return sorted(orjson.dumps(record) for record in Run.open(out).directions("layers.1").records())


@pytest.fixture(scope="module")
def whole(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run sampled for all features at once."""
    out = tmp_path_factory.mktemp("whole") / "run"
    pipeline.explain(made.recipe(features={"first": 60}), out=out, until="sample")
    return out


def read(out: Path) -> dict[str, Directions]:
    return load_directions(Run.open(out), "layers.1", UNIT)


def test_every_feature_asked_for_has_its_directions(whole: Path, made: Tiny) -> None:
    """The tiny dictionary holds both directions of orthogonal axes, so all other cosines are 0 and go by
    index; tokens as the loaded model has them."""
    known = read(whole)
    assert list(known) == [f"layers.1/{index}" for index in range(60)]
    assert known["layers.1/3"].neighbours == tuple(n for n in range(17) if n != 3)
    assert set(known["layers.1/3"].similarity) == {0.0}
    model = LlamaForCausalLM.from_pretrained(made.model).double()
    rows = load_file(made.sae / "sae_weights.safetensors")["W_dec"].double()
    n_tokens = len(Vocabulary.load(Run.open(whole).vocabulary))
    with torch.no_grad():
        effects_FV = (rows * model.model.norm.weight) @ model.lm_head.weight[:n_tokens].T
        effects_FV -= effects_FV.mean(dim=1, keepdim=True)
    for index in range(60):
        found, effects_V = known[f"layers.1/{index}"], effects_FV[index]
        assert found.promoted and found.suppressed
        assert found.promoted.ids == tuple(effects_V.topk(10).indices.tolist())
        assert found.suppressed.ids == tuple((-effects_V).topk(10).indices.tolist())
        assert found.promoted.effects == pytest.approx(effects_V.topk(10).values.tolist(), rel=1e-5)
        assert found.suppressed.effects == pytest.approx((-(-effects_V).topk(10).values).tolist(), rel=1e-5)


def test_more_features_cost_their_directions_and_no_model(whole: Path, made: Tiny, tmp_path: Path) -> None:
    """Ten features, out of order, then fifty more: the records of a run of sixty; the activations and the
    ten records stay as they are, and the subject model is not loaded."""
    out = tmp_path / "run"
    some = ["41", "7", "59", "0", "20-25"]
    pipeline.explain(made.recipe(features={"ids": some}), out=out, until="sample")
    assert len(records(out)) == 10
    made_before = [
        *(out / "rows").iterdir(),
        *(out / "cache").rglob("*.*"),
        *(out / "directions").rglob("*.*"),
    ]
    before = {path: path.read_bytes() for path in made_before if path.is_file()}
    noted = Noted()
    run = pipeline.explain({"features": {"first": 60, "ids": None}}, out=out, until="sample", progress=noted)
    assert noted.begun["directions"] == (60, 10)
    assert "cache" not in noted.begun
    assert not [note for note in noted.notes if "loading" in note]
    assert {path: path.read_bytes() for path in before} == before
    new = [path for path in (out / "directions").rglob("*.jsonl") if path not in before]
    assert [len(path.read_bytes().splitlines()) for path in new] == [1 + 50]
    assert records(out) == records(whole)
    assert run.is_cached_whole()


def test_a_run_that_has_them_all_starts_no_child(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the device stage ran")

    monkeypatch.setattr(pipeline, "run_on_device", never)
    pipeline.run_line(Run.open(whole), until="sample")


SLOW = """
import sys, time
from autointerp.journal import Part
from autointerp.progress import Silent, Stop
from autointerp.resolve import resolve
from autointerp.run import Run
from autointerp.stages.directions import run_directions

append = Part.append
def slowly(*args):
    append(*args)
    time.sleep(0.03)
Part.append = slowly
run = Run.open(sys.argv[1])
run_directions(run, resolve(run.recipe), "cpu", Silent(), Stop())
"""


def test_killed_they_go_on_where_they_were(whole: Path, tmp_path: Path) -> None:
    """kill -9 twice in the middle of writing, then the rest: the same records, none written twice."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "directions")
    written = 0
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", SLOW, str(out)])
        until = time.monotonic() + 120
        while n_lines(out) < written + 6:
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        written = n_lines(out)
    assert 12 <= written < 60
    assert not Run.open(out).is_cached_whole()
    pipeline.run_line(Run.open(out), until="sample")
    assert records(out) == records(whole)
    n_written = sum(len(path.read_bytes().splitlines()) - 1 for path in (out / "directions").rglob("*.jsonl"))
    assert n_written == 60


def n_lines(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (out / "directions").rglob("*.jsonl"))


@pytest.mark.parametrize("keep", [1, 30, 200, 1000, 5000, -1])
def test_a_torn_file_is_gone_on_with(whole: Path, tmp_path: Path, keep: int) -> None:
    """Cut anywhere: in the header, between records, inside one."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    path = next((out / "directions").rglob("*.jsonl"))
    path.write_bytes(path.read_bytes()[:keep])
    run = Run.open(out)
    assert not run.is_cached_whole()
    run_directions(run, resolve(run.recipe), "cpu", Silent(), Stop())
    assert records(out) == records(whole)
    assert run.is_cached_whole()


def test_a_wish_to_stop_is_heard(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "directions")
    run, stop = Run.open(out), Stop()
    stop.set()
    with pytest.raises(Interrupted):
        run_directions(run, resolve(run.recipe), "cpu", Silent(), stop)


def test_directions_of_another_dictionary_are_not_mixed_in(whole: Path, tmp_path: Path) -> None:
    """They are compared at every start, as all that was made."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    path = out / "directions" / "layers.1" / "made_from.json"
    content = json.loads(path.read_text())
    content["made_from"]["dictionaries"]["layers.1"]["identity"] = "another"
    path.write_text(json.dumps(content | {"digest": "0" * 32}))
    with pytest.raises(RecipeChanged, match=r"dictionaries\.layers\.1\.identity: was 'another'"):
        Run.open(out).check()


# --- where they are shown --------------------------------------------------------------------------------


def test_the_table_of_features_has_the_tokens(whole: Path) -> None:
    run = Run.open(whole)
    vocabulary = Vocabulary.load(run.vocabulary)
    rows = {row["feature"]: row for row in run.features().to_pylist()}
    for key, directions in read(whole).items():
        assert directions.promoted and directions.suppressed
        assert rows[key]["promoted"] == [vocabulary.pieces([token])[0] for token in directions.promoted.ids]
        assert rows[key]["suppressed"] == [
            vocabulary.pieces([token])[0] for token in directions.suppressed.ids
        ]


def shown(out: Path, feature: int) -> list[str]:
    result = CliRunner().invoke(app, ["show", str(out), str(feature)])
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def test_show_prints_them_in_quotes(whole: Path) -> None:
    """Every token between quotes, with its effect; every neighbour with its similarity."""
    lines = {line.split()[0]: line for line in shown(whole, 3)[:12] if line}
    known = read(whole)["layers.1/3"]
    assert known.promoted
    text = Vocabulary.load(Run.open(whole).vocabulary).pieces([known.promoted.ids[0]])[0]
    assert lines["Promotes"].count("' +") == 10
    assert f"'{text}' {known.promoted.effects[0]:+.3g}" in lines["Promotes"]
    assert lines["Suppresses"].count("' -") == 10
    assert (
        lines["Nearest"]
        .split("  ")[2]
        .startswith("layers.1/0 0.00, layers.1/1 0.00, layers.1/2 0.00, layers.1/4")
    )


def test_white_space_and_control_tokens_of_a_model_are_seen_and_inert() -> None:
    tokens = [b" a", b"\n", b"\t", b"", b"<|im_end|>", b"\xe2\x82"]
    effects = TokenEffects(tuple(range(6)), (6.0, 5.0, 4.0, 3.0, 2.0, 1.0))
    console = Console(file=io.StringIO(), width=120)
    print_directions(console, "x", Directions((), (), effects, None), Vocabulary(tokens))
    printed = console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO above
    assert "' a' +6, '⏎' +5, '⇥' +4, '' +3, '‹｜im_end｜›' +2, '\ufffd' +1" in printed.replace("|", "｜")
    assert "Suppresses" not in printed
    assert "Nearest    none" in printed


def test_a_dictionary_that_writes_nothing_to_the_stream_says_so(made: Tiny, tmp_path: Path) -> None:
    """Neighbours it has; its tokens are null in the records and the table, and not shown."""
    make_sae(tmp_path / "sae", hook="blocks.1.mlp.hook_in")
    recipe = made.recipe(
        dictionaries={"auto": {"path": str(tmp_path / "sae")}},
        features={"first": 3},
        cache={"n_tokens": 5_000},
    )
    noted = Noted()
    run = pipeline.explain(recipe, out=tmp_path / "run", until="sample", progress=noted)
    assert [
        note for note in noted.notes if "no promoted and suppressed tokens, because 'layers.1.mlp_in'" in note
    ]
    known = load_directions(run, "layers.1.mlp_in", UNIT)
    assert [(one.promoted, one.suppressed, len(one.neighbours)) for one in known.values()] == [
        (None, None, 16)
    ] * 3
    assert [row["promoted"] for row in run.features().to_pylist()] == [None] * 3
    lines = shown(tmp_path / "run", 0)
    assert [line for line in lines if line.startswith("Nearest")]
    assert not [line for line in lines if line.startswith(("Promotes", "Suppresses"))]


def test_a_run_without_them_is_shown_all_the_same(whole: Path, tmp_path: Path) -> None:
    """As runs from before there were any."""
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "directions")
    run = Run.open(tmp_path / "run")
    assert {row["promoted"] for row in run.features().to_pylist()} == {None}
    assert not [line for line in shown(tmp_path / "run", 3) if line.startswith("Nearest")]
    assert load_directions(run, "layers.1", UNIT) == {}


def test_reading_them_back_needs_no_torch() -> None:
    code = "import autointerp.stages.known, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
