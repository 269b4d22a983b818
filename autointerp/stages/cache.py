"""Cache: documents -> token rows, once; rows -> what fires where, a shard at a time.

Runs in a child process (`device.py`), so that the GPU is free again when it ends.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import orjson
import torch
from numpy.typing import NDArray

from autointerp.activations.collect import Attached, Check, Collector, Kept, Masking
from autointerp.activations.rows import Rows, RowShard, make_rows, row_shards, save_rows
from autointerp.activations.shards import save_firings
from autointerp.dictionaries.encode import Encoder
from autointerp.dictionaries.locate import reader_of
from autointerp.errors import CheckpointError, CorpusError, ModelError, RecipeError
from autointerp.journal import Journal, Part, write_atomically
from autointerp.progress import Progress, Stop
from autointerp.resolve import Resolved
from autointerp.run import ALL_ROWS, Run
from autointerp.stages.directions import run_directions
from autointerp.subject.corpus import documents, require_documents
from autointerp.subject.model import Dtype, Subject
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import Json

_CHECK = "check"
_DOCUMENTS_AT_ONCE: Final = 256


def run_cache(run: Run, resolved: Resolved, progress: Progress, stop: Stop) -> None:
    """Makes what is missing. Raises InputErrors, DiskFull, Interrupted."""
    device = _device(run.recipe.resources.device)
    if not run.has_activations():
        _cache_activations(run, resolved, device, progress, stop)
    run_directions(run, resolved, device, progress, stop)


def _cache_activations(run: Run, resolved: Resolved, device: str, progress: Progress, stop: Stop) -> None:
    names = list(run.recipe.dictionaries)
    frozen = _frozen(run, names)
    progress.note(f"loading {run.recipe.model.path} ...")
    subject = Subject.load(
        resolved.model,
        dtype=frozen.dtype if frozen else run.recipe.model.dtype,
        device=device,
        device_map=run.recipe.resources.device_map,
    )
    if not run.vocabulary.is_file():
        run.vocabulary.parent.mkdir(parents=True, exist_ok=True)
        Vocabulary.of(subject.tokenizer).save(run.vocabulary)
    if not run.has_all_rows():
        _make_rows(run, subject.tokenizer, progress, stop)
    missing = [name for name in names if not run.is_cached(name)]
    if not missing:
        return
    frozen = frozen or _Frozen(
        batch_tokens=run.recipe.resources.batch_tokens or (2_048 if subject.device.type == "cpu" else 65_536),
        dtype=cast(Dtype, str(subject.dtype).removeprefix("torch.")),
        device=subject.device.type,
        torch=torch.__version__,
    )
    device = str(subject.device)
    attached = {
        name: Attached(found.site, Encoder(found.spec, reader_of(found.spec).load(found.spec, device)))
        for name, found in resolved.dictionaries.items()
        if name in missing
    }
    masking = Masking(run.first_position, run.recipe.cache.sink_ratio)
    collector = Collector(subject, attached, masking, frozen.batch_tokens)
    shards = list(row_shards(run.rows()))
    checks = _checks(run, collector, missing, shards, progress)
    for name in missing:
        write_atomically(_manifest(run, name), orjson.dumps(frozen))
    _collect(run, collector, checks, shards, progress, stop)


@dataclasses.dataclass(frozen=True, slots=True)
class _Frozen:
    """What changes the last bits of activations, fixed with a run's first shard: a run that goes on on
    another machine must not mix two precisions under one digest."""

    batch_tokens: int
    dtype: Dtype
    device: str
    torch: str


def _manifest(run: Run, name: str) -> Path:
    return run.cache(name).folder / "manifest.json"


def _frozen(run: Run, names: list[str]) -> _Frozen | None:
    """Of the first dictionary that has any; a dictionary added later is cached alike."""
    for name in names:
        if (path := _manifest(run, name)).is_file():
            return _Frozen(**orjson.loads(path.read_bytes()))
    return None


def _device(name: str) -> str:
    """`auto` -> the GPU if there is one. Raises RecipeError for a device this machine doesn't have."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise RecipeError(f"resources.device is '{name}', which can't be used here: {reason}") from error
    return name


# --- rows ----------------------------------------------------------------------------------------------


