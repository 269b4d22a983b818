"""A run of any size whose features are explained and scored, made up: what looking at a run and passing it on are
measured on.

Some hundred features are sampled, explained and scored by corpus statistics; the others are these again and again,
each with an index and explanations of its own.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from autointerp import draw
from autointerp.bench.made_up_run import DICTIONARY, make_run
from autointerp.files import write_sealed
from autointerp.journal import FEATURES_PER_UNIT, Journal, Part, unit_of_feature
from autointerp.pipeline import run_line
from autointerp.run import ENVIRONMENT, PACKED, Run
from autointerp.types import FeatureId, Json

_SECTIONS: Final[Json] = {
    "llms": {"explainer": {"use": "lexical"}, "judge": {"use": "lexical"}},
    "explainers": {"plain": {"use": "plain"}, "top_tokens": {"use": "top_tokens"}},
    "scorers": {"detection": {"use": "detection"}, "fuzzing": {"use": "fuzzing"}},
}
_WORDS: Final = (
    "quarterly revenue python import statement french verb ending closing bracket medical dosage chemical name legal "
    "clause river delta gradient descent comma after capital city date format hexadecimal colour apology question tag"
).split()


def make_explained_run(path: Path, n_features: int) -> Run:
    """2 explanations, 4 scores and some 250 windows a feature; without a cache, as if it had been packed."""
    with tempfile.TemporaryDirectory() as temporary:
        few = make_run(Path(temporary) / "run", min(n_features, FEATURES_PER_UNIT), **_SECTIONS)
        run_line(few)
        recipe = dataclasses.replace(
            few.recipe, features=dataclasses.replace(few.recipe.features, ids=None, first=n_features)
        )
        run = Run(path, recipe, dataclasses.replace(few.identities, widths={DICTIONARY: n_features}))
        run.write()
        shutil.copytree(few.path / "rows", path / "rows")
        for name in (ENVIRONMENT, PACKED):
            shutil.copy(few.path / name, path / name)
        places = [("sample", DICTIONARY), *(("explain", DICTIONARY, name) for name in recipe.explainers)]
        for place in (*places, *(("score", DICTIONARY, *pair) for pair in run.scored())):
            _repeat(few.existing(*place), path.joinpath(*place), n_features)
    return run


def _repeat(few: Journal, folder: Path, n_features: int) -> None:
    """The records of the first unit for all units."""
    journal = Journal(folder, few.made_from, package=few.package)
    (path,) = few.parts(unit_of_feature(0))
    records = list(few.records_of(path))
    store = pq.read_table(path.with_suffix(".parquet")) if path.with_suffix(".parquet").is_file() else None
    for first in range(0, n_features, FEATURES_PER_UNIT):
        with Part(journal, unit_of_feature(first)) as part:
            if store is not None:
                part.attach(".parquet", partial(_save, store=_moved(store, first)))
            for record in records:
                index = first + FeatureId.parse(record["key"]).index
                if index < n_features:
                    part.append(str(FeatureId(DICTIONARY, index)), dict(_said(record, index)))


def _said(record: Json, index: int) -> Iterator[tuple[str, Any]]:
    """The fields but for the key; an explanation's are other words."""
    words = [_WORDS[draw.key(0, "words", index, at) % len(_WORDS)] for at in range(15)]
    new = {"label": " ".join(words[:3]), "text": f"{' '.join(words[:3])}: {' '.join(words[3:])} {index}"}
    for name, value in record.items():
        if name != "key":
            yield name, new[name] if value and name in new else value


def _moved(store: Any, first: int) -> Any:
    """A window store of features whose indices are larger by `first`."""
    features = store["feature"].combine_chunks()
    old = [FeatureId.parse(name).index for name in features.dictionary.to_pylist()]
    names = pa.array([str(FeatureId(DICTIONARY, first + index)) for index in old])
    column = pa.DictionaryArray.from_arrays(features.indices, names)
    return store.set_column(store.schema.get_field_index("feature"), "feature", column)


def _save(path: Path, store: Any) -> Json:
    content = pa.BufferOutputStream()
    pq.write_table(store, content, compression="zstd")
    return write_sealed(path, memoryview(content.getvalue()))
