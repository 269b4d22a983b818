"""Prefetch: from a hub on the loopback device into the real clients' caches, then a run without a network."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from transformers import AutoTokenizer

from autointerp import pipeline
from autointerp.activations.rows import row_shards
from autointerp.errors import CorpusError, RecipeError
from autointerp.prefetch import prefetch
from autointerp.progress import Silent, Stop
from autointerp.run import Run
from autointerp.stages.rows import read_corpus
from autointerp.subject import corpus_hub
from autointerp.subject.chat import Turn
from autointerp.subject.corpus import corpus_identity, documents
from autointerp.subject.corpus_hub import Copy, Hub
from autointerp.subject.corpus_spec import CorpusSpec
from loopback_hub import LoopbackHub, commit_of
from tiny import D_MODEL, Tiny

N_TOKENS = 6_000
FLAGS = ["--sae", "org/saes:layers.1", "--model", "org/model", "--corpus", "org/texts"]
FLAGS += ["--set", f"cache.n_tokens={N_TOKENS}"]


@pytest.fixture(scope="module")
def hub_root(made: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two dictionaries in one repository, and a dataset of four Parquet files of 100 texts."""
    root = tmp_path_factory.mktemp("hub")
    shutil.copytree(made.model, root / "models" / "org" / "model")
    for layer in (1, 2):
        shutil.copytree(made.sae, root / "models" / "org" / "saes" / f"layers.{layer}")
    for name in ("model", "saes"):
        (root / "models" / "org" / name / "README.md").write_text("not fetched")
    arrow: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    folder = root / "datasets" / "org" / "texts" / "data"
    folder.mkdir(parents=True)
    texts = made.corpus.read_text().split("<|endoftext|>")
    for number in range(4):
        table = arrow.table({"text": texts[100 * number : 100 * number + 100]})
        parquet.write_table(table, folder / f"train-{number:05d}-of-00004.parquet")
    return root


