"""What is known of models: looked up, overruled, written into new runs, and learned from refusals."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import jinja2
import orjson
import pytest

from autointerp.errors import LLMBadRequest, LLMStopped
from autointerp.llm import endpoints
from autointerp.llm.dialects import Dialect, dialect_of, look_up, written_out
from autointerp.llm.exchange import Prices, Reply, Usage
from autointerp.llm.left_out import FILE, Learned
from autointerp.llm.left_out import left_out as left_out_of
from autointerp.llm.openai import Openai
from autointerp.llm.protocol import Place
from autointerp.llm.server_errors import RefusedSetting, Server
from autointerp.prompting import Prompt, Template
from autointerp.recipe import merge
from fault_server import Behaviour, FaultServer, Json, body_of, ok, rate_limited, refused_url, slow, status

OPENAI = "https://api.openai.com/v1"
HERE = "http://127.0.0.1:8000/v1"
ROUTER = "https://openrouter.ai/api/v1"


def prompt(user: str, system: str = "") -> Prompt:
    turns = (("system", jinja2.Template("{{ system }}")), ("user", jinja2.Template("{{ user }}")))
    return Prompt(Template("test", "0", turns), {"system": system, "user": user})


@pytest.mark.parametrize(
    ("model", "address", "field", "expected"),
    [
        ("gpt-4.1-mini-2025-04-14", OPENAI, "prices", Prices(input=0.4, cached=0.1, output=1.6, batch=0.5)),
        ("gpt-4.1", OPENAI, "prices", Prices(input=2.0, cached=0.5, output=8.0, batch=0.5)),
        ("gpt-5-mini", OPENAI, "max_tokens_field", "max_completion_tokens"),
        ("gpt-5-mini", OPENAI, "logprobs", False),
        ("gpt-5.1", OPENAI, "logprobs", True),
        ("gpt-5.1-2025-11-13", OPENAI, "prices", Prices(input=1.25, cached=0.125, output=10.0, batch=0.5)),
        ("gpt-5.4-mini", OPENAI, "prices", Prices(input=0.75, cached=0.075, output=4.5, batch=0.5)),
        ("gpt-5.4-pro", OPENAI, "prices", None),
        ("gpt-5.9", OPENAI, "prices", None),
        ("gpt-5.9", OPENAI, "max_tokens_field", "max_completion_tokens"),
        ("gpt-4o", HERE, "prices", None),
        ("Qwen/Qwen3-8B", HERE, "extra_body", {"chat_template_kwargs": {"enable_thinking": False}}),
        ("qwen/qwen3-8b", ROUTER, "constrain", "response_format"),
        ("google/gemma-2-9b-it", HERE, "system_role", False),
        ("nobody/knows-this", HERE, "cached_from", None),
    ],
)
def test_the_first_entry_that_fits_counts(model: str, address: str, field: str, expected: object) -> None:
    assert getattr(look_up(model, address), field) == expected


def test_the_recipe_goes_before_the_table_and_a_table_of_ones_own_before_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Openai("gpt-5-mini", max_tokens_field="max_tokens", extra_body={"temperature": 0.0})
    dialect = dialect_of(options, OPENAI)
    assert (dialect.max_tokens_field, dialect.extra_body) == ("max_tokens", {"temperature": 0.0})
    assert dialect.logprobs is False
    table = tmp_path / "mine.yaml"
    table.write_text(
        "- match: [gpt-5-mini]\n  prices: {input: 1, output: 2}\n- match: [mine*]\n  logprobs: false\n"
    )
    monkeypatch.setenv("AUTOINTERP_DIALECTS", str(table))
    assert look_up("gpt-5-mini", OPENAI) == Dialect(prices=Prices(input=1.0, output=2.0))
    assert look_up("org/Mine-7B", HERE).logprobs is False
    assert look_up("gpt-4.1", OPENAI).cached_from == 1024


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- match: [a]\n  pricse: {}\n", "pricse"),
        ("- match: [a]\n  prices: {input: x, output: 1}\n", "prices.input"),
        ("- [", "can't be read"),
        ("a: b", "tuple"),
    ],
)
def test_a_faulty_table_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    table = tmp_path / "mine.yaml"
    table.write_text(text)
    monkeypatch.setenv("AUTOINTERP_DIALECTS", str(table))
    with pytest.raises(LLMStopped, match=r"mine\.yaml") as caught:
        look_up("a", HERE)
    assert said in str(caught.value)


def test_costs_by_hand() -> None:
    """1,000 prompt tokens, 600 of them cached and 100 written, 50 out."""
    usage = Usage(prompt_tokens=1_000, cached_tokens=600, written_tokens=100, completion_tokens=50)
    prices = Prices(input=2.0, cached=0.5, written=2.5, output=8.0, batch=0.5)
    assert prices.of(usage) == pytest.approx((300 * 2 + 600 * 0.5 + 100 * 2.5 + 50 * 8) / 1e6)
    assert prices.in_batch_files().of(usage) == pytest.approx(prices.of(usage) / 2)
    assert prices.in_batch_files().batch == 1.0
    assert Prices(input=2.0, output=8.0).of(usage) == pytest.approx((1_000 * 2 + 50 * 8) / 1e6)


def test_a_new_run_keeps_what_the_table_said() -> None:
    section = {"use": "openai", "model": "gpt-5-mini", "constrain": "none", "extra_body": None}
    found = written_out(section, OPENAI)
    assert found == {
        "use": "openai", "model": "gpt-5-mini", "constrain": "none", "logprobs": False,
        "max_tokens_field": "max_completion_tokens",
        "extra_body": {"reasoning_effort": "minimal", "temperature": None},
    }  # fmt: skip
    assert written_out({"use": "openai", "model": "x"}, HERE) == {"use": "openai", "model": "x"}
    # Another model's section replaces it; the same one's stays.
    llms = {"llms": {"judge": found}}
    assert merge(llms, {"llms": {"judge": {"use": "openai", "model": "x"}}})["llms"]["judge"] == {
        "use": "openai", "model": "x",
    }  # fmt: skip
    assert merge(llms, {"llms": {"judge": {"use": "openai", "model": "gpt-5-mini"}}}) == llms


# --- what an unknown server refuses ----------------------------------------------------------------------


def refuses(fields: dict[str, Json], *, code: int = 400) -> Any:
    """A server that refuses requests with one of these fields, and says so in its way."""

    def script(_number: int, body: Json) -> Behaviour:
        for name, error in fields.items():
            has = body["messages"][0]["role"] == "system" if name == "system" else name in body
            if has:
                return status(code, error)
        return ok("yes", usage={"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102})

    return script


UNSUPPORTED: dict[str, Json] = {
    "max_tokens": {
        "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
        "'max_completion_tokens' instead.",
        "type": "invalid_request_error", "param": "max_tokens", "code": "unsupported_parameter",
    },
    "temperature": {
        "message": "Unsupported value: 'temperature' does not support 0 with this model.",
        "type": "invalid_request_error", "param": "temperature", "code": "unsupported_value",
    },
    "logprobs": {"message": "You are not allowed to request logprobs from this model."},
    "structured_outputs": {"message": "Extra inputs are not permitted: structured_outputs"},
    "system": {"message": "System role not supported", "type": "BadRequestError"},
}  # fmt: skip


def asked(options: Openai, n: int, **more: Any) -> tuple[list[Reply], tuple[str, ...]]:
    async def run() -> tuple[list[Reply], tuple[str, ...]]:
        llm = options.connect()
        try:
            asking = (llm.generate(prompt("hello", "be brief"), max_tokens=5, **more) for _ in range(n))
            replies = await asyncio.gather(*asking)
            return list(replies), llm.capabilities.left_out
        finally:
            await llm.close()

    return asyncio.run(run())


def test_what_an_unknown_server_refuses_is_left_out_and_named() -> None:
    with FaultServer(refuses(UNSUPPORTED)) as server:
        options = Openai("unknown", base_url=server.url, constrain="structured_outputs")
        _, constrained = asked(options, 1, choices=["yes", "no"])
        replies, left_out = asked(options, 1, label_tokens=["yes"])
    assert constrained == ("max_tokens", "temperature", "structured_outputs", "system")
    assert left_out == ("max_tokens", "temperature", "logprobs", "system")
    last = server.requests[-1].body
    assert [turn["role"] for turn in last["messages"]] == ["user"]
    assert last["max_completion_tokens"] == 5 and "max_tokens" not in last
    assert replies[0].text == "yes" and replies[0].label_logprobs is None


def test_what_no_provider_takes_is_found_by_leaving_out_one_after_the_other() -> None:
    """OpenRouter's 404 doesn't say which; the schema stays out of it as long as log-probabilities may be meant."""
    nobody = {"message": "No endpoints found that can handle the requested parameters.", "code": 404}
    extra = {"reasoning": {"effort": "none"}, "provider": {"require_parameters": True}}
    with FaultServer(refuses({"seed": nobody, "logprobs": nobody}, code=404)) as server:
        options = Openai("unknown", base_url=server.url, extra_body=extra)
        replies, left_out = asked(options, 1, label_tokens=["yes"], seed=3)
        assert left_out == ("logprobs", "seed") and replies[0].text == "yes"
        assert server.requests[-1].body.keys() >= {"reasoning", "provider", "temperature"}
    with (
        FaultServer(lambda _n, _b: status(404, nobody)) as server,
        pytest.raises(LLMStopped, match="refuses a setting"),
    ):
        asked(Openai("unknown", base_url=server.url, extra_body=extra), 1, seed=3)
    assert len(server.requests) == 3  # with all, without seed, without reasoning


def test_a_model_that_must_think_thinks() -> None:
    must = {"message": "Reasoning is mandatory for this endpoint and cannot be disabled.", "code": 400}
    with FaultServer(refuses({"reasoning": must})) as server:
        extra = {"reasoning": {"enabled": False}, "provider": {"sort": "price"}}
        replies, left_out = asked(Openai("unknown", base_url=server.url, extra_body=extra), 1)
        assert left_out == ("reasoning",) and replies[0].text == "yes"
        assert "provider" in server.requests[-1].body


def test_of_many_at_once_it_is_learned_once() -> None:
    with FaultServer(refuses({"temperature": UNSUPPORTED["temperature"]})) as server:
        replies, left_out = asked(Openai("unknown", base_url=server.url), 30)
        assert left_out == ("temperature",) and len(replies) == 30
        assert len(server.requests) <= 60


def test_a_server_that_refuses_both_names_of_a_limit_stops_the_run() -> None:
    both = {"max_tokens": UNSUPPORTED["max_tokens"], "max_completion_tokens": {
        "message": "unsupported parameter: max_completion_tokens", "param": "max_completion_tokens"}}  # fmt: skip
    with FaultServer(refuses(both)) as server:
        with pytest.raises(LLMStopped, match="refuses a setting"):
            asked(Openai("unknown", base_url=server.url), 1)
        assert len(server.requests) <= 4


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize(
    ("extra", "options"),
    [
        ({"max_tokens": 100}, {}),
        ({"logprobs": True}, {}),
        ({"structured_outputs": {"regex": "a"}}, {"constrain": "structured_outputs"}),
    ],
)
def test_what_extra_body_sends_all_the_same_stops_the_run(
    extra: Json, options: dict[str, Any], n: int, tmp_path: Path
) -> None:
    """Nothing can be left out, and a later process is told so with its first request, too."""
    (name,) = extra
    with FaultServer(refuses({name: UNSUPPORTED[name]})) as server:
        backend = Openai("unknown", base_url=server.url, extra_body=extra, **options)
        with pytest.raises(LLMStopped, match="refuses a setting"):
            asked(backend, n)
        assert len(server.requests) <= n
    (tmp_path / "usage").mkdir()
    (tmp_path / FILE).write_bytes(orjson.dumps({str(backend.identity()): [name]}))

    async def later(backend: Openai) -> None:
        llm = backend.connect(Place(folder=tmp_path))
        try:
            await llm.generate(prompt("hello"), max_tokens=5)
        finally:
            await llm.close()

    # Another server: what was in flight when the first run stopped may reach that one still.
    with FaultServer(refuses({name: UNSUPPORTED[name]})) as server:
        with pytest.raises(LLMStopped, match="refuses a setting"):
            asyncio.run(later(dataclasses.replace(backend, base_url=server.url)))
        assert len(server.requests) == 1


def test_two_sections_of_one_llm_keep_what_each_has_learned(tmp_path: Path) -> None:
    """Each leaves out one setting; what one of them takes back stays with the other's beside it."""

    def refused(name: str) -> RefusedSetting:
        found = Server("http://x/v1", "tiny", "", "").verdict(400, UNSUPPORTED[name], {})
        assert isinstance(found, RefusedSetting)
        return found

    body: Json = {"messages": [{"role": "user", "content": "a"}], "temperature": 0.0, "logprobs": True}
    one, two = (Learned(Dialect(), tmp_path, "tiny") for _ in range(2))
    one.leave_out(refused("temperature"), body)
    two.leave_out(refused("logprobs"), body)
    assert left_out_of(tmp_path) == {"tiny": ["temperature", "logprobs"]}
    one.took({"messages": body["messages"], "temperature": 0.0})
    assert left_out_of(tmp_path) == {"tiny": ["logprobs"]}


