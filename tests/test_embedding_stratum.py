"""The stratum `embedding`: silent windows whose text is nearest to the active ones, from the table to the scores."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import FEW, Made, corpora, make
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from test_sampling import One, windows_of

from autointerp import pipeline
from autointerp.errors import ModelError, RecipeError
from autointerp.merge import merge
from autointerp.pack import pack
from autointerp.recipe import parse
from autointerp.run import Run
from autointerp.sampling import embedding
from autointerp.sampling.contrast import Placed
from autointerp.sampling.embedding import NEAREST, STEPS, Pool, in_steps
from autointerp.sampling.sample import Sampled, Sampler
from autointerp.sampling.settings import SamplingSettings
from autointerp.sampling.text import SPLITS
from autointerp.sampling.windows import Places
from autointerp.stages.expected import expected
from autointerp.subject.model_files import find_model
from autointerp.subject.token_embedding import projected, read_token_embedding
from autointerp.types import FeatureId, Json
from autointerp.verify import verify
from here import SHARDS, contents, device_here, records
from tiny import Tiny

TABLE: Final = np.random.default_rng(5).normal(size=(60, 12)).astype(np.float16)
"""Of the made-up corpora's tokens."""
FEATURES: Final = (2, 3, 6, 7, 9)
WANTED: Final = dataclasses.replace(FEW, n_embedding=6)


def sample(
    made: Made, given_settings: SamplingSettings = WANTED, features: Sequence[int] = FEATURES
) -> Sampled:
    sampler = Sampler(made.rows, made.firings, given_settings, seed=0, first=1, token_embedding=TABLE)
    return sampler.sample([FeatureId("d", feature) for feature in features])


# --- the ranking, against an obvious reference -----------------------------------------------------------


def vectors(ids: list[list[int]], pool: list[list[int]]) -> NDArray[np.float64]:
    """Unit vectors of windows, as the paper has it: token by token, the component by a singular value
    decomposition of the pool."""
    together = [token for window in pool for token in window]

    def mean(window: list[int]) -> NDArray[np.float64]:
        weight = [1e-3 / (1e-3 + together.count(token) / len(together)) for token in window]
        weighted = [w * TABLE[token].astype(np.float64) for w, token in zip(weight, window, strict=True)]
        return sum(weighted) / len(window)  # pyright: ignore[reportReturnType]  # of at least one window

    first = np.linalg.svd(np.array([mean(window) for window in pool]))[2][0]
    found = np.array([mean(window) for window in ids])
    found = found - np.outer(found @ first, first)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def ids_of(made: Made, places: Places) -> list[list[int]]:
    columns = (places.row.tolist(), places.start.tolist(), places.length.tolist())
    return [made.ids(*place) for place in zip(*columns, strict=True)]


@pytest.mark.parametrize("kind", ["anchored", "aligned"])
def test_the_ranking_is_that_of_a_slow_reference_over_the_whole_pool(kind: str) -> None:
    made = make(3, 60, {7: 0.02})
    given_settings = dataclasses.replace(WANTED, window=kind)
    text = made.text(given_settings)
    pool = Pool.of(text, given_settings, TABLE)
    assert 60 <= len(pool.places) <= NEAREST  # so the ranking is of all
    rng = np.random.default_rng(0)
    active = pool.places[np.sort(rng.choice(len(pool.places), 9, replace=False))]
    group = np.array([0, 0, 0, 0, 1, 1, 3, 3, 3])
    ranked = pool.ranked(text, Placed(group, active), 4)
    of_pool = ids_of(made, pool.places)
    pool_vectors, active_vectors = vectors(of_pool, of_pool), vectors(ids_of(made, active), of_pool)
    for feature in (0, 1, 3):
        mean = active_vectors[group == feature].mean(0)
        cosine = pool_vectors @ mean / np.linalg.norm(mean)
        assert sorted(ranked[feature]) == list(range(len(pool.places)))
        # Rounding to steps moves a cosine by less than 0.001: only closer ones may change places.
        np.testing.assert_allclose(cosine[ranked[feature]], -np.sort(-cosine), atol=1e-3)
        assert cosine.max() > 0.5 > 0 > cosine.min()  # so an order by anything else is far off