def typed(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    quiet = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "autointerp", *words],
        env=kept | quiet | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_run_without_a_network_finds_all_that_was_prefetched(
    hub_root: Path, made: Tiny, tmp_path: Path
) -> None:
    """Its rows are those of the same texts in a local folder; a second prefetch fetches no file."""
    home = str(tmp_path / "hf")
    with LoopbackHub(hub_root) as hub:
        first = typed("prefetch", *FLAGS, HF_ENDPOINT=hub.url, HF_HOME=home)
        assert first.returncode == 0, first.stdout + first.stderr
        bodies = [request for request in hub.requests if request.startswith("GET") and "/resolve/" in request]
        assert not [request for request in bodies if "layers.2" in request or "models/README" in request]
        assert not [request for request in bodies if "train-00003" in request]  # 6,000 tokens end before
        hub.requests.clear()
        second = typed("prefetch", *FLAGS, HF_ENDPOINT=hub.url, HF_HOME=home)
        assert second.returncode == 0, second.stdout + second.stderr
        assert not [request for request in hub.requests if "resolve" in request and "GET" in request]
    for line in ("dictionary layers.1: org/saes:layers.1", "model: org/model, 1.", "corpus: org/texts, "):
        assert line in first.stdout
    assert f"HF_HUB_OFFLINE=1 autointerp explain {' '.join(FLAGS)}" in first.stdout
    out = tmp_path / "run"
    ran = typed(
        "explain", *FLAGS, "--llm", "lexical", "--n-features", "4", "--until", "cache", "--out", str(out),
        HF_ENDPOINT=hub.url, HF_HOME=home, HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    run = Run.open(out)
    assert run.identities.corpus == f"org/texts@{commit_of(hub_root / 'datasets' / 'org' / 'texts')}"
    local = made.recipe(
        corpus={"path": str(hub_root / "datasets" / "org" / "texts")}, cache={"n_tokens": N_TOKENS}
    )
    here = pipeline.prepare(local, tmp_path / "here")[1]
    read_corpus(here, AutoTokenizer.from_pretrained(made.model), Silent(), Stop())
    assert files(run) == files(here)


def files(run: Run) -> list[bytes]:
    return [shard.path.read_bytes() for shard in row_shards(run.rows())]


# --- copies --------------------------------------------------------------------------------------------

COMMIT = "0123456789" * 4
SPEC = CorpusSpec("org/name", chat="auto", field="x")
ROWS = [
    *(f"text {n} \u2028 \u00e9" for n in range(9)),
    (Turn("user", "<|im_end|>\n"), Turn("a", "")),
    "",
    "end",
]


class Stream:
    """A dataset; `asked` counts its rows as they are read, `breaks_at` is where the network fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        self.breaks_at: int | None = None
        monkeypatch.setattr(corpus_hub, "streamed", self._rows)
        monkeypatch.setattr(corpus_hub, "ROWS_A_PART", 3)

    def _rows(self, _spec: CorpusSpec, revision: str | None) -> Iterator[Any]:
        assert revision == COMMIT
        for number, row in enumerate(ROWS):
            if number == self.breaks_at:
                raise CorpusError("the hub is gone")
            self.asked += 1
            yield row


@settings(max_examples=60)
@given(reads=st.lists(st.tuples(st.booleans(), st.integers(0, len(ROWS) + 1)), max_size=5))
def test_a_copy_grows_over_any_number_of_prefetches(reads: list[tuple[bool, int]]) -> None:
    """Each reads so many rows and ends, by itself or because the hub breaks off: what it read is kept."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        stream, longest, whole = Stream(patch), 0, False
        for breaks, n in reads:
            copy = Copy(Path(folder), SPEC, COMMIT)
            stream.breaks_at = n if breaks else None
            growing = copy.growing()
            found: list[Any] = []
            try:
                for row in growing:
                    found.append(row)
                    if not breaks and len(found) >= max(n, 1):
                        break
                else:
                    whole = True
            except CorpusError:
                assert breaks
            growing.close()
            assert found == ROWS[: len(found)]
            longest = max(longest, len(found))
        copy = Copy(Path(folder), SPEC, COMMIT)
        assert copy.n_rows == longest and copy.is_whole() == whole
        kept: list[Any] = []
        try:
            kept += copy.contents()
        except CorpusError as error:
            assert not whole and f"ends after {longest} rows" in str(error)
            kept = list(copy._copied())
        assert kept == ROWS[:longest]


def test_offline_the_last_copy_is_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(monkeypatch)
    copy = Copy(tmp_path, SPEC, COMMIT)
    assert list(copy.growing()) == ROWS
    hub = Hub(tmp_path)
    with pytest.raises(CorpusError, match=r"didn't say which commit.*autointerp prefetch"):
        corpus_identity(SPEC, hub)
    copy.make_current()
    assert corpus_identity(SPEC, hub) == f"org/name@{COMMIT}"
    stream.asked = 0
    found = documents(SPEC, hub)
    assert len(list(found)) == len(ROWS) - 1 and found.n_empty == 1 and stream.asked == 0


def test_a_copy_that_is_too_short_says_what_to_do(
    made: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it holds is made into rows; then the run stops, and goes on with a longer copy."""
    texts = made.corpus.read_text().split("<|endoftext|>")
    monkeypatch.setattr(corpus_hub, "streamed", lambda _spec, _revision: iter(texts))
    copies = tmp_path / "copies"
    recipe = made.recipe(
        corpus={"path": "org/name"},
        cache={"n_tokens": 40_000, "shard_tokens": 2048},
        resources={"prefetch": str(copies)},
    )
    spec = CorpusSpec("org/name")

    def copied(n: int) -> None:
        copy = Copy(copies, spec, COMMIT)
        growing = copy.growing()
        for _ in zip(range(n), growing, strict=False):
            pass
        growing.close()
        copy.make_current()

    copied(70)
    run = pipeline.prepare(recipe, tmp_path / "run")[1]
    tokenizer = AutoTokenizer.from_pretrained(made.model)
    with pytest.raises(CorpusError, match=r"ends after 70 rows.*`autointerp prefetch`"):
        read_corpus(run, tokenizer, Silent(), Stop())
    assert 1 <= len(files(run)) < 12
    copied(400)
    read_corpus(run, tokenizer, Silent(), Stop())
    local = made.recipe(cache={"n_tokens": 40_000, "shard_tokens": 2048})
    here = pipeline.prepare(local, tmp_path / "here")[1]
    read_corpus(here, tokenizer, Silent(), Stop())
    assert files(run) == files(here)


# --- what is here already ------------------------------------------------------------------------------


def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("huggingface_hub").constants, "HF_HUB_OFFLINE", False)


def test_what_is_local_is_named_and_left_where_it_is(
    made: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online(monkeypatch)
    got = {one.what: one for one in prefetch(made.recipe())}
    assert set(got) == {"dictionary layers.1", "model", "corpus"}
    assert all(one.is_local for one in got.values())
    assert got["corpus"].place == made.corpus and got["corpus"].n_bytes == made.corpus.stat().st_size
    drawn = prefetch(made.recipe(corpus={"path": "random-tokens"}))[-1]
    assert (drawn.name, drawn.place, drawn.n_bytes) == ("random-tokens", None, 0)


def test_neurons_are_nothing_to_fetch_and_a_lone_file_is_itself(
    made: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online(monkeypatch)
    neurons = {"dictionaries": {"neurons": {"path": "neurons", "hook": "layers.1.neurons"}}}
    got = prefetch(made.recipe(**neurons))[0]
    assert (got.what, got.place, got.n_bytes, got.is_local) == ("dictionary neurons", None, 0, True)
    lone = tmp_path / "lone.safetensors"
    shapes = {"W_enc": (D_MODEL, 20), "W_dec": (20, D_MODEL), "b_enc": (20,), "b_dec": (D_MODEL,)}
    save_file({name: np.ones(shape, np.float32) for name, shape in shapes.items()}, lone)
    got = prefetch(made.recipe(dictionaries={"lone": {"path": str(lone), "hook": "layers.1"}}))[0]
    assert (got.place, got.n_bytes, got.is_local) == (lone, lone.stat().st_size, True)


def test_the_reference_of_random_tokens_is_copied(
    made: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online(monkeypatch)
    texts = made.corpus.read_text().split("<|endoftext|>")
    monkeypatch.setattr(corpus_hub, "streamed", lambda _spec, _revision: iter(texts))
    section = {
        "path": "random-tokens",
        "distribution": "unigram",
        "reference": "org/name",
        "revision": COMMIT,
    }
    recipe = made.recipe(corpus=section, resources={"prefetch": str(tmp_path)})
    got = prefetch(recipe)[-1]
    assert (got.name, got.is_local) == ("org/name", False)
    copy = Copy(tmp_path, CorpusSpec("org/name", revision=COMMIT), COMMIT)
    assert copy.n_rows == 400 and copy.is_whole() and got.place == copy.folder


def test_offline_there_is_nothing_to_prefetch(made: Tiny) -> None:
    with pytest.raises(RecipeError, match="HF_HUB_OFFLINE is set"):
        prefetch(made.recipe(corpus={"path": "org/name", "revision": COMMIT}))
    assert all(one.is_local for one in prefetch(made.recipe()))
