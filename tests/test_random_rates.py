"""Rates on random tokens: counts against the model run by hand, and that nothing else notices them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from autointerp import pipeline
from autointerp.activations.random_rates import RandomRates
from autointerp.activations.random_tokens import TokenUrn, random_rows
from autointerp.activations.rows import row_shards
from autointerp.cli import app
from autointerp.dictionaries.encode import Encoder
from autointerp.errors import Interrupted, RecipeError, RunError
from autointerp.merge import merge
from autointerp.pack import pack
from autointerp.portion import Portion
from autointerp.progress import Silent, Stop
from autointerp.recipe import parse
from autointerp.repair import repair
from autointerp.run import CHECK, Run
from autointerp.stages import random_rates
from autointerp.types import Json
from autointerp.verify import verify
from here import contents, device_here
from tiny import CONTEXT, WIDTH, Tiny

N = 6_000
CACHE: Json = {"n_tokens": 20_000, "shard_tokens": 2_048}
FEATURES: Json = {"n": 6}


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Generator[None]:
    with device_here():
        yield


def asking(n: int = N, distribution: str = "unigram") -> Json:
    return {"cache": CACHE | {"random_tokens": n, "random_distribution": distribution}, "features": FEATURES}


@pytest.fixture(scope="module")
def plain(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that asks for no random tokens."""
    out = tmp_path_factory.mktemp("plain") / "run"
    pipeline.explain(made.recipe(cache=CACHE, features=FEATURES), out=out)
    return out


