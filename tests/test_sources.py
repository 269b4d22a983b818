"""Runs on activations from files: the same as running the model, and delphi's firings as they were."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from typer.testing import CliRunner

import delphi_files
from autointerp import pipeline
from autointerp.activations.collect import batches
from autointerp.activations.firing_store import FiringStore, firing_shards
from autointerp.activations.rows import row_shards
from autointerp.cli import app
from autointerp.errors import ActivationsError, CheckpointError, ModelError, RecipeChanged, RecipeError
from autointerp.run import Run
from autointerp.stages.frozen import CPU_BATCH
from autointerp.subject.model import Subject
from autointerp.subject.model_files import TOKENIZER_FILES, find_model
from autointerp.types import Json, Site
from tiny import CONTEXT, D_MODEL, WIDTH, Tiny, make_sae

SITE = Site("resid_post", 1)
SETTINGS: Json = {
    "sampling": {"minimum": 20, "minimum_full": 60},
    "features": {"n": 40},
    "llms": {"explainer": {"use": "lexical"}, "judge": {"use": "lexical"}},
    "cache": {"n_tokens": 20_000, "shard_tokens": 4096},
}


@pytest.fixture(scope="module")
def whole(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run through the model, to its end."""
    return pipeline.explain(made.recipe(), out=tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def tokenizer(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and nothing else."""
    folder = tmp_path_factory.mktemp("tokenizer")
    for name in TOKENIZER_FILES:
        if (made.model / name).is_file():
            shutil.copy(made.model / name, folder)
    return folder


def dumped(run: Run, made: Tiny, shard: Any, batch_tokens: int = CPU_BATCH) -> dict[str, torch.Tensor]:
    """What the model did on one shard, in the batches in which the run took it: others round otherwise."""
    subject = Subject.load(find_model(str(made.model)), n_layers=2)
    rows = np.array(shard.read())
    activations = torch.zeros(len(rows), CONTEXT, D_MODEL)
    for batch in batches(rows, batch_tokens, by_length=True):
        longest = int(rows["length"][batch].max())
        ids = torch.from_numpy(rows["tokens"][batch, :longest].astype(np.int64))
        activations[batch, :longest] = subject.capture(ids, [SITE])[SITE]
    return {
        "activations": activations,
        "tokens": torch.from_numpy(rows["tokens"].astype(np.int64)),
        "lengths": torch.from_numpy(rows["length"].astype(np.int32)),
        "documents": torch.from_numpy(rows["document"].astype(np.uint64)),
        "positions": torch.from_numpy(rows["position"].astype(np.int64)),
    }


@pytest.fixture(scope="module")
def dump(whole: Run, made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The activations of `whole`, a file a shard."""
    folder = tmp_path_factory.mktemp("dump")
    for shard in row_shards(whole.rows()):
        save_file(dumped(whole, made, shard), folder / f"{shard.unit}.safetensors")
    return folder


@pytest.fixture(scope="module")
def delphi(whole: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The firings of `whole` on its rows of full length, as delphi would have cached them."""
    folder = tmp_path_factory.mktemp("delphi")
    rows, firings = full_rows(whole)
    locations = np.stack([firings[:, 0], firings[:, 1], firings[:, 2]], axis=1).astype(np.int64)
    delphi_files.write(folder / "latents" / "layers.1", rows, locations, firings[:, 3], [0, 50, 150, WIDTH])
    return folder


def full_rows(run: Run) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(tokens [R, CONTEXT], firings [M, 4] as row, position, feature, float16 value) of full rows."""
    shards = list(row_shards(run.rows()))
    rows = np.concatenate([np.array(shard.read()) for shard in shards])
    number = np.cumsum(rows["length"] == CONTEXT) - 1
    found = FiringStore(list(firing_shards(run.cache("layers.1"))), CONTEXT).read(0, WIDTH)
    row, position = found.tokens // CONTEXT, found.tokens % CONTEXT
    feature = found.features.repeat(np.diff(found.offsets))
    values = found.values.astype(np.float16).astype(np.float64)
    keep = rows["length"][row] == CONTEXT
    firings = np.stack([number[row], position, feature, values], axis=1)[keep]
    order = np.lexsort((firings[:, 2], firings[:, 1], firings[:, 0]))
    return rows["tokens"][rows["length"] == CONTEXT], firings[order]


def recipe(made: Tiny, tokenizer: Path, folder: Path, **sections: object) -> Json:
    given = {
        "dictionaries": {"auto": {"path": str(made.sae)}},
        "activations": {"path": str(folder), "tokenizer": str(tokenizer)},
    }
    return SETTINGS | given | sections


def shard_bytes(run: Run) -> Iterator[bytes]:
    for shard in firing_shards(run.cache("layers.1")):
        yield shard.path.read_bytes()


def test_activations_from_files_give_the_bytes_that_the_model_gave(
    whole: Run, made: Tiny, tokenizer: Path, dump: Path, tmp_path: Path
) -> None:
    """Rows, firing shards, samples, windows and scores."""
    run = pipeline.explain(recipe(made, tokenizer, dump), out=tmp_path / "run")
    rows = [[shard.path.read_bytes() for shard in row_shards(one.rows())] for one in (whole, run)]
    assert rows[0] == rows[1] and len(rows[0]) > 2
    assert list(shard_bytes(run)) == list(shard_bytes(whole))
    for stage in ("sample", "explain", "score"):
        found = [
            sorted(
                str(record)
                for path in sorted((one.path / stage).rglob("made_from.json"))
                for record in one.existing(*path.parent.relative_to(one.path).parts).records()
            )
            for one in (whole, run)
        ]
        assert found[0] == found[1] and found[0], stage
    assert run.recipe.corpus is None and run.recipe.cache.prepend_bos is True
    assert run.is_cached_whole() and run.recipe.activations is not None
    assert run.recipe.activations.documents == "files"


def test_a_run_on_files_is_extended_resumed_and_knows_when_they_changed(
    whole: Run, made: Tiny, tokenizer: Path, dump: Path, tmp_path: Path
) -> None:
    """Shards that are lost are made again, alike; more features need no file; another byte is noticed."""
    folder = tmp_path / "dump"
    shutil.copytree(dump, folder)
    out = tmp_path / "run"
    run = pipeline.explain(recipe(made, tokenizer, folder), out=out, until="cache")
    for path in sorted((out / "cache" / "layers.1").glob("0000000*"))[2:]:
        path.unlink()
    assert not Run.open(out).is_cached_whole()
    pipeline.run_line(Run.open(out), until="cache")
    assert list(shard_bytes(run)) == list(shard_bytes(whole))
    pipeline.explain({"features": {"n": 60}}, out=out, until="sample")
    assert len(Run.open(out).features()) == 60
    first = sorted(folder.iterdir())[0]
    arrays = {name: torch.from_numpy(array) for name, array in load_file(first).items()}
    arrays["activations"][0, 1, 0] += 1
    save_file(arrays, first)
    with pytest.raises(RecipeChanged, match=r"activations\.identity"):
        pipeline.explain({"features": {"n": 70}}, out=out)


def test_rows_without_documents_are_documents_of_their_own(
    whole: Run, made: Tiny, tokenizer: Path, dump: Path, tmp_path: Path
) -> None:
    """In bfloat16, no more tokens than asked for; the protocol of scores says that it is weaker."""
    for path in dump.iterdir():
        arrays = {name: torch.from_numpy(array) for name, array in load_file(path).items()}
        kept = {name: arrays[name] for name in ("tokens", "lengths")}
        folder = tmp_path / "dump"
        folder.mkdir(exist_ok=True)
        save_file(kept | {"activations": arrays["activations"].bfloat16()}, folder / path.name)
    sampling = SETTINGS["sampling"] | {"contrast": "silent"}  # so short, few features fill a top decile
    cache = {"n_tokens": 9_000, "shard_tokens": 4096}
    given = recipe(made, tokenizer, folder, cache=cache, sampling=sampling)
    run = pipeline.explain(given, out=tmp_path / "run")
    (total,) = (record for record in run.rows().records() if record["key"] == "all")
    assert 9_000 <= total["n_tokens"] < 9_000 + CONTEXT
    assert set(run.scores().to_pydict()["protocol"]) and all(
        "held out by row" in protocol for protocol in run.scores().to_pydict()["protocol"]
    )


def test_delphis_cache_is_explained_without_model_or_dictionary(
    whole: Run, tokenizer: Path, delphi: Path, tmp_path: Path
) -> None:
    """On the command line, with a tokenizer and nothing else; the firings are those that were cached."""
    out = tmp_path / "run"
    words = ["explain", "--delphi-cache", str(delphi), "--model", str(tokenizer), "--llm", "lexical"]
    words += ["--out", str(out), "--n-features", "40", "--set", "cache.shard_tokens=2048"]
    words += ["--set", "sampling.minimum=20", "--set", "sampling.minimum_full=60"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "Plan: 40 features of layers.1;" in done.output and str(delphi) in done.output
    run = Run.open(out)
    tokens, expected = full_rows(whole)
    shards = list(row_shards(run.rows()))
    assert len(shards) > 2
    assert np.array_equal(np.concatenate([np.array(s.read()["tokens"]) for s in shards]), tokens)
    found = FiringStore(list(firing_shards(run.cache("layers.1"))), CONTEXT).read(0, WIDTH)
    features = found.features.repeat(np.diff(found.offsets))
    columns = [found.tokens // CONTEXT, found.tokens % CONTEXT, features, found.values]
    got = np.stack(columns, axis=1).astype(np.float64)
    assert np.array_equal(got[np.lexsort((got[:, 2], got[:, 1], got[:, 0]))], expected)
    assert run.identities.widths == {"layers.1": WIDTH} and run.recipe.dictionaries["layers.1"].path is None
    assert set(run.scores().to_pydict()["status"]) == {"ok"}
    again = CliRunner().invoke(app, [*words[:9], "--n-features", "50", "--hook", "layers.1"])
    assert again.exit_code == 0, again.output
    assert len(Run.open(out).features()) == 50


def test_a_dictionary_beside_delphis_cache_must_be_as_wide(
    made: Tiny, tokenizer: Path, delphi: Path, tmp_path: Path
) -> None:
    run = pipeline.explain(recipe(made, tokenizer, delphi), out=tmp_path / "run", until="sample")
    assert run.recipe.activations is not None and run.recipe.activations.format == "delphi"
    assert run.recipe.dictionaries["layers.1"].path == str(made.sae)
    make_sae(tmp_path / "small", d_in=20)
    other = {"auto": {"path": str(tmp_path / "small")}}
    with pytest.raises(CheckpointError, match=r"has 40 features, but the cache of layers\.1 .* 208 latents"):
        pipeline.explain(recipe(made, tokenizer, delphi, dictionaries=other), out=tmp_path / "other")
    other = {"auto": {"hook": "layers.2"}}
    with pytest.raises(RecipeError, match=r"no cache of 'layers\.2'. It has: layers\.1"):
        pipeline.explain(recipe(made, tokenizer, delphi, dictionaries=other), out=tmp_path / "other")


@pytest.mark.parametrize(
    ("sections", "kind", "message"),
    [
        ({"corpus": {"path": "stdlib"}}, RecipeError, "corpus: can't be used with activations"),
        ({"dictionaries": {}}, RecipeError, "no dictionary is named to encode them"),
        ({"cache": {"context_length": 8}}, ActivationsError, "longer than a context of 8"),
        ({"activations": {"tokenizer": "./nowhere"}}, ModelError, r"no folder '\./nowhere'"),
        ({"activations": {"path": "nowhere"}}, ActivationsError, "there is no folder"),
        ({"dictionaries": {"a": {"hook": "layers.1"}}}, RecipeError, "no dictionary is named"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(
    made: Tiny,
    tokenizer: Path,
    dump: Path,
    tmp_path: Path,
    sections: dict[str, Any],
    kind: type[Exception],
    message: str,
) -> None:
    given = recipe(made, tokenizer, dump)
    for name, section in sections.items():
        given[name] = given.get(name, {}) | section if name in ("activations", "cache") else section
    with pytest.raises(kind, match=message):
        pipeline.explain(given, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_vectors_of_another_width_site_or_vocabulary_are_refused(
    made: Tiny, tokenizer: Path, tmp_path: Path
) -> None:
    tokens = torch.randint(1, 290, (40, 16))
    folder = tmp_path / "dump"
    folder.mkdir()

    def cached(n: int, tokens: torch.Tensor, said: str = "{}") -> None:
        save_file({"activations": torch.randn(40, 16, n), "tokens": tokens}, folder / "x.safetensors")
        (folder / "config.json").write_text(said)
        sampling = {"sampling": {"width": 8, "overlap": 8, "context_before": 2}}
        out = tmp_path / f"run-{n}-{len(said)}-{int(tokens.sum())}"  # the last files' rows are another run's
        pipeline.explain(recipe(made, tokenizer, folder, **sampling), out=out, until="cache")

    with pytest.raises(CheckpointError, match=r"reads vectors of 104 numbers, but those in .* have 96"):
        cached(96, tokens)
    with pytest.raises(
        CheckpointError, match=r"reads layers\.1, but config\.json .* blocks\.2\.hook_resid_post"
    ):
        cached(D_MODEL, tokens, '{"hook": "blocks.2.hook_resid_post"}')
    with pytest.raises(ActivationsError, match=r"holds token 5,000, but the tokenizer .* has 300"):
        cached(D_MODEL, tokens.clone().fill_(5_000))
    with pytest.raises(ActivationsError, match="holds a single document"):
        cached(D_MODEL, tokens[:1].repeat(40, 1))


def test_flags_exclude_each_other() -> None:
    done = CliRunner().invoke(app, ["explain", "--activations", "a", "--delphi-cache", "b"])
    assert done.exit_code == 2 and "exclude each other" in done.output