def test_a_setting_that_is_not_named_is_looked_for_among_those_that_can_be_left_out() -> None:
    nobody = {"message": "No endpoints found that can handle the requested parameters.", "code": 404}
    with FaultServer(refuses({"seed": nobody}, code=404)) as server:
        options = Openai("unknown", base_url=server.url, extra_body={"logprobs": True})
        _, left_out = asked(options, 1, seed=3)
        assert left_out == ("seed",) and len(server.requests) == 2


def test_a_refusal_of_what_was_taken_before_is_tried_again() -> None:
    """A gateway passes requests to several servers, of which one may not know a setting."""
    stray = status(400, UNSUPPORTED["temperature"])
    with FaultServer(lambda number, _b: stray if number == 1 else None) as server:

        async def run() -> tuple[str, ...]:
            llm = Openai("tiny", base_url=server.url, first_wait_s=0.01).connect()
            try:
                for _ in range(4):
                    await llm.generate(prompt("hello"), max_tokens=5)
                return llm.capabilities.left_out
            finally:
                await llm.close()

        assert asyncio.run(run()) == ()
    assert len(server.requests) == 5 and all("temperature" in r.body for r in server.requests)


def test_a_setting_that_is_taken_after_all_is_sent_again() -> None:
    """The second of two at once is refused before the first one is answered."""
    stray = status(400, UNSUPPORTED["temperature"])
    with FaultServer(lambda number, _b: (slow(0.3, ok()), stray, ok())[min(number, 2)]) as server:

        async def run() -> tuple[str, ...]:
            llm = Openai("tiny", base_url=server.url).connect()
            try:
                await asyncio.gather(*(llm.generate(prompt("hello"), max_tokens=5) for _ in range(2)))
                await llm.generate(prompt("hello"), max_tokens=5)
                return llm.capabilities.left_out
            finally:
                await llm.close()

        assert asyncio.run(run()) == ()
    assert ["temperature" in r.body for r in server.requests] == [True, True, False, True]