@pytest.fixture(scope="module")
def asked(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, which asks from the beginning."""
    out = tmp_path_factory.mktemp("asked") / "run"
    pipeline.explain(made.recipe(**asking()), out=out)
    return out


def copied(run: Path, to: Path) -> Path:
    return Path(shutil.copytree(run, to))


def rates_of(path: Path) -> RandomRates:
    run = Run.open(path)
    assert run.recipe.random_tokens is not None
    return RandomRates(run.cache("layers.1"), run.recipe.random_tokens.unit)


def without_random(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if "/random-" not in name}


# --- the numbers ---------------------------------------------------------------------------------------


def counted_by_hand(made: Tiny, run: Run, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """(firings, strongest, tokens looked at) of all features on rows [R, 64] of ids that begin with BOS, -1
    behind a row's end: transformers' own forward, one product, the 24 largest."""
    model = LlamaForCausalLM.from_pretrained(made.model).eval()
    weights = load_file(made.sae / "sae_weights.safetensors")
    norm = run.cache("layers.1").read(CHECK)[CHECK]["median_norm"]
    n_fired, strongest, n_tokens = np.zeros(WIDTH, int), np.zeros(WIDTH), 0
    with torch.no_grad():
        for row in ids:
            row = torch.from_numpy(row[row >= 0])
            x = model(row[None], output_hidden_states=True).hidden_states[2][0, 1:]
            x = x[x.norm(dim=1) <= 10 * norm]
            n_tokens += len(x)
            value, feature = (x @ weights["W_enc"]).topk(24, dim=1)
            for one, of in zip(value[value > 0].tolist(), feature[value > 0].tolist(), strict=True):
                n_fired[of] += 1
                strongest[of] = max(strongest[of], one)
    return n_fired, strongest, np.array(n_tokens)


@pytest.mark.parametrize("distribution", ["unigram", "uniform"])
def test_counts_are_those_of_the_model_run_by_hand(
    made: Tiny, tmp_path: Path, plain: Path, distribution: str
) -> None:
    """The tokens too: how often each is found in the run's own rows, drawn by the formula of the corpus."""
    out = copied(plain, tmp_path / "run")
    pipeline.explain(asking(2_000, distribution), out=out, until="cache")
    run = Run.open(out)
    tokens = np.concatenate(
        [row["tokens"][1 : row["length"]] for shard in row_shards(run.rows()) for row in shard.read()]
    )
    count = np.array([int((tokens == token).sum()) for token in range(1, 300)])
    weight = count if distribution == "unigram" else np.ones(299, int)
    urn = TokenUrn(np.arange(1, 300, dtype=np.uint32), np.cumsum(weight))
    rows = random_rows(urn, n_tokens=2_000, context_length=CONTEXT, bos=0, seed=0)
    behind = np.arange(CONTEXT) >= rows["length"][:, None]
    n_fired, strongest, n_tokens = counted_by_hand(
        made, run, np.where(behind, -1, rows["tokens"].astype(np.int64))
    )
    rates = rates_of(out)
    found = [rates.of(feature) for feature in range(WIDTH)]
    assert n_fired.sum() > 20 * 2_000 and (n_fired > 0).sum() > WIDTH / 2
    for feature, one in enumerate(found):
        assert one is not None and one.n_tokens == n_tokens
        assert abs(one.n_fired - n_fired[feature]) <= 1  # a tie at the 24th place may go either way
        assert one.maximum == pytest.approx(strongest[feature], abs=1e-4)
    assert sum(one.n_fired != n for one, n in zip(found, n_fired, strict=True) if one) < WIDTH / 20


def test_distributions_differ_and_more_tokens_are_another_unit(asked: Path, tmp_path: Path) -> None:
    out = copied(asked, tmp_path / "run")
    before = contents(out)
    pipeline.explain(asking(1_000, "uniform"), out=out, until="cache")
    assert {name for name in contents(out) if name not in before} == {
        f"cache/layers.1/random-uniform-1000-0.0001.{end}" for end in ("jsonl", "npy")
    }
    one = rates_of(out).of(0)
    assert one is not None and one.n_tokens <= 1_000 < N


# --- a run that asks, and one that doesn't -------------------------------------------------------------


def test_asking_changes_nothing_else(plain: Path, asked: Path) -> None:
    """Rows, shards, samples, explanations and scores are the same bytes; so a run may ask at any time."""
    recipes = ("recipe.yaml",)
    assert without_random(contents(asked, without=recipes)) == contents(plain, without=recipes)
    assert [name for name in contents(asked) if name not in contents(plain)] == [
        f"cache/layers.1/random-unigram-{N}-0.0001.{end}" for end in ("jsonl", "npy")
    ]


def test_asked_later_only_this_is_done(
    plain: Path, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copied(plain, tmp_path / "run")
    stages: list[str] = []

    class Noting(Silent):
        def begin(self, stage: str, total: int, unit: str, done: int = 0) -> None:
            stages.append(f"{stage} {total - done}")

    pipeline.explain(asking(), out=out, progress=Noting())
    n_rows = -(-N // (CONTEXT - 1))
    assert [stage for stage in stages if not stage.endswith(" 0")] == [f"random tokens {N + n_rows}"]
    assert contents(out, without=("recipe.yaml",)) == contents(asked, without=("recipe.yaml",))
    monkeypatch.setattr(random_rates, "open_source", None)  # nothing is loaded any more
    pipeline.explain(asking(), out=out)


@pytest.mark.parametrize("n_batches", [1, 2])
def test_stopped_and_resumed_the_counts_are_the_same(
    plain: Path, asked: Path, tmp_path: Path, n_batches: int
) -> None:
    out = copied(plain, tmp_path / "run")
    stop = Stop()

    class StopSoon(Silent):
        def __init__(self) -> None:
            self.left = n_batches

        def advance(self, n: int = 1, stage: str = "") -> None:
            self.left -= 1
            if not self.left:
                stop.set()

    resolved, run = pipeline.prepare(asking(), out)
    with pytest.raises(Interrupted):
        pipeline.run_line(run, resolved=resolved, progress=StopSoon(), stop=stop)
    assert not Run.open(out).is_cached_whole() and Run.open(out).has_activations()
    assert not list(out.rglob("random-*"))
    pipeline.run_line(Run.open(out))
    assert contents(out, without=("recipe.yaml",)) == contents(asked, without=("recipe.yaml",))


def test_elementwise_dictionaries_are_counted_for_what_is_asked(
    made: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two features, then one more: two records, of these columns alone; the counts of all, to the bit."""
    sae = copied(made.sae, tmp_path / "relu")
    config = json.loads((sae / "cfg.json").read_text())
    del config["k"]
    (sae / "cfg.json").write_text(json.dumps(config | {"architecture": "standard"}))
    computed: list[list[int]] = []
    sliced: Callable[[Encoder, list[int]], Encoder] = Encoder.sliced

    def noting(self: Encoder, features: list[int]) -> Encoder:
        computed.append(list(features))
        return sliced(self, features)

    def counted(out: str, *ids: str) -> RandomRates:
        recipe = made.recipe(dictionaries={"auto": {"path": str(sae)}}, **asking(3_000))
        pipeline.explain(recipe | {"features": {"ids": list(ids)}}, out=tmp_path / out, until="cache")
        return rates_of(tmp_path / out)

    every = counted("all", "0-207")
    counted("some", "5", "100")
    monkeypatch.setattr(random_rates.Encoder, "sliced", noting)
    some = counted("some", "5", "100", "7")
    assert computed[-1] == [7] and some.of(6) is None
    for feature in (5, 7, 100):
        assert some.of(feature) == every.of(feature)
    assert len(list((tmp_path / "some" / "cache" / "layers.1").glob("random-*.npy"))) == 2


# --- where it is seen ----------------------------------------------------------------------------------


def test_show_and_features_tell_the_rate(plain: Path, asked: Path) -> None:
    rates = rates_of(asked)
    rows = Run.open(asked).features().to_pylist()
    assert len(rows) >= 6
    for row in rows:
        one = rates.of(row["index"])
        assert one is not None and row["random_rate"] == one.n_fired / one.n_tokens
    assert {row["random_rate"] for row in Run.open(plain).features().to_pylist()} == {None}
    shown = CliRunner().invoke(app, ["show", str(asked), str(rows[0]["index"])]).output
    assert f"{rows[0]['random_rate']:.3%} of random tokens" in shown.replace("\n", " ")
    silent = CliRunner().invoke(app, ["show", str(plain), str(rows[0]["index"])]).output
    assert "fires on" in silent and "random tokens" not in silent


def test_activations_from_files_have_no_model_to_ask() -> None:
    for form in ("delphi", "folder"):
        recipe = {
            "activations": {"path": "x", "format": form},
            "dictionaries": {"auto": {"path": "y"}},
            "cache": {"random_tokens": 100},
        }
        with pytest.raises(RecipeError, match=r"cache\.random_tokens: no model runs .* \(found 100\)"):
            parse(recipe)
    with pytest.raises(RecipeError, match=r"cache\.random_tokens: at least 0 \(found -1\)"):
        parse({"dictionaries": {"auto": {"path": "y"}}, "cache": {"random_tokens": -1}})


def test_a_spoiled_array_is_found_and_made_anew(asked: Path, tmp_path: Path) -> None:
    out = copied(asked, tmp_path / "run")
    assert not verify(Run.open(out)).faults
    path = out / "cache" / "layers.1" / f"random-unigram-{N}-0.0001.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    found = verify(Run.open(out))
    assert [fault.path for fault in found.faults] == [path]
    repair(Run.open(out), found, Silent(), Stop())
    assert path.read_bytes() == content and not verify(Run.open(out)).faults
    path.unlink()
    with pytest.raises(RunError, match=r"is missing, though .* tells of it: autointerp cache verify"):
        Run.open(out).features()


def test_portions_leave_it_to_the_run_they_become(made: Tiny, asked: Path, tmp_path: Path) -> None:
    """A portion hasn't all rows, whose tokens are counted."""
    folders: list[Path] = []
    for index in range(2):
        folders.append(tmp_path / Portion(index, 2).folder)
        recipe = made.recipe(**asking(), resources={"shard": f"{index}/2"})
        pipeline.explain(recipe, out=folders[-1], until="cache")
        assert not list(folders[-1].rglob("random-*"))
    merged = merge(folders, tmp_path / "whole")
    assert any(note.startswith("some rates on random tokens are in none") for note in merged.notes)
    pipeline.run_line(Run.open(tmp_path / "whole"))
    assert contents(tmp_path / "whole", without=("recipe.yaml",)) == contents(asked, without=("recipe.yaml",))


def test_merging_keeps_what_one_of_the_runs_asked_for(plain: Path, asked: Path, tmp_path: Path) -> None:
    merged = merge([copied(plain, tmp_path / "a"), copied(asked, tmp_path / "b")], tmp_path / "both")
    assert merged.run.recipe.cache.random_tokens == N and merged.run.is_cached_whole()
    assert rates_of(tmp_path / "both").of(3) == rates_of(asked).of(3)


def test_a_pack_takes_it_along_and_cannot_make_it(plain: Path, asked: Path, tmp_path: Path) -> None:
    for name, run in (("plain", plain), ("asked", asked)):
        pack(Run.open(copied(run, tmp_path / name)), tmp_path / f"packed-{name}", with_requests=False)
    packed = tmp_path / "packed-asked"
    assert Run.open(packed).features().to_pylist() == Run.open(asked).features().to_pylist()
    pipeline.run_line(Run.open(packed))
    with pytest.raises(RunError, match="asked for 6 features' rates on random tokens"):
        pipeline.explain(asking(), out=tmp_path / "packed-plain")
