"""Dictionaries that store no threshold, through the line: calibrated once, the same in every process."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from dense_codes import save_json, save_torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from autointerp import draw, pipeline
from autointerp.activations.firing_store import FiringStore, firing_shards
from autointerp.activations.rows import RowStore
from autointerp.cli import app
from autointerp.errors import RecipeChanged, RunError
from autointerp.merge import merge
from autointerp.portion import Portion
from autointerp.progress import Silent, Stop
from autointerp.repair import repair
from autointerp.run import CALIBRATION, Run
from autointerp.types import Json
from autointerp.verify import verify
from here import SHARDS, device_here, records
from tiny import CONTEXT, D_MODEL, WIDTH, Tiny

K, BATCH = 24, 512
FEATURES: Json = {"n": 10}
CACHE: Json = SHARDS | {"calibration_tokens": 3_000}


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Generator[None]:
    with device_here():
        yield


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dictionary as BatchTopK's trainer leaves it: no threshold."""
    folder = tmp_path_factory.mktemp("sae")
    config = {
        "act_size": D_MODEL, "dict_size": WIDTH, "sae_type": "batchtopk", "top_k": K, "batch_size": BATCH,
        "hook_point": "blocks.1.hook_resid_post", "seq_len": CONTEXT,
    }  # fmt: skip
    save_json(folder / "config.json", config)
    basis, _ = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(1)))
    rows = torch.cat([basis, -basis]).contiguous()
    bias = {"b_enc": torch.zeros(WIDTH), "b_dec": torch.zeros(D_MODEL)}
    save_torch(folder / "sae.pt", {"W_enc": rows.T.contiguous(), "W_dec": rows} | bias)
    return folder


def recipe(made: Tiny, sae: Path, **sections: Any) -> Json:
    given: Json = {"cache": CACHE, "features": FEATURES, "dictionaries": {"sae": {"path": str(sae)}}}
    return made.recipe(**(given | sections))


@pytest.fixture(scope="module")
def whole(made: Tiny, sae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    pipeline.explain(recipe(made, sae), out=out)
    return out


def thresholds(folder: Path) -> dict[str, bytes]:
    found = folder.glob(f"cache/sae/{CALIBRATION}.*")
    return {path.name: path.read_bytes() for path in found}


def test_the_threshold_is_that_of_a_dense_reference_on_the_rows_drawn(made: Tiny, whole: Path) -> None:
    """The model by hand on the rows with the smallest hashes; every score sorted; and codes are what is above."""
    run = Run.open(whole)
    store = RowStore.of(run.rows(), bos=True)
    hashes = draw.mix(draw.key(0, "calibration"), draw.pair(store.document, store.position))
    model = AutoModelForCausalLM.from_pretrained(made.model)
    seen: list[torch.Tensor] = []
    model.get_submodule("model.layers.1").register_forward_hook(lambda _, __, out: seen.append(out[0]))
    n_tokens = 0
    drawn = np.argsort(hashes)
    with torch.inference_mode():
        for row in drawn.tolist():
            n = int(store.length[row])
            model(torch.from_numpy(store.tokens(np.array([row]), np.array([0]), n).astype(np.int64)))
            seen[-1] = seen[-1][1:]  # position 0 is masked
            n_tokens += n - 1
            if n_tokens >= 3_000:
                break
    assert 10 < len(seen) < len(drawn) / 2, "some rows, and not all"
    x = torch.cat(seen)
    assert (x.norm(dim=1) < 10 * x.norm(dim=1).median()).all(), "no sinks in this model"
    basis, _ = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(1)))
    score = (x.double() @ torch.cat([basis, -basis]).double().T).numpy()
    n_batches = len(score) // BATCH
    assert n_batches == 5
    smallest = [np.sort(score[at * BATCH : (at + 1) * BATCH].ravel())[-K * BATCH] for at in range(n_batches)]
    record = run.cache("sae").read(CALIBRATION)[CALIBRATION]
    assert record["lowest"] == record["highest"] == pytest.approx(np.mean(smallest), rel=1e-4)
    assert (record["rule"], record["n_tokens"], record["batch_tokens"]) == ("batch_topk", 5 * BATCH, BATCH)
    check = run.cache("sae").read("check")["check"]
    assert check["l0"] == pytest.approx(K, rel=0.05) and check["fvu"] < 0.5
    counts = FiringStore(list(firing_shards(run.cache("sae"))), CONTEXT).counts(WIDTH)
    assert counts[[f.index for f in run.asked("sae")]].all()


def test_the_manifest_and_the_journal_tell_of_it(whole: Path) -> None:
    run = Run.open(whole)
    record = run.cache("sae").read(CALIBRATION)[CALIBRATION]
    manifest = orjson.loads((whole / "cache" / "sae" / "manifest.json").read_bytes())
    assert manifest[CALIBRATION] == record
    assert {"rule", "k", "n_tokens", "batch_tokens", "lowest", "highest", "checksum"} <= record.keys()
    assert not verify(run).faults