def test_too_long_a_prompt_is_no_refused_setting() -> None:
    error = {
        "message": "This model's maximum context length is 2048 tokens. However, you requested 2100 tokens "
        "(2000 in the messages, 100 in max_tokens). Please reduce the length.",
        "code": 400, "type": "BadRequestError", "param": None,
    }  # fmt: skip
    with FaultServer(lambda _n, _b: status(400, error)) as server, pytest.raises(LLMBadRequest):
        asked(Openai("unknown", base_url=server.url), 1)


# --- costs -----------------------------------------------------------------------------------------------


def test_costs_are_the_servers_own_or_by_the_prices() -> None:
    counts = {
        "prompt_tokens": 1_000, "completion_tokens": 10, "total_tokens": 1_010,
        "prompt_tokens_details": {"cached_tokens": 400, "cache_write_tokens": 100},
        "completion_tokens_details": {"reasoning_tokens": 4},
    }  # fmt: skip
    prices = Prices(input=1.0, cached=0.1, written=2.0, output=10.0)
    with FaultServer(lambda _n, _b: ok("a", usage=counts)) as server:
        usage = asked(Openai("m", base_url=server.url, prices=prices), 1)[0][0].usage
        assert usage.cost == pytest.approx((500 + 40 + 200 + 100) / 1e6)
        assert (usage.cached_tokens, usage.written_tokens, usage.reasoning_tokens) == (400, 100, 4)
        assert asked(Openai("m", base_url=server.url), 1)[0][0].usage.cost is None
    with FaultServer(lambda _n, _b: ok("a", usage={**counts, "cost": 0.25})) as server:
        assert asked(Openai("m", base_url=server.url, prices=prices), 1)[0][0].usage.cost == 0.25


