"""From activations to firings: selection, tiles, masking, memory that runs out; and what is not loaded."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from autointerp import pipeline
from autointerp.activations.collect import Attached, Collector
from autointerp.activations.firing_store import FiringStore, firing_shards
from autointerp.activations.firings import Firings
from autointerp.activations.looked_at import Masking
from autointerp.activations.rows import row_dtype
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.selectors import largest
from autointerp.dictionaries.spec import DictionarySpec, Gate, Weights
from autointerp.errors import DiskFull, ModelError
from autointerp.run import Run
from autointerp.stages import cache, collecting
from autointerp.stages.frozen import Frozen, read_frozen, tuned_batch
from autointerp.subject.model import Subject
from autointerp.subject.model_files import find_model
from autointerp.types import Site
from tiny import Tiny


@settings(max_examples=200)
@given(st.integers(1, 5), st.integers(1, 700), st.integers(1, 9), st.integers(0, 2**32), st.booleans())
def test_the_largest_are_torch_topks(n: int, width: int, k: int, seed: int, ties: bool) -> None:
    k = min(k, width)
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    x = (x * 2).round() if ties else x
    value, place = largest(x, k)
    assert torch.equal(value.sort(1, descending=True).values, torch.topk(x, k, dim=1).values)
    assert torch.equal(x.gather(1, place), value)
    assert all(len(set(row)) == k for row in place.tolist())


@pytest.mark.parametrize("width", [16_384, 16_390, 131_073])
def test_the_largest_of_wide_rows(width: int) -> None:
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    value, place = largest(x, 32)
    expected = torch.topk(x, 32, dim=1)
    assert torch.equal(value.sort(1, descending=True).values, expected.values)
    assert torch.equal(place.sort(1).values, expected.indices.sort(1).values)


def spec_of(selector: str, k: int | None, width: int, d_in: int) -> DictionarySpec:
    return DictionarySpec(
        format="saelens", path=Path(), identity="", d_in=d_in, width=width, selector=selector, k=k,  # type: ignore[arg-type]
        hook=None, site=Site("resid_post", 1), model=None, corpus=None, context_length=None, prepend_bos=True,
    )  # fmt: skip


def weights_of(width: int, d_in: int, seed: int = 0) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    w_enc = torch.randn(d_in, width, generator=generator)
    return Weights(
        w_enc_DF=w_enc, b_enc_F=torch.randn(width, generator=generator), b_pre_D=torch.zeros(d_in),
        w_dec_FO=w_enc.T.contiguous(), b_dec_O=torch.zeros(d_in),
        threshold_F=torch.rand(width, generator=generator),
        gate=Gate(*torch.randn(3, width, generator=generator)),
    )  # fmt: skip


SELECTORS = [("topk", 3), ("topk", 40), ("relu", None), ("jumprelu", None), ("gated", None)]
SELECTORS += [("abstopk", 3), ("abstopk", 40), ("groupmax", 4), ("groupmax", 8)]


def dense_codes(spec: DictionarySpec, weights: Weights, x: Tensor) -> Tensor:
    """[N, F] with signs, in float64, straight from the definitions."""
    product = x.double() @ weights.w_enc_DF.double()
    pre = product + weights.b_enc_F.double()
    score = pre * weights.w_dec_FO.double().norm(dim=1) if spec.decoder_norm_gate else pre
    value = score if spec.value_is_score else pre
    active = score > 0
    if spec.selector == "jumprelu":
        assert weights.threshold_F is not None
        active &= score > weights.threshold_F.double()
    elif spec.selector == "gated":
        assert weights.gate is not None
        value = product * weights.gate.scale_F.double() + weights.gate.magnitude_bias_F.double()
        active = (product + weights.gate.bias_F.double() > 0) & (value > 0)
    elif spec.selector == "topk":
        active &= torch.zeros_like(active).scatter(1, score.topk(spec.k or 0, dim=1).indices, True)
    elif spec.selector == "abstopk":
        active = torch.zeros_like(active).scatter(1, score.abs().topk(spec.k or 0, dim=1).indices, True)
    elif spec.selector == "groupmax":
        grouped = score.view(len(x), spec.k or 1, -1)
        active &= (grouped == grouped.amax(2, keepdim=True)).view_as(active)
    return torch.where(active, value, 0)


@settings(max_examples=200)
@given(
    selector=st.sampled_from(SELECTORS),
    width=st.sampled_from([40, 48, 64, 88]),
    n=st.integers(1, 30),
    elements=st.integers(1, 4_000),
    norms=st.sampled_from(["no", "score", "pre"]),
)
def test_codes_dont_depend_on_tiles(
    selector: tuple[str, int | None], width: int, n: int, elements: int, norms: str
) -> None:
    """Tiles of a few features, a running top-k over them: the codes of one dense product in float64; of a
    signed dictionary 2i is the positive pole of feature i and 2i + 1 the negative one."""
    spec, weights = spec_of(*selector, width, 7), weights_of(width, 7)
    if selector[0] != "gated" and norms != "no":
        spec = dataclasses.replace(spec, decoder_norm_gate=True, value_is_score=norms == "score")
    x = torch.randn(n, 7, generator=torch.Generator().manual_seed(1))
    encoder = Encoder(spec, weights, max_elements=elements)
    codes, expected = encoder.encode(x), dense_codes(spec, weights, x)
    if spec.signed:
        expected = torch.stack([expected.clamp_min(0), (-expected).clamp_min(0)], dim=2).flatten(1)
    token, feature = expected.nonzero(as_tuple=True)
    assert torch.equal(codes.token_M, token) and torch.equal(codes.feature_M, feature)
    assert torch.allclose(codes.value_M.double(), expected[token, feature], atol=1e-5)
    sparse = dense_codes(spec, weights, x)
    if spec.decoder_norm_gate and spec.value_is_score:
        sparse = sparse / weights.w_dec_FO.double().norm(dim=1)
    decoded = sparse @ weights.w_dec_FO.double() + weights.b_dec_O.double()
    assert torch.allclose(encoder.decode(codes, x).double(), decoded, atol=1e-4)


def test_a_transcoder_lets_its_input_past() -> None:
    """x = (1, 2), W_enc = 1, W_dec doubles into three numbers, the skip adds x to the first two."""
    spec = dataclasses.replace(spec_of("relu", None, 2, 2), is_transcoder=True)
    w_dec, skip = torch.tensor([[2.0, 0, 0], [0, 0, 2]]), torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    weights = Weights(torch.eye(2), torch.zeros(2), torch.zeros(2), w_dec, torch.ones(3), w_skip_DO=skip)
    encoder, x = Encoder(spec, weights), torch.tensor([[1.0, 2.0]])
    assert encoder.decode(encoder.encode(x), x).tolist() == [[1 + 2 + 1, 1 + 2, 1 + 4]]


def test_centred_input_is_put_back() -> None:
    """The mean over D goes before encoding and comes back behind decoding: (1, 3) is (-1, 1) + 2."""
    spec = dataclasses.replace(spec_of("relu", None, 2, 2), transform=("centre",))
    weights = Weights(torch.eye(2), torch.zeros(2), torch.zeros(2), torch.eye(2), torch.zeros(2))
    encoder, x = Encoder(spec, weights), torch.tensor([[1.0, 3.0]])
    codes = encoder.encode(x)
    assert codes.feature_M.tolist() == [1] and codes.value_M.tolist() == [1.0]
    assert encoder.decode(codes, x).tolist() == [[2.0, 3.0]]


class Recorded:
    """A subject whose activations are given: those of token id i are row i of a table."""

    def __init__(self, table: Tensor, most: int | None = None) -> None:
        self.table, self.most = table, most
        self.device = torch.device("cpu")
        self.shapes: list[tuple[int, ...]] = []

    def capture(self, ids: Tensor, sites: Sequence[Site], rows: object) -> dict[Site, Tensor]:
        self.shapes.append(tuple(ids.shape))
        if self.most is not None and ids.numel() > self.most:
            raise torch.OutOfMemoryError("made up")
        return dict.fromkeys(sites, self.table[ids])


@settings(max_examples=80)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.sampled_from([0, 1]),
    st.sampled_from([None, 4.0]),
    st.integers(1, 40),
)
def test_a_shard_is_what_a_loop_over_tokens_finds(
    lengths: list[int], first: int, sink_ratio: float | None, batch_tokens: int
) -> None:
    """Rows of unequal length, batched by length: each token alone gives the same firings and sinks."""
    length, width = 9, 50
    rows = np.zeros(len(lengths), row_dtype(length))
    rows["length"] = lengths
    rng = np.random.default_rng(0)
    rows["tokens"] = rng.integers(0, 20, rows["tokens"].shape)
    table = torch.randn(20, 7, generator=torch.Generator().manual_seed(2))
    table[:3] *= 30  # sinks
    encoder = Encoder(spec_of("topk", 3, width, 7), weights_of(width, 7))
    subject = Recorded(table)
    collector = Collector(
        subject,
        {"d": Attached((Site("resid_post", 1),), encoder, (Site("resid_post", 1),))},
        Masking(first, sink_ratio),
        batch_tokens,
    )
    kept = collector.shard(rows, 0, {"d": 3.0})["d"].kept()
    expected: list[tuple[int, int, float]] = []
    sinks: list[int] = []
    n_looked_at = 0
    for row, n in enumerate(lengths):
        for position in range(first, n):
            x = table[int(rows["tokens"][row, position])][None]
            if sink_ratio is not None and float(x.norm()) > sink_ratio * 3.0:
                sinks.append(row * length + position)
                continue
            n_looked_at += 1
            codes = encoder.encode(x)
            columns = zip(codes.feature_M.tolist(), codes.value_M.tolist(), strict=True)
            expected += [(feature, row * length + position, value) for feature, value in columns]
    found = kept.firings
    feature = found.features.repeat(np.diff(found.offsets)).tolist()
    expected.sort()
    assert list(zip(feature, found.tokens.tolist(), strict=True)) == [e[:2] for e in expected]
    assert np.allclose(found.values, [e[2] for e in expected], atol=1e-5)
    assert kept.sinks.tolist() == sinks
    assert kept.n_tokens == n_looked_at
    assert all(b == 1 or b * t <= batch_tokens for b, t in subject.shapes)


@settings(max_examples=40)
@given(st.sampled_from(["relu", "jumprelu"]), st.sets(st.integers(0, 89), min_size=1), st.integers(1, 20))
def test_some_columns_are_those_of_all(selector: str, features: set[int], n: int) -> None:
    encoder = Encoder(spec_of(selector, None, 90, 7), weights_of(90, 7))
    x = torch.randn(n, 7, generator=torch.Generator().manual_seed(1))
    whole, some = encoder.encode(x), encoder.sliced(sorted(features)).encode(x)
    wanted = torch.isin(whole.feature_M, torch.tensor(sorted(features)))
    assert torch.equal(some.token_M, whole.token_M[wanted])
    assert torch.equal(some.feature_M, whole.feature_M[wanted])
    assert torch.equal(some.value_M, whole.value_M[wanted])


def test_activations_that_are_not_finite_stop_the_shard() -> None:
    rows = np.zeros(4, row_dtype(6))
    rows["length"] = 6
    rows["tokens"] = 1
    table = torch.ones(3, 7)
    table[1, 2] = torch.nan
    encoder = Encoder(spec_of("topk", 3, 50, 7), weights_of(50, 7))
    collector = Collector(
        Recorded(table),
        {"d": Attached((Site("resid_post", 1),), encoder, (Site("resid_post", 1),))},
        Masking(1, None),
        100,
    )
    with pytest.raises(ModelError, match="NaN or infinite on 20 of 20 tokens"):
        collector.shard(rows, 0, {"d": 1.0})["d"].kept()


# --- the stage -----------------------------------------------------------------------------------------


def cached_here(recipe: dict[str, object], out: Path) -> Run:
    """The cache stage in this process."""
    from autointerp.progress import Silent, Stop

    resolved, run = pipeline.prepare(recipe, out, until="cache")
    run.save()
    cache.run_cache(run, resolved, Silent(), Stop())
    return run


def test_out_of_memory_halves_the_batch_and_redoes_the_shard(
    made: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = made.recipe(resources={"batch_tokens": 1_024})
    plain = cached_here(made.recipe(resources={"batch_tokens": 256}), tmp_path / "plain")
    capture = Subject.capture
    n_calls = 0

    def tight(self: Subject, ids: Tensor, sites: list[Site]) -> dict[Site, Tensor]:
        nonlocal n_calls
        n_calls += 1
        if n_calls > 40 and ids.numel() > 300:  # behind the check, in the middle of a shard
            raise torch.OutOfMemoryError("made up")
        return capture(self, ids, sites)

    monkeypatch.setattr(Subject, "capture", tight)
    run = cached_here(recipe, tmp_path / "tight")
    frozen = read_frozen(run)
    assert frozen is not None and frozen.batch_tokens == 256 and frozen.halved == [1_024, 512]
    last = sorted((tmp_path / "tight" / "cache" / "layers.1").glob("*.safetensors"))[-1]
    assert last.read_bytes() == (tmp_path / "plain" / "cache" / "layers.1" / last.name).read_bytes()
    assert run.is_cached("layers.1") and plain.is_cached("layers.1")


def test_a_row_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not even one row of 64 tokens fits the memory of the cuda"):
        Frozen(64, "float32", "cuda", "2").after_out_of_memory(64)


def test_a_full_disk_in_the_writing_thread_stops_the_stage(
    made: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost: started again with room, the shards are those of an undisturbed run."""
    undisturbed = cached_here(made.recipe(), tmp_path / "undisturbed")
    save, n_saved = collecting.save_shard, 0

    def full(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, object]:
        nonlocal n_saved
        assert threading.current_thread().name.startswith("autointerp-write")
        n_saved += 1
        if n_saved == 3:
            raise DiskFull("no room left")
        return save(path, arrays)

    monkeypatch.setattr(collecting, "save_shard", full)
    with pytest.raises(DiskFull):
        cached_here(made.recipe(), tmp_path / "run")
    monkeypatch.undo()
    assert not Run.open(tmp_path / "run").is_cached("layers.1")
    run = cached_here(made.recipe(), tmp_path / "run")
    assert list(run.cache("layers.1").records()) == list(undisturbed.cache("layers.1").records())