@pytest.fixture(scope="module")
def two(made: Tiny, sae: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Portions that pass other batches through the model."""
    out = tmp_path_factory.mktemp("two")
    folders = [out / Portion(index, 2).folder for index in range(2)]
    for index, folder in enumerate(folders):
        of_one = recipe(made, sae, resources={"shard": f"{index}/2", "batch_tokens": 2_048 + 512 * index})
        pipeline.explain(of_one, out=folder, until="cache")
    return folders


def test_portions_find_the_same_and_merge_to_one_run(two: list[Path], whole: Path, tmp_path: Path) -> None:
    for folder in two:
        assert thresholds(folder) == thresholds(whole) and len(thresholds(folder)) == 2
        assert not verify(Run.open(folder)).faults
    merge(two, tmp_path / "run")
    assert Run.open(tmp_path / "run").is_cached_whole()
    assert thresholds(tmp_path / "run") == thresholds(whole)
    assert Run.open(tmp_path / "run").cache("sae").digest == Run.open(whole).cache("sae").digest


def test_portions_with_other_thresholds_are_not_merged(two: list[Path], tmp_path: Path) -> None:
    folders = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in two]
    (part,) = folders[1].glob(f"cache/sae/{CALIBRATION}.*.jsonl")
    part.write_bytes(part.read_bytes().replace(b'"lowest":', b'"lowest":1'))
    with pytest.raises(RunError, match=r"different records of 'calibration'.*differ in their last bits"):
        merge(folders, tmp_path / "run")


def test_what_is_there_is_read_again_and_not_found_anew(
    made: Tiny, sae: Path, whole: Path, tmp_path: Path
) -> None:
    """A shard made again on resume, and one of a top-up, have the threshold that lies there, whatever it is."""
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    before = thresholds(out)
    shard = sorted(out.glob("cache/sae/0*.safetensors"))[3]
    content = shard.read_bytes()
    shard.unlink()
    shard.with_suffix(".jsonl").unlink()
    pipeline.run_line(Run.open(out))
    assert thresholds(out) == before and shard.read_bytes() == content
    more = recipe(made, sae, cache=CACHE | {"n_tokens": 10_000, "top_up": 4_000, "top_up_below": 10_000})
    run = pipeline.explain(more, out=tmp_path / "more", until="cache")
    assert not list(run.path.glob(f"top-up/cache/sae/{CALIBRATION}.*")) and run.top_up_units()
    lowest = run.cache("sae").read(CALIBRATION)[CALIBRATION]["lowest"]
    values = [load_file(path)["values"] for path in run.path.glob("top-up/cache/sae/*.safetensors")]
    assert sum(map(len, values)) > 1_000 and lowest > 0.1
    assert min(float(one.min()) for one in values if len(one)) > lowest


def test_a_spoiled_file_is_told_and_repaired_to_the_same_bytes(
    made: Tiny, sae: Path, whole: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    (path,) = out.glob(f"cache/sae/{CALIBRATION}.*.npy")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for gone in sorted(out.glob("cache/sae/0*"))[:2]:
        gone.unlink()
    with pytest.raises(RunError, match=r"calibration.*not what was written.*cache verify --repair"):
        pipeline.run_line(Run.open(out))
    repair(Run.open(out), verify(Run.open(out)), Silent(), Stop())
    assert path.read_bytes() == content
    assert records(out) == records(whole)


def test_other_tokens_to_calibrate_on_are_another_cache(made: Tiny, sae: Path, whole: Path) -> None:
    other = recipe(made, sae, cache=CACHE | {"calibration_tokens": 2_000})
    with pytest.raises(RecipeChanged, match=r"cache\.calibration_tokens: was 3000, is now 2000"):
        pipeline.explain(other, out=whole)


def test_nobody_else_depends_on_it(made: Tiny, tmp_path: Path) -> None:
    """A run of a dictionary with thresholds has the digests that it had."""
    run = pipeline.explain(made.recipe(cache=CACHE, features=FEATURES), out=tmp_path / "a", until="cache")
    same = pipeline.explain(made.recipe(cache=SHARDS, features=FEATURES), out=tmp_path / "b", until="cache")
    assert run.cache("layers.1").digest == same.cache("layers.1").digest
    assert not list(run.path.glob(f"cache/*/{CALIBRATION}.*"))


def test_random_tokens_meet_the_same_threshold(made: Tiny, sae: Path, tmp_path: Path) -> None:
    """About k a token there too, not half of the dictionary."""
    asked = recipe(made, sae, cache=CACHE | {"random_tokens": 2_000}, features={"first": WIDTH})
    run = pipeline.explain(asked, out=tmp_path / "run", until="cache")
    counts = next(run.path.glob("cache/sae/random-*.npy"))
    assert np.load(counts)["n_fired"].sum() / 2_000 == pytest.approx(K, rel=0.3)


def test_sae_check_calibrates_on_its_own_tokens_and_says_so(made: Tiny, sae: Path) -> None:
    words = ["sae", "check", str(sae), "--model", str(made.model), "--corpus", str(made.corpus)]
    done = CliRunner().invoke(app, [*words, "--n-tokens", "2000"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "It stores no threshold. It was calibrated on these 2," in text and "batch_topk" in text
    as_read = text.split("as read")[1].split("│")
    assert float(as_read[1]) == pytest.approx(K, rel=0.1)
    inspected = CliRunner().invoke(app, ["sae", "inspect", str(sae)])
    assert "found on the run's own tokens (batch_topk, 24 a token), then frozen" in inspected.output