def test_the_pool_is_held_out_text_of_bounded_size_and_a_larger_one_begins_alike() -> None:
    made = make(11, 90, {7: 0.02})
    text = made.text(WANTED)
    whole = Pool.of(text, WANTED, TABLE).places
    assert set(text.split[whole.row].tolist()) == {SPLITS.index("heldout")}
    held_out = text.rows_of[SPLITS.index("heldout")]
    n_blocks = sum(-(-(int(text.length[row]) - 1) // FEW.width) for row in held_out.tolist())
    assert len(whole) == n_blocks
    few = Pool.of(text, WANTED, TABLE, most=10).places
    assert len(few) == 10
    places = set(zip(whole.row.tolist(), whole.start.tolist(), strict=True))
    assert set(zip(few.row.tolist(), few.start.tolist(), strict=True)) <= places


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 40), spread=st.sampled_from([1e-4, 1.0, 1e4]))
def test_a_cosine_is_the_same_number_in_every_product(seed: int, n: int, spread: float) -> None:
    """Against Python's integers; also the largest there can be, of a vector with itself."""
    rng = np.random.default_rng(seed)
    stepped = in_steps(np.concatenate([rng.normal(size=(n, 64)) * spread, np.ones((1, 64))]))
    whole = [[int(step) for step in row] for row in stepped]
    assert all(abs(sum(step * step for step in row) ** 0.5 - STEPS) <= 4 for row in whole)
    together = stepped @ stepped.T
    for at, one in enumerate(whole):
        assert together[at].tolist() == [
            sum(a * b for a, b in zip(one, other, strict=True)) for other in whole
        ]
        assert (stepped[at : at + 1] @ stepped.T).tolist() == [together[at].tolist()]


# --- what is taken ---------------------------------------------------------------------------------------


def of_stratum(taken: list[One], feature: int) -> list[One]:
    return [one for one in taken if one.feature == feature and one.stratum == "embedding"]


@settings(max_examples=20)
@given(made=corpora(), kind=st.sampled_from(["anchored", "aligned"]))
def test_they_are_the_nearest_good_ones_in_order(made: Made, kind: str) -> None:
    """Walks down the ranking itself: silent, looked at, apart from the split's others, and no run of what was
    shown or selected on."""
    given_settings = dataclasses.replace(WANTED, window=kind)
    sampled = sample(made, given_settings)
    taken = windows_of(sampled)
    text = made.text(given_settings)
    pool = Pool.of(text, given_settings, TABLE)
    dropped = made.firings.read(0, 10)
    for feature in {one.feature for one in taken}:
        mine = [one for one in taken if one.feature == feature]
        active = [one for one in mine if one.split == "heldout" and one.stratum is None]
        columns = ([one.row for one in active], [one.start for one in active], [one.length for one in active])
        places = Places(*(np.array(column, np.int64) for column in columns))
        (ranked,) = pool.ranked(text, Placed(np.zeros(len(active), np.int64), places), 1)
        at = dropped.features.tolist().index(feature)
        unknown = set(dropped.dropped_rows[slice(*dropped.dropped_offsets[at : at + 2])].tolist())
        seen = {run for one in mine if one.split != "heldout" for run in runs_of(made, one)}
        busy = set[int]().union(
            *(one.tokens for one in mine if one.split == "heldout" and one.stratum != "embedding")
        )
        expected: list[tuple[int, int, int]] = []
        for window in ranked.tolist():
            row, start, length = (
                int(c[window]) for c in (pool.places.row, pool.places.start, pool.places.length)
            )
            one = One(feature, "heldout", row, start, length, None, "embedding")
            bad = one.tokens & (made.fired[feature].keys() | made.masked | busy)
            if not bad and row not in unknown and not seen & runs_of(made, one):
                expected.append((row, start, length))
                busy |= one.tokens
        found = [(one.row, one.start, one.length) for one in of_stratum(taken, feature)]
        assert found == expected[: given_settings.n_embedding]


def runs_of(made: Made, one: One) -> set[tuple[int, ...]]:
    ids = made.ids(one.row, one.start, one.length)
    return {tuple(ids[at : at + FEW.overlap]) for at in range(len(ids) - FEW.overlap + 1)}


def test_a_corpus_without_much_noise_fills_every_slot() -> None:
    taken = windows_of(sample(make(4, 90, {7: 0.02, 9: 0.01}), features=(7, 9)))
    assert [len(of_stratum(taken, feature)) for feature in (7, 9)] == [6, 6]
    assert {one.split for one in taken if one.stratum == "embedding"} == {"heldout"}


@settings(max_examples=15)
@given(made=corpora())
def test_a_larger_n_contains_the_smaller_and_moves_nothing_else(made: Made) -> None:
    none, few, many = (
        windows_of(sample(made, dataclasses.replace(WANTED, n_embedding=n))) for n in (0, 3, 9)
    )
    for feature in FEATURES:
        assert of_stratum(few, feature) == of_stratum(many, feature)[:3]
        others = ([one for one in of if one.stratum != "embedding"] for of in (few, many))
        assert all(of == none for of in others)


