"""The head of a card: what the hub reads of it, in YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from autointerp.publish.manifest import Manifest
from autointerp.publish.schema import TABLES, config_name, schema_of
from autointerp.recipe import Recipe
from autointerp.subject.corpus_spec import HUB_NAME

_SIZES: Final = (
    *((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")),
    *((10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**12, "1B<n<10B")),
)
TAGS: Final = ["sparse-autoencoder", "mechanistic-interpretability", "interpretability", "autointerp"]


def metadata(recipe: Recipe, manifest: Manifest, licence: str, title: str) -> str:
    """YAML, without the lines around it. Each config says its features and how many rows it has."""
    # Loads pandas: three seconds that only publishing should pay.
    from datasets import DatasetInfo, Features, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    n_rows = sum(file.rows or 0 for file in manifest.files.values() if file.table == "explanations")
    data = DatasetCardData(
        license=licence,
        language="en",
        pretty_name=title,
        tags=TAGS,
        size_categories=[next((name for most, name in _SIZES if n_rows < most), _SIZES[-1][1])],
    )
    if base_model := _on_hub(recipe.model.path):
        data["base_model"] = base_model
    if source := _on_hub(recipe.corpus.path if recipe.corpus else None):
        data["source_datasets"] = [source]
    configs: dict[str, Any] = {}
    infos: dict[str, Any] = {}
    for dictionary in recipe.dictionaries:
        for table in TABLES:
            files = manifest.of_table(dictionary, table)
            if not files:
                continue
            name = config_name(dictionary, table)
            splits = SplitDict()
            n_bytes = sum(file.bytes for file in files.values())
            splits.add(
                SplitInfo("train", num_bytes=n_bytes, num_examples=sum(f.rows or 0 for f in files.values()))
            )
            features = Features.from_arrow_schema(schema_of(table, list(recipe.scorers)))
            infos[name] = DatasetInfo(
                features=features, splits=splits, download_size=n_bytes, dataset_size=n_bytes
            )
            pattern = f"data/{dictionary}/{table}-*.parquet"
            configs[name] = {"data_files": [{"split": "train", "path": pattern}]}
            if len(configs) == 1:
                configs[name]["default"] = True
    DatasetInfosDict(infos).to_dataset_card_data(data)
    MetadataConfigs(configs).to_dataset_card_data(data)
    return str(data)


def _on_hub(path: str | None) -> str | None:
    """A name on the hub; None for folders, and names of our own."""
    is_name = path is not None and HUB_NAME.fullmatch(path) and not Path(path).exists()
    return path if is_name else None