@pytest.mark.parametrize("best", [4_096, 32_768])
def test_the_batch_grows_until_it_gets_no_faster(best: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that says: twice the batch takes 1.5 times as long, up to the best, then 2.5 times."""
    now = 0.0
    monkeypatch.setattr("autointerp.stages.frozen.time.perf_counter", lambda: now)

    def step(n: int) -> None:
        nonlocal now
        doublings = int(np.log2(n / 4_096))
        of_best = int(np.log2(best / 4_096))
        now += 1.5 ** min(doublings, of_best) * 2.5 ** max(0, doublings - of_best)

    assert tuned_batch(step, largest=2**18) == best


def test_the_batch_stays_where_a_larger_one_has_no_room() -> None:
    def step(n: int) -> None:
        if n > 8_192:
            raise torch.OutOfMemoryError("made up")

    assert tuned_batch(step, largest=2**18) in (4_096, 8_192)


def test_elementwise_dictionaries_compute_only_what_is_asked_for(made: Tiny, tmp_path: Path) -> None:
    """Three of 208 features and their neighbours, then two more: two passes; each feature's firings are those
    of a cache of all, to the bit."""
    sae = tmp_path / "relu"
    shutil.copytree(made.sae, sae)
    config = json.loads((sae / "cfg.json").read_text())
    del config["k"]
    (sae / "cfg.json").write_text(json.dumps(config | {"architecture": "standard"}))

    def cached(out: str, *ids: str) -> Run:
        dictionaries = {"auto": {"path": str(sae)}}
        return cached_here(
            made.recipe(dictionaries=dictionaries, features={"ids": list(ids)}), tmp_path / out
        )

    def read(run: Run) -> Firings:
        return FiringStore(list(firing_shards(run.cache("layers.1"))), 64).read(0, 208)

    whole = read(cached("whole", "0-207"))
    three = cached("some", "0-2")
    first = three.needed("layers.1").tolist()
    assert {0, 1, 2} < set(first) and len(first) <= 3 * 17
    assert read(three).features.tolist() == first
    five = cached("some", "0-2", "150", "207")
    both = five.needed("layers.1").tolist()
    found = read(five)
    assert found.features.tolist() == sorted({*first, *both})
    for feature in both:
        at, there = found.at(feature), whole.at(feature)
        assert at is not None and there is not None
        mine = slice(int(found.offsets[at]), int(found.offsets[at + 1]))
        expected = slice(int(whole.offsets[there]), int(whole.offsets[there + 1]))
        assert np.array_equal(found.tokens[mine], whole.tokens[expected])
        assert np.array_equal(found.values[mine], whole.values[expected])
    folder = tmp_path / "some" / "cache" / "layers.1"
    columns = [np.load(path).tolist() for path in sorted(folder.glob("columns.*.npy"))]
    assert columns == [first, sorted({*both} - {*first})] and {150, 207} <= {*columns[1]}
    n_files = len(list(folder.glob("*.safetensors")))
    assert n_files == 2 * len(five.row_units())
    cached("some", "1", "150")  # all there
    assert len(list(folder.glob("*.safetensors"))) == n_files


# --- what is not loaded --------------------------------------------------------------------------------


def _config(family: str) -> object:
    import transformers

    small = {"vocab_size": 60, "num_hidden_layers": 4, "hidden_size": 16, "num_attention_heads": 2}
    rest = {"intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8}
    match family:
        case "gpt2":
            return transformers.GPT2Config(vocab_size=60, n_layer=4, n_embd=16, n_head=2)
        case "gpt_neox":
            return transformers.GPTNeoXConfig(**small, intermediate_size=24)
        case "llama":
            return transformers.LlamaConfig(**small, **rest)
        case "gemma2":
            return transformers.Gemma2Config(**small, **rest)
        case _:
            return transformers.Qwen2Config(**small, **rest)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma2", "qwen2"])
def test_layers_behind_the_last_hook_are_not_loaded(family: str, tmp_path: Path) -> None:
    """The same activations from half the model."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(_config(family)).save_pretrained(tmp_path)
    files = find_model(str(tmp_path), None)
    whole, half = Subject.load(files), Subject.load(files, n_layers=2)
    ids = torch.arange(20).reshape(2, 10)
    sites = [Site("resid_post", 1), Site("mlp_out", 0)]
    expected, found = whole.capture(ids, sites), half.capture(ids, sites)
    assert all(torch.equal(expected[site], found[site]) for site in sites)
    n_whole, n_half = (sum(p.numel() for p in s._model.parameters()) for s in (whole, half))  # pyright: ignore[reportPrivateUsage]
    assert n_half < n_whole
    with pytest.raises(IndexError):
        half._layers[2]  # pyright: ignore[reportPrivateUsage]


def test_the_manifest_is_kept(made: Tiny, tmp_path: Path) -> None:
    run = cached_here(made.recipe(), tmp_path / "run")
    frozen = read_frozen(run)
    assert frozen == Frozen(2_048, "float32", "cpu", torch.__version__)
    assert dataclasses.asdict(frozen)["halved"] == []


def test_what_a_transcoder_of_a_centred_model_is_to_give() -> None:
    """[1, 3, 8] has the mean 4."""
    site, out = Site("mlp_in", 1), Site("mlp_out", 1)
    encoder = Encoder(spec_of("topk", 3, 50, 7), weights_of(50, 7))
    x_of = {out: torch.tensor([[1.0, 3.0, 8.0], [2.0, 2.0, 2.0]], dtype=torch.bfloat16)}
    plain, less = (Attached((site,), encoder, (out,), target_is_centred=is_so) for is_so in (False, True))
    assert plain.wanted(x_of) is x_of[out]
    wanted = less.wanted(x_of)
    assert wanted is not None and wanted.tolist() == [[-3.0, -1.0, 4.0], [0.0, 0.0, 0.0]]
    assert Attached((site,), encoder, None, target_is_centred=True).wanted(x_of) is None