@settings(max_examples=15)
@given(made=corpora(), most=st.sampled_from([1, 60, 10**6]))
def test_a_feature_has_the_same_alone_and_in_every_block(made: Made, most: int) -> None:
    """Also where few features are ranked at once."""
    together = windows_of(sample(made))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "_MOST_SCORES", most)
        assert windows_of(sample(made)) == together
    for feature in FEATURES:
        alone = windows_of(sample(made, features=(feature,)))
        assert alone == [one for one in together if one.feature == feature]


# --- the table -------------------------------------------------------------------------------------------


def test_the_table_keeps_the_rows_as_they_lie_to_each_other() -> None:
    """Fewer dimensions than axes: distances and inner products of centred rows, up to one scale."""
    rows = torch.randn(50, 20, generator=torch.Generator().manual_seed(1)) * 0.02 + 3
    table = projected(rows)
    assert table is not None and table.shape == (50, 20) and table.dtype == np.float16
    centred = rows.double().numpy() - rows.double().numpy().mean(0)
    centred /= np.sqrt((centred**2).sum() / 50)
    wide = table.astype(np.float64)
    np.testing.assert_allclose(wide @ wide.T, centred @ centred.T, atol=5e-3)
    variance = (wide**2).sum(0)
    assert (variance[:-1] >= variance[1:]).all()


def test_of_many_dimensions_those_stay_that_tell_tokens_apart() -> None:
    """Rows differ along three of 100 directions; the rest is a hundredth of it."""
    generator = torch.Generator().manual_seed(2)
    axes, _ = torch.linalg.qr(torch.randn(100, 100, generator=generator))
    rows = torch.randn(400, 3, generator=generator) @ axes[:3]
    table = projected(rows + 0.01 * torch.randn(400, 100, generator=generator), most_axes=3)
    assert table is not None and table.shape == (400, 3)
    unit = rows / rows.norm(dim=1, keepdim=True)
    wide = torch.from_numpy(table).float()
    cosine = torch.nn.functional.normalize(wide) @ torch.nn.functional.normalize(wide).T
    # The mean that is taken out is small beside a row, not nothing.
    assert float((cosine - unit @ unit.T).abs().mean()) < 0.05


def test_rows_that_are_all_alike_or_not_finite() -> None:
    alike = projected(torch.full((5, 4), 2.0))
    assert alike is not None and not alike.any()
    assert projected(torch.tensor([[1.0, float("nan")], [0.0, 1.0]])) is None


def test_a_models_weights_without_a_usable_table(made: Tiny, tmp_path: Path) -> None:
    model = Path(shutil.copytree(made.model, tmp_path / "model"))
    assert read_token_embedding(find_model(str(model)), 280, "cpu").shape == (280, 64)
    weights = load_file(model / "model.safetensors")
    table = weights.pop("model.embed_tokens.weight")
    for changed, said in [
        ({}, "no single tensor that is the token embedding"),
        ({"model.embed_tokens.weight": table.to(torch.int8)}, "as torch.int8 of shape"),
        ({"model.embed_tokens.weight": table / 0}, "NaN or infinities in 'model.embed_tokens.weight'"),
    ]:
        save_file(weights | changed, model / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=rf"{said}.*sampling\.n_embedding=0"):
            read_token_embedding(find_model(str(model)), 280, "cpu")


# --- the whole line --------------------------------------------------------------------------------------

SCRIPTED: Final = {"use": "scripted", "function": "judge:answer"}
LLMS: Final[Json] = {"explainer": SCRIPTED, "judge": SCRIPTED}
SILENT: Final[Json] = {"contrast": "silent", "minimum": 20, "width": 8, "context_before": 3, "overlap": 8}


def recipe(made: Tiny, n: int, **sections: object) -> Json:
    asked: Json = {"sampling": SILENT | {"n_embedding": n}, "features": {"n": 8}, "llms": LLMS}
    return made.recipe(**(asked | sections))


