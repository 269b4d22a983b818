"""The vllm backend on a real vLLM (its CPU build): against transformers, against `vllm serve`, killed.

`make test-vllm` makes the environment and runs this. float32 and a tiny random model whose weights are large:
with usual ones it would say one token for ever, and everything would agree with everything.
"""

from __future__ import annotations

import asyncio
import importlib.util
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import jinja2
import orjson
import pytest
import yaml

from autointerp.errors import LLMBadRequest, LLMUnavailable
from autointerp.llm import engine_pids
from autointerp.llm.exchange import Reply
from autointerp.llm.openai import Openai
from autointerp.llm.protocol import LLM
from autointerp.llm.vllm import Vllm, VllmLLM
from autointerp.prompting import Prompt, Template
from autointerp.run import Run
from tiny import Tiny

pytestmark = pytest.mark.vllm
if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed here; make test-vllm", allow_module_level=True)

CONTEXT = 4096
CHATML = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
COMPACT = ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
"""As our engine keeps schemas. A random model fills a whole answer with white space where it may."""
START_S = 400
"""An engine starts in about 20 s on a quiet machine."""


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        patch.setenv("TORCH_COMPILE_DISABLE", "1")
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama that chats in ChatML."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llm") / "model"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    prompts = Path(__file__).parent.parent / "prompts"
    texts = [path.read_text() for path in prompts.rglob("*.jinja")]
    tokenizer.train_from_iterator(["yes no Yes No yes no user system assistant "] * 50 + texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|bos|>", eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    wrapped.chat_template = CHATML
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=600, hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=CONTEXT, initializer_range=0.25,
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with asyncio.Runner() as runner:
        yield runner.get_loop()


@pytest.fixture(scope="module")
def engine(model: Path, loop: asyncio.AbstractEventLoop) -> Iterator[VllmLLM]:
    """One engine for all tests that don't end it."""

    async def connect() -> VllmLLM:
        return Vllm(str(model), dtype="float32").connect()

    llm = loop.run_until_complete(connect())
    began = time.monotonic()
    loop.run_until_complete(llm.generate(prompt("hello"), max_tokens=1))
    print(f"engine: {time.monotonic() - began:.1f} s to the first answer")
    yield llm
    began = time.monotonic()
    loop.run_until_complete(llm.close())
    print(f"engine: {time.monotonic() - began:.1f} s to end")
    assert not list(engine_pids.folder().glob("*.json"))


def prompt(user: str, system: str = "") -> Prompt:
    turns = (("system", jinja2.Template("{{ system }}")), ("user", jinja2.Template("{{ user }}")))
    return Prompt(Template("test", "0", turns), {"system": system, "user": user})  # type: ignore[arg-type]


PROMPTS = [
    prompt(f"the {n} cat, say yes or no: " + "number, a colon " * (n % 7), "be brief") for n in range(40)
]


# --- against transformers ------------------------------------------------------------------------------


def reference(model: Path, asked: Prompt, continuation: str = "") -> list[list[float]]:
    """Log-probabilities of all tokens behind the prompt and behind each token of the continuation."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    turns = [{"role": turn.role, "content": turn.content} for turn in asked.messages]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    added = tokenizer.encode(continuation, add_special_tokens=False)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(torch.tensor([ids + added]))
    return logits.logits[0, len(ids) - 1 :].log_softmax(-1).tolist()


def test_label_probabilities_are_those_of_transformers(
    model: Path, engine: VllmLLM, loop: asyncio.AbstractEventLoop
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    n_compared = 0
    for asked in PROMPTS[:10]:
        reply = loop.run_until_complete(
            engine.generate(asked, max_tokens=1, label_tokens=["yes", "no"], choices=["yes", "no"])
        )
        if reply.label_logprobs is None:  # the first token is white space: there is no first word
            continue
        (row,) = reference(model, asked)
        for label, value in reply.label_logprobs.items():
            spelled = [token for token, text in enumerate(texts) if text.strip().casefold() == label]
            assert len(spelled) >= 2
            expected = math.log(sum(math.exp(row[token]) for token in spelled))
            assert value == pytest.approx(expected, abs=1e-3)
            n_compared += 1
    assert n_compared >= 10


def test_probabilities_of_a_given_text_are_those_of_transformers(
    model: Path, engine: VllmLLM, loop: asyncio.AbstractEventLoop
) -> None:
    from transformers import AutoTokenizer

    continuation = "EXPLANATION: the cat is said to fire, yes ⏎ no"
    tokens = AutoTokenizer.from_pretrained(model).encode(continuation, add_special_tokens=False)
    for asked in PROMPTS[:5]:
        said = loop.run_until_complete(engine.logprobs(asked, continuation))
        rows = reference(model, asked, continuation)
        expected = [rows[n][token] for n, token in enumerate(tokens)]
        assert said == pytest.approx(expected, abs=1e-3)
    assert loop.run_until_complete(engine.logprobs(PROMPTS[0], "")) == []


def test_greedy_answers_are_those_of_transformers(
    model: Path, engine: VllmLLM, loop: asyncio.AbstractEventLoop
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for asked in PROMPTS[:5]:
        turns = [{"role": turn.role, "content": turn.content} for turn in asked.messages]
        ids = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = loaded.generate(**ids, max_new_tokens=16, do_sample=False)[0, ids["input_ids"].shape[1] :]
        reply = loop.run_until_complete(engine.generate(asked, max_tokens=16))
        expected = tokenizer.decode(out, skip_special_tokens=True)
        # Bytes that are no character, at the end above all, are shown in ways of their own.
        assert reply.text.replace("\ufffd", "") == expected.replace("\ufffd", "")


# --- constraints, limits, many at once -----------------------------------------------------------------


def test_choices_and_schemas_hold(engine: VllmLLM, loop: asyncio.AbstractEventLoop) -> None:
    schema = {
        "type": "object",
        "properties": {"answer": {"enum": ["yes", "no"]}, "sure": {"type": "boolean"}},
        "required": ["answer", "sure"],
        "additionalProperties": False,
    }

    async def work() -> tuple[list[Reply], list[Reply]]:
        chosen = [engine.generate(asked, max_tokens=16, choices=["yes", "no"]) for asked in PROMPTS]
        filled = [engine.generate(asked, max_tokens=60, schema=schema) for asked in PROMPTS[:8]]
        return await asyncio.gather(*chosen), await asyncio.gather(*filled)

    chosen, filled = loop.run_until_complete(work())
    assert {reply.text for reply in chosen} <= {"yes", "no"}  # a model of random weights may prefer one
    for reply in filled:
        assert orjson.loads(reply.text).keys() == {"answer", "sure"}


def test_what_does_not_fit_is_a_bad_request(engine: VllmLLM, loop: asyncio.AbstractEventLoop) -> None:
    async def work() -> Reply:
        for asked, max_tokens in ((prompt("cat " * CONTEXT), 1), (prompt("cat"), CONTEXT)):
            with pytest.raises(LLMBadRequest, match=f"more than the {CONTEXT:,} tokens"):
                await engine.generate(asked, max_tokens=max_tokens)
        with pytest.raises(LLMBadRequest, match=f"{CONTEXT}"):
            await engine.logprobs(prompt("cat"), "cat " * CONTEXT)
        with pytest.raises(LLMBadRequest, match="nonsense"):
            await engine.generate(prompt("cat"), max_tokens=5, schema={"type": "nonsense"})
        return await engine.generate(prompt("cat"), max_tokens=5)

    assert loop.run_until_complete(work()).usage.completion_tokens <= 5


def test_hundreds_at_once_answer_as_one_by_one_and_share_their_beginning(
    engine: VllmLLM, loop: asyncio.AbstractEventLoop
) -> None:
    system = "say what is the same in all of these excerpts " * 40  # over 128 tokens, a block on a CPU
    asked = [prompt(f"number {n}", system) for n in range(300)]

    async def together() -> list[Reply]:
        return await asyncio.gather(*(engine.generate(one, max_tokens=16) for one in asked))

    began = time.monotonic()
    replies = loop.run_until_complete(together())
    print(f"engine: {len(asked) / (time.monotonic() - began):.0f} requests/s of 16 tokens, 300 at once")
    assert sum(reply.usage.cached_tokens >= 128 for reply in replies) > 200
    assert all(reply.usage.prompt_tokens > 128 for reply in replies)
    for n in range(0, 300, 60):
        assert loop.run_until_complete(engine.generate(asked[n], max_tokens=16)).text == replies[n].text


def test_a_cancelled_request_frees_the_engine(engine: VllmLLM, loop: asyncio.AbstractEventLoop) -> None:
    async def work() -> float:
        long = [asyncio.ensure_future(engine.generate(one, max_tokens=3_500)) for one in PROMPTS]
        await asyncio.sleep(1.0)
        for one in long:
            one.cancel()
        await asyncio.gather(*long, return_exceptions=True)
        began = time.monotonic()
        await engine.generate(PROMPTS[0], max_tokens=4)
        return time.monotonic() - began

    assert loop.run_until_complete(work()) < 20


# --- the whole line, on the engine and on a server -----------------------------------------------------


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of vLLM's own server on the same model."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
             "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
             "--enforce-eager", "--enable-prompt-tokens-details", *COMPACT],
            stdout=output, stderr=output, start_new_session=True,
            env=os.environ | {"VLLM_NO_USAGE_STATS": "1"},
        )  # fmt: skip
    try:
        until = time.monotonic() + START_S
        while not _is_healthy(port):
            assert process.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def test_the_engine_says_what_the_server_says(
    engine: VllmLLM, server: str, loop: asyncio.AbstractEventLoop
) -> None:
    async def both() -> tuple[list[Reply], list[Reply], list[Reply], list[Reply]]:
        served = Openai("tiny", base_url=server, constrain="structured_outputs").connect()
        try:
            return (
                await asyncio.gather(*(engine.generate(one, max_tokens=24) for one in PROMPTS)),
                await asyncio.gather(*(served.generate(one, max_tokens=24) for one in PROMPTS)),
                await asyncio.gather(*(choose(engine, one) for one in PROMPTS)),
                await asyncio.gather(*(choose(served, one) for one in PROMPTS)),
            )
        finally:
            await served.close()

    def choose(llm: LLM, asked: Prompt) -> asyncio.Future[Reply]:
        return asyncio.ensure_future(llm.generate(asked, max_tokens=16, choices=["yes", "no", "perhaps"]))

    ours, theirs, chosen, chosen_there = loop.run_until_complete(both())
    assert [(reply.text, reply.finish_reason) for reply in ours] == [
        (reply.text, reply.finish_reason) for reply in theirs
    ]
    assert [reply.usage.prompt_tokens for reply in ours] == [reply.usage.prompt_tokens for reply in theirs]
    assert [reply.text for reply in chosen] == [reply.text for reply in chosen_there]
    assert len({reply.text for reply in ours}) > 20


def test_a_run_on_the_engine_has_the_records_of_one_on_the_server(
    made: Tiny, model: Path, server: str, tmp_path: Path
) -> None:
    """On the command line, `--llm vllm:PATH`, `openai:` and `batch:`, whose files vLLM's own `run-batch` answers
    by the command that the run prints. Of a random model no explanation can be read, which each
    feature's record says and quotes; so a second explainer, without an LLM, gives the judge something."""
    recipe = made.recipe(
        features={"n": 6},
        explainers={"plain": {"use": "plain", "max_tokens": 40}, "words": {"use": "lexical"}},
        scorers={"detection": {"use": "detection", "packing": 20}},
        llms={},
    )
    recipe["sampling"] |= {"n_shown": 10, "n_shown_silent": 10}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    constrained = setting("constrain=structured_outputs")  # the engine always is
    ways = {
        "here": ["--llm", f"vllm:{model}", *setting("dtype=float32")],
        "there": ["--llm", "openai:tiny", *setting(f"base_url={server}"), *constrained],
        "in files": ["--llm", f"batch:{model}", *setting("submit=false"), *constrained],
    }
    found: dict[str, list[list[object]]] = {}
    for name, way in ways.items():
        result = autointerp("explain", "--recipe", tmp_path / "recipe.yaml", *way, "--out", tmp_path / name)
        while name == "in files" and result.returncode == 1:
            run_printed(result.stderr)
            result = autointerp("resume", tmp_path / name)
        assert result.returncode == 0, result.stdout + result.stderr
        run = Run.open(tmp_path / name)
        found[name] = sorted(
            [row["key"], row["status"], row["reason"], row.get("text"), row.get("trials")]
            for stage in (("explain", "layers.1", "plain"), ("score", "layers.1", "words", "detection"))
            for row in run.existing(*stage).records()
        )
        assert {row["llm"].partition("@")[0] for row in run.existing("explain", "layers.1", "plain").records()} <= {
            "model", "tiny", str(model),
        }  # fmt: skip
    for name in ("there", "in files"):
        pairs = zip(found["here"], found[name], strict=True)
        assert [pair for pair in pairs if pair[0] != pair[1]] == []
    assert len(list((tmp_path / "in files" / "batch").glob("0*/answers-*.jsonl"))) >= 2  # and second tries
    assert len(found["here"]) >= 8
    assert {row[1] for row in found["here"]} <= {"unreadable", "ok"}
    assert list((tmp_path / "here").glob("vllm-*.log"))


def autointerp(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autointerp", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def run_printed(stderr: str) -> None:
    """Runs each `vllm run-batch ...` that a run asks for, in float32."""
    printed = [line for line in stderr.splitlines() if line.lstrip().startswith("vllm run-batch ")]
    assert printed, stderr
    for line in printed:
        command = [sys.executable, "-m", "vllm.entrypoints.openai.run_batch", *shlex.split(line)[2:]]
        result = subprocess.run(
            [*command, "--dtype", "float32", "--enforce-eager", *COMPACT],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr


def setting(text: str) -> list[str]:
    return [part for role in ("explainer", "judge") for part in ("--set", f"llms.{role}.{text}")]


# --- deaths --------------------------------------------------------------------------------------------

PARENT = """
import asyncio, sys
from autointerp.llm.vllm import Vllm
from test_vllm_real import PROMPTS

async def main():
    llm = Vllm(sys.argv[1], dtype="float32").connect()
    await llm.generate(PROMPTS[0], max_tokens=1)
    print("ready", flush=True)
    await asyncio.gather(*(llm.generate(one, max_tokens=3_500) for one in PROMPTS))

asyncio.run(main())
"""


def test_kill_9_of_the_parent_leaves_no_process(model: Path, tmp_path: Path) -> None:
    environment = os.environ | {
        "XDG_RUNTIME_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }  # fmt: skip
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(model)], stdout=subprocess.PIPE, env=environment
    )
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        (file,) = tmp_path.glob("*/engine-*.json")
        content = orjson.loads(file.read_bytes())
        processes = [engine_pids.Process(**entry) for entry in content["processes"]]
        assert len(processes) >= 3  # the guard, the child, vLLM's own engine process
        assert all(map(engine_pids._is_alive, processes))
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    killed = time.monotonic()
    while any(map(engine_pids._is_alive, processes)) and time.monotonic() < killed + 10:
        time.sleep(0.1)
    print(
        f"engine: {time.monotonic() - killed:.1f} s from the parent's death to that of all {len(processes)}"
    )
    assert not [process for process in processes if engine_pids._is_alive(process)]


def test_an_engine_process_that_is_killed_leaves_requests_open(
    engine: VllmLLM, loop: asyncio.AbstractEventLoop
) -> None:
    """The last test: it ends the engine of the others."""

    async def work() -> None:
        long = [asyncio.ensure_future(engine.generate(one, max_tokens=3_500)) for one in PROMPTS]
        await asyncio.sleep(0.5)
        (file,) = engine_pids.folder().glob("engine-*.json")
        processes = orjson.loads(file.read_bytes())["processes"]
        core = max(processes, key=lambda process: process["start"])  # vLLM's own, started last
        os.kill(core["pid"], signal.SIGKILL)
        results = await asyncio.gather(*long, return_exceptions=True)
        # A few may have been answered in that time.
        died = [result for result in results if isinstance(result, LLMUnavailable)]
        assert len(died) > 20 and all(isinstance(one, LLMUnavailable | Reply) for one in results), results
        assert all("EngineDeadError" in str(one) for one in died)
        with pytest.raises(LLMUnavailable, match="died"):
            await engine.generate(PROMPTS[0], max_tokens=1)

    loop.run_until_complete(work())