# --- several addresses -----------------------------------------------------------------------------------


def test_prompts_that_begin_alike_go_to_one_of_several_servers_and_all_get_some() -> None:
    async def run(urls: list[str]) -> list[Reply]:
        llm = Openai("tiny", base_url=urls).connect()
        try:
            return list(
                await asyncio.gather(
                    *(llm.generate(prompt(f"{n % 40} {'x' * 250} {n}"), max_tokens=1) for n in range(400))
                )
            )
        finally:
            await llm.close()

    with FaultServer() as one, FaultServer() as two, FaultServer() as three:
        assert len(asyncio.run(run([one.url, two.url, three.url]))) == 400
        servers = [one, two, three]
        beginnings = [{r.body["messages"][-1]["content"][:20] for r in server.requests} for server in servers]
    assert all(len(server.requests) > 60 for server in servers)
    alike = sum(len(found) for found in beginnings)
    assert alike < 80, "a beginning is seen by one server, or by few where one was busy"


def test_a_server_that_is_not_there_costs_nothing_where_others_are() -> None:
    with FaultServer() as server:
        replies, _ = asked(Openai("tiny", base_url=[refused_url(), server.url], first_wait_s=0.01), 40)
        assert len(replies) == 40 and len(server.requests) == 40


def gone_for_long() -> Behaviour:
    return status(503, headers={"retry-after": "3600"})