@pytest.fixture(scope="module")
def scored(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("embedding") / "run"
    with device_here():
        pipeline.explain(recipe(made, 7), out=out)
    return out


def test_detection_reports_the_stratum_apart(scored: Path) -> None:
    run = Run.open(scored)
    trials = [trial for trial in run.trials().to_pylist() if trial["stratum"] == "embedding"]
    assert len(trials) >= 20 and {trial["scorer"] for trial in trials} == {"detection"}
    assert not any(trial["truth"] for trial in trials)
    for row in run.scores().to_pylist():
        answers = [
            trial["answer"]
            for trial in trials
            if (trial["feature"], trial["scorer"]) == (row["feature"], row["scorer"])
        ]
        readable = [answer for answer in answers if answer is not None]
        assert (row["embedding_n"] or 0) == len(answers) <= 7
        assert row["embedding_windows"] == (readable.count(True) / len(readable) if readable else None)


def test_the_table_is_sealed_packed_and_made_anew(scored: Path, tmp_path: Path) -> None:
    assert not verify(Run.open(scored)).faults
    pack(Run.open(scored), tmp_path / "packed", with_requests=False)
    packed = Run.open(tmp_path / "packed")
    assert not verify(packed).faults
    assert packed.token_embedding.read_bytes() == Run.open(scored).token_embedding.read_bytes()
    copy = Run.open(shutil.copytree(scored, tmp_path / "run"))
    path, before = copy.token_embedding, copy.token_embedding.read_bytes()
    path.write_bytes(before[:-2] + b"??")
    assert [fault.path for fault in verify(copy).faults] == [path]
    path.unlink()
    assert not copy.has_activations() and not copy.is_cached_whole()
    path.with_suffix(".jsonl").unlink()
    with device_here():
        pipeline.run_line(copy, until="cache")
    assert copy.token_embedding.read_bytes() == before and copy.is_cached_whole()


def test_a_run_cached_without_it_gets_it_without_the_model(
    made: Tiny, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its rows and shards stay; the samples are those of a run that had it from the start."""
    from autointerp.stages import cache

    out = tmp_path / "run"
    with device_here():
        run = pipeline.explain(recipe(made, 0), out=out, until="cache")
        assert run.is_cached_whole() and not run.token_embedding.exists()
        before = contents(out, without=("recipe.yaml",))
        monkeypatch.setattr(cache, "open_source", None)
        run = pipeline.explain({"sampling": {"n_embedding": 7}}, out=out, until="sample")
    after = contents(out)
    assert {name: after[name] for name in before} == before
    assert records(out, "sample") == records(scored, "sample")


def test_samples_that_were_made_without_stay_valid(made: Tiny, tmp_path: Path) -> None:
    _, run = pipeline.prepare(recipe(made, 0), tmp_path / "none")
    assert "n_embedding" not in run.sample("layers.1").made_from["sampling"]
    assert sum(one.n_requests for one in asyncio.run(expected(run))) == 8 * (1 + 14 + 10)
    _, run = pipeline.prepare(recipe(made, 7), tmp_path / "some")
    assert run.sample("layers.1").made_from["sampling"]["n_embedding"] == 7
    assert sum(one.n_requests for one in asyncio.run(expected(run))) == 8 * (1 + 15 + 10)


def test_portions_merge_into_the_run_of_one_process(made: Tiny, tmp_path: Path) -> None:
    """Also where another machine rounded the last bits of the table differently."""
    parts: list[Path] = []
    with device_here():
        whole = pipeline.explain(recipe(made, 7, cache=SHARDS), out=tmp_path / "whole", until="sample")
        for shard in ("0/2", "1/2"):
            parts.append(tmp_path / shard.replace("/", "-"))
            asked = recipe(made, 7, cache=SHARDS, resources={"shard": shard})
            pipeline.explain(asked, out=parts[-1], until="cache")
        merged = merge(parts, tmp_path / "merged")
        assert not [note for note in merged.notes if "last bits" in note]
        pipeline.run_line(merged.run, until="sample")
    assert records(tmp_path / "merged", "sample") == records(whole.path, "sample")
    second = Run.open(parts[1])
    part = second.token_embedding.with_suffix(".jsonl")
    part.write_bytes(part.read_bytes().replace(b'"checksum":"', b'"checksum":"f'))
    merged = merge(parts, tmp_path / "other")
    assert [note for note in merged.notes if str(part) in note and "last bits" in note]
    assert merged.run.token_embedding.read_bytes() == whole.token_embedding.read_bytes()


def test_stored_activations_have_no_model_to_read_it_from(made: Tiny) -> None:
    asked = recipe(made, 7, activations={"path": "x", "tokenizer": "y"}, corpus=None)
    with pytest.raises(RecipeError, match=r"sampling\.n_embedding: .*the model is not here \(found 7\)"):
        parse(asked)


def test_less_than_none_is_refused(made: Tiny) -> None:
    with pytest.raises(RecipeError, match=r"sampling\.n_embedding: at least 0 \(found -1\)"):
        parse(recipe(made, -1))