def _make_rows(run: Run, tokenizer: Any, progress: Progress, stop: Stop) -> None:
    """Rows are made from the first document on; shards that are there already are passed over."""
    recipe, journal = run.recipe, run.rows()
    assert recipe.corpus is not None and recipe.cache.context_length is not None
    bos = _bos(tokenizer) if recipe.cache.prepend_bos else None
    progress.begin("read corpus", recipe.cache.n_tokens, "tokens")
    totals = {"n_rows": 0, "n_tokens": 0}
    used: set[int] = set()  # a few documents are enough to know that there is more than one

    def on_shard(first_row: int, rows: Rows) -> None:
        stop.check()
        n_tokens = int(rows["length"].sum()) - (bos is not None) * len(rows)
        used.update(np.unique(rows["document"])[:2].tolist())
        totals["n_rows"] += len(rows)
        totals["n_tokens"] += n_tokens
        unit = f"{first_row:09d}"
        if unit not in journal.read(unit):
            with Part(journal, unit) as part:
                save_rows(part.open().with_suffix(".npy"), rows)
                record = {"first_row": first_row, "n_rows": len(rows), "n_tokens": n_tokens}
                part.append(unit, record | {"checksum": _checksum(rows)})
        progress.advance(n_tokens)

    make_rows(
        _tokenised(documents(recipe.corpus), tokenizer, stop),
        context_length=recipe.cache.context_length,
        bos=bos,
        rows_per_shard=max(1, recipe.cache.shard_tokens // recipe.cache.context_length),
        n_tokens=recipe.cache.n_tokens,
        on_shard=on_shard,
    )
    require_documents(len(used), recipe.corpus)
    if not totals["n_rows"]:
        raise CorpusError(f"{recipe.corpus.path}: no document holds a single token.")
    with Part(journal, ALL_ROWS) as part:
        part.append(ALL_ROWS, dict(totals))
    progress.end()


def _bos(tokenizer: Any) -> int:
    for name in ("bos_token_id", "eos_token_id"):
        if (token := getattr(tokenizer, name, None)) is not None:
            return int(token)
    raise ModelError(
        "the dictionary expects contexts to begin with BOS, but the model's tokenizer has neither a BOS nor "
        "an EOS token. Say how it was trained: --set cache.prepend_bos=false."
    )


def _tokenised(source: Iterator[Any], tokenizer: Any, stop: Stop) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """(document id as a number, token ids), in batches for the tokenizer's sake."""
    batch: list[Any] = []

    def flush() -> Iterator[tuple[int, NDArray[np.uint32]]]:
        stop.check()
        # The corpus is data: its "<|endoftext|>" is text, not the token that ends a document.
        texts = [document.text for document in batch]
        encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)
        for document, token_ids in zip(batch, encoded["input_ids"], strict=True):
            yield int(document.id, 16), np.asarray(token_ids, np.uint32)
        batch.clear()

    for document in source:
        batch.append(document)
        if len(batch) >= _DOCUMENTS_AT_ONCE:
            yield from flush()
    if batch:
        yield from flush()


# --- firings -------------------------------------------------------------------------------------------


def _checks(
    run: Run, collector: Collector, names: list[str], shards: list[RowShard], progress: Progress
) -> dict[str, Check]:
    """The check of each dictionary, from its record or made now. Raises CheckpointError where FVU >= 1."""
    known = {name: run.cache(name).read(_CHECK).get(_CHECK) for name in names}
    made = {} if all(known.values()) else collector.check(shard.read() for shard in shards)
    checks: dict[str, Check] = {}
    for name, record in known.items():
        if record is not None:
            checks[name] = Check(**{field.name: record[field.name] for field in dataclasses.fields(Check)})
            continue
        check = checks[name] = made[name]
        explained = f"explains {1 - check.fvu:.1%} of the variance"
        progress.note(f"{name}: {check.l0:.1f} features a token, {explained} of {check.n_tokens:,} tokens")
        if not (check.n_tokens and check.fvu < 1):
            raise CheckpointError(
                f"dictionary '{name}' does not fit these activations: on {check.n_tokens:,} tokens its "
                f"reconstruction is no better than the mean (FVU {check.fvu:.3g}, L0 {check.l0:.1f}). Check "
                f"whether the checkpoint is complete, and --model, --hook and cache.prepend_bos; give other "
                f"ones together with another --out."
            )
    for name, record in known.items():  # behind all refusals: a dictionary that is refused leaves no trace
        if record is None:
            with Part(run.cache(name), _CHECK) as part:
                part.append(_CHECK, dataclasses.asdict(checks[name]))
    return checks


def _collect(
    run: Run,
    collector: Collector,
    checks: dict[str, Check],
    shards: list[RowShard],
    progress: Progress,
    stop: Stop,
) -> None:
    journals = {name: run.cache(name) for name in checks}
    todo = [
        shard
        for shard in shards
        if any(shard.unit not in journal.read(shard.unit) for journal in journals.values())
    ]
    total = sum(int(shard.read()["length"].sum()) for shard in shards)
    left = sum(int(shard.read()["length"].sum()) for shard in todo)
    progress.begin("cache", total, "tokens", done=total - left)

    def on_batch(n_tokens: int) -> None:
        stop.check()
        progress.advance(n_tokens)

    for shard in todo:
        rows = np.asarray(shard.read())
        norms = {name: check.median_norm for name, check in checks.items()}
        kept = collector.shard(rows, norms, on_batch)
        n_first = run.first_position * len(rows)
        for name, journal in journals.items():
            if shard.unit not in journal.read(shard.unit):
                _save(journal, shard.unit, kept[name], n_first)
    progress.end()
    for name, journal in journals.items():
        progress.note(f"{name}: {_masked(journal, shards)}")


def _masked(journal: Journal, shards: list[RowShard]) -> str:
    """How many tokens nobody looked at, and why."""
    counts = [journal.read(shard.unit)[shard.unit]["n_masked"] for shard in shards]
    first, sinks = (sum(count[kind] for count in counts) for kind in ("first", "sinks"))
    return f"masked {first:,} tokens at position 0 and {sinks:,} of massive norm"


def _save(journal: Journal, unit: str, kept: Kept, n_first: int) -> None:
    with Part(journal, unit) as part:
        save_firings(part.open().with_suffix(".safetensors"), kept.firings, kept.sinks)
        record: Json = {
            "n_tokens": kept.n_tokens,
            "n_masked": {"first": n_first, "sinks": len(kept.sinks)},
            "n_firings": len(kept.firings.values),
            "checksum": _checksum(kept.firings.features, kept.firings.tokens, kept.firings.values),
        }
        part.append(unit, record)


def _checksum(*arrays: NDArray[Any]) -> str:
    hashed = hashlib.blake2b(digest_size=16)
    for array in arrays:
        hashed.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return hashed.hexdigest()