@pytest.mark.parametrize(
    "sick",
    [status(503), body_of("<html>bad gateway"), slow(60, ok()), gone_for_long()],
    ids=["503", "a web page", "hangs", "gone for an hour"],
)
def test_a_sick_server_loses_no_request_where_another_one_is_well(sick: Behaviour) -> None:
    """Each request fails there once at most; when it is known to be down it gets none of those that wait."""
    with FaultServer() as well, FaultServer(lambda _n, _b: sick) as other:

        async def run() -> list[Reply]:
            options = Openai(
                "tiny", base_url=[well.url, other.url], first_wait_s=0.01, timeout_s=1.0, max_tries=3
            )
            llm = options.connect()
            try:
                asking = (llm.generate(prompt(f"{n}"), max_tokens=5) for n in range(200))
                return list(await asyncio.gather(*asking))
            finally:
                await llm.close()

        assert len(asyncio.run(run())) == 200
    assert 3 <= len(other.requests) <= 40 and len(well.requests) == 200


def test_one_that_is_well_again_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a rest, by one request first."""
    monkeypatch.setattr(endpoints, "DOWN_S", 0.3)
    is_sick = True
    with FaultServer() as well, FaultServer(lambda _n, _b: status(503) if is_sick else None) as other:

        async def run() -> tuple[int, int, int]:
            llm = Openai("tiny", base_url=[well.url, other.url], first_wait_s=0.01).connect()

            async def ask(n: int) -> None:
                await asyncio.gather(*(llm.generate(prompt(f"{n}"), max_tokens=5) for n in range(n)))

            nonlocal is_sick
            try:
                await ask(40)
                first = len(other.requests)
                await asyncio.sleep(0.35)
                await ask(40)
                second = len(other.requests)
                is_sick = False
                await asyncio.sleep(0.35)
                await ask(40)
                await ask(40)
                return first, second, len(other.requests)
            finally:
                await llm.close()

        first, second, last = asyncio.run(run())
    assert second == first + 1
    assert last > second + 10


def test_one_that_refuses_is_asked_less_and_the_other_more() -> None:
    with (
        FaultServer(lambda n, _b: rate_limited(retry_after="0.05") if n % 2 else None) as strict,
        FaultServer() as fast,
    ):
        replies, _ = asked(
            Openai("tiny", base_url=[strict.url, fast.url], first_wait_s=0.01, max_tries=12), 200
        )
        assert len(replies) == 200 and fast.requests


def test_addresses_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1, http://localhost:2/v1")
    assert Openai("m").addresses() == ["http://localhost:1/v1", "http://localhost:2/v1"]
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1, nowhere")
    with pytest.raises(LLMStopped, match="'nowhere' is no address"):
        Openai("m").connect()
