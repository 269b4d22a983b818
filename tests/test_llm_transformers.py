"""The transformers backend, in its child process, against the model read plainly, one request at a time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from autointerp.demo import MODEL
from autointerp.errors import LLMBadRequest, LLMStopped, RecipeError
from autointerp.llm.protocol import LLM, Place
from autointerp.llm.transformers import Transformers
from autointerp.prompting import Prompt, load_template

T = TypeVar("T")

EXAMPLES = "def area(width, height):\n    return width * height\n" * 3


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Prompt]:
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "score").mkdir()
    (folder / "score" / "tried.jinja").write_text(f"[[system]]\n{EXAMPLES}[[user]]\n{{{{ text }}}}\n")
    template = load_template("score/tried", folder)
    return lambda text: Prompt(template, {"text": text})


def with_llm(model: Path, folder: Path, work: Callable[[LLM], Awaitable[T]], **options: Any) -> T:
    async def run() -> T:
        llm = Transformers(str(model), device="cpu", **options).connect(Place(folder=folder))
        try:
            return await work(llm)
        finally:
            await llm.close()

    return asyncio.run(run())


def likely_behind(model: Path, text: str, more: str) -> Any:
    """[V], natural logs, behind the prompt and these tokens."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    prompt = tokenizer.encode(EXAMPLES.rstrip() + "\n" + text.rstrip() + "\n", add_special_tokens=False)
    ids = [tokenizer.bos_token_id, *prompt, *tokenizer.encode(more, add_special_tokens=False)]
    with torch.no_grad():
        return loaded(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)


def by_hand(model: Path, text: str, continuation: str) -> list[float]:
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    first = tokenizer.encode(EXAMPLES.rstrip() + "\n" + text.rstrip() + "\n", add_special_tokens=False)
    added = tokenizer.encode(continuation, add_special_tokens=False)
    ids = [tokenizer.bos_token_id, *first, *added]
    with torch.no_grad():
        logp = loaded(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    begin = len(ids) - len(added)
    return [float(logp[begin + n - 1, token]) for n, token in enumerate(added)]


@pytest.mark.parametrize("which", ["demo", "stories260K"])
def test_log_probabilities_are_those_of_the_model_read_alone(
    which: str, request: pytest.FixtureRequest, prompts: Callable[[str], Prompt], tmp_path: Path
) -> None:
    """Twenty requests at once, of several lengths, with a common beginning that is read once: two batches."""
    model = MODEL if which == "demo" else request.getfixturevalue("real") / "models" / which
    texts = [f"for item in {'the ' * (n % 5)}list:" for n in range(20)]
    continuations = [" return item", "x", " the cat sat"]

    async def ask(llm: LLM) -> list[list[float]]:
        return list(
            await asyncio.gather(
                *(llm.logprobs(prompts(t), continuations[n % 3]) for n, t in enumerate(texts))
            )
        )

    found = with_llm(model, tmp_path, ask, batch_size=12)
    for n in (0, 1, 2, 7, 19):
        assert found[n] == pytest.approx(by_hand(model, texts[n], continuations[n % 3]), abs=2e-4)
    assert found[0] == pytest.approx(found[15], abs=1e-4)  # the same request, in another batch


def test_fillers_are_rated_in_one_pass(prompts: Callable[[str], Prompt], tmp_path: Path) -> None:
    """As the model read by hand says in each place, over all spellings of a label; beside continuations in one
    batch; two that begin alike."""
    pieces, labels = ["def", " name(", "):\n    return"], ["name", "self", "qqqqqq"]

    async def ask(llm: LLM) -> Any:
        return await asyncio.gather(
            llm.fill(prompts("class A:"), pieces, " x", labels),
            llm.logprobs(prompts("class A:"), " def"),
            llm.fill(prompts("class A:"), pieces[:1], " x", labels),
            llm.fill(prompts("class A:"), [], " x", labels),
            llm.logprobs(prompts("class A:"), ""),
        )

    filled, continued, one, none, empty = with_llm(MODEL, tmp_path, ask)
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    for n, found in enumerate(filled):
        before = " x".join(pieces[: n + 1])
        logp = likely_behind(MODEL, "class A:", before).exp()
        for label in labels[:2]:
            spelled = [token for token, text in enumerate(texts) if text.strip().lower() == label]
            assert len(spelled) >= 1 and math.exp(found[label]) == pytest.approx(
                float(logp[spelled].sum()), rel=1e-3
            )
        assert "qqqqqq" not in found
    assert one[0] == pytest.approx(filled[0], abs=1e-4)
    assert continued == pytest.approx(by_hand(MODEL, "class A:", " def"), abs=2e-4)
    assert none == empty == []


def test_texts_are_greedy_or_drawn_by_seed_and_index(
    prompts: Callable[[str], Prompt], tmp_path: Path
) -> None:
    async def ask(llm: LLM) -> Any:
        prompt = prompts("def width(self):")
        greedy = await llm.generate(prompt, max_tokens=6, label_tokens=("    ", "return"))
        first, same, other = [
            (await llm.generate(prompt, max_tokens=12, temperature=1.0, seed=3, index=index)).text
            for index in (0, 0, 1)
        ]
        (likeliest,) = (await llm.logprobs(prompt, greedy.text))[:1]
        with pytest.raises(LLMBadRequest, match="tokens of a context"):
            await llm.generate(prompt, max_tokens=4_000)
        with pytest.raises(LLMBadRequest, match="no embeddings"):
            await llm.embed(["x"])
        return greedy, first, same, other, likeliest

    greedy, first, same, other, likeliest = with_llm(MODEL, tmp_path, ask)
    assert greedy.usage.completion_tokens <= 6 and greedy.usage.prompt_tokens > 30
    assert first == same != other
    assert greedy.label_logprobs["return"] <= likeliest + 1e-4 <= 0
    assert math.exp(greedy.label_logprobs["return"]) > 0


def test_a_model_that_cannot_be_loaded_says_why(prompts: Callable[[str], Prompt], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(LLMStopped, match=r"can't start: .*config"):
        with_llm(empty, tmp_path, lambda llm: llm.logprobs(prompts("x"), "y"))
    with pytest.raises(LLMStopped, match="no chat template"):
        with_llm(MODEL, tmp_path, lambda llm: llm.logprobs(prompts("x"), "y"), chat=True)


def test_options_that_change_answers_are_part_of_the_identity() -> None:
    plain = Transformers(str(MODEL)).identity()
    assert plain.model == "model" and len(plain.revision) == 12
    assert Transformers(str(MODEL), batch_size=3, device="cpu").identity() == plain
    assert Transformers(str(MODEL), dtype="bfloat16").identity() != plain
    with pytest.raises(RecipeError, match="no folder"):
        Transformers("./nowhere")
