"""Names and limits of Neuronpedia: folders, columns, registered types.

Two layouts of a source (a dictionary's features at one layer), every file plain or gzipped:

    SAEDashboard   batch-N.json         {model_id, layer, sae_set, sae_id_suffix, features: [{..., activations: []}]}
    bulk           release.jsonl  model.jsonl  sourceset.jsonl  source.jsonl
                   features/  activations/  explanations/batch-N.jsonl.gz    a row a line
                   scores/batch-N.jsonl.gz                                   ours: the import there knows no scores
"""

from __future__ import annotations

from typing import Any, Final

from autointerp.types import Json

FEATURES_PER_BATCH: Final = 1024
MOST_FILES: Final = 1000
"""A folder: their listing reads one page."""

# POST /api/feature/upload-batch refuses what passes these.
MOST_FEATURES_A_CALL: Final = 128
MOST_CHARACTERS: Final = 512
"""Of an explanation."""
MOST_TOKENS: Final = 1024
"""Of an activation."""
MOST_LOGITS: Final = 20
MOST_INDEX: Final = 10_000_000
MOST_QUANTILE: Final = 99_999_999

DEFAULT_CREATOR: Final = "clkht01d40000jv08hvalcvly"
"""Whom a local Neuronpedia is seeded with (utils/neuronpedia-utils)."""
NO_BIN: Final = -1
"""SAEDashboard's binMin and binContains of the strongest windows, which are of no interval."""

EXPLANATION_TYPES: Final = (
    "oai_token-act-pair", "oai_attention-head", "np_max-act", "np_max-act-logits", "np_acts-logits-general",
    "python-code", "eleuther_acts_top20",
)  # fmt: skip
"""Registered there; an admin can add others."""

SCORE_TYPES: Final = {
    "detection": "eleuther_recall", "fuzzing": "eleuther_fuzz", "embedding": "eleuther_embedding",
    "example_embedding": "eleuther_embedding",
}  # fmt: skip
"""By our scorers' names. Others keep their own: Neuronpedia has none for them."""

NEURON: Final[Json] = {
    "modelId": "", "layer": "", "index": "", "sourceSetName": None, "creatorId": None, "maxActApprox": None,
    "hasVector": False, "vector": [], "vectorLabel": None, "vectorDefaultSteerStrength": 10, "hookName": None,
     "topkCosSimIndices": [], "topkCosSimValues": [],
    "neuron_alignment_indices": [], "neuron_alignment_values": [], "neuron_alignment_l1": [],
    "correlated_neurons_indices": [], "correlated_neurons_pearson": [], "correlated_neurons_l1": [],
    "correlated_features_indices": [], "correlated_features_pearson": [], "correlated_features_l1": [],
    "neg_str": [], "neg_values": [], "pos_str": [], "pos_values": [], "frac_nonzero": -1,
    "freq_hist_data_bar_heights": [], "freq_hist_data_bar_values": [],
    "logits_hist_data_bar_heights": [], "logits_hist_data_bar_values": [], "decoder_weights_dist": [],
}  # fmt: skip
"""Columns, and what stands there where nothing is known. `frac_nonzero` may not be null; -1 is what the upload of
features without a density stores."""

ACTIVATION: Final[Json] = {
    "id": "", "modelId": "", "layer": "", "index": "", "tokens": [], "values": [], "maxValue": 0.0,
    "maxValueTokenIndex": 0, "minValue": 0.0, "binMin": None, "binMax": None, "binContains": None,
    "qualifyingTokenIndex": None, "dfaValues": [], "dfaMaxValue": None, "dfaTargetIndex": None, "lossValues": [],
    "zQIndices": [], "zKIndices": [], "zValues": [], "logitContributions": None, "dataIndex": None,
     "dataSource": None, "creatorId": "",
}  # fmt: skip

EXPLANATION: Final[Json] = {
    "id": "", "modelId": "", "layer": "", "index": "", "description": "", "authorId": "", "typeName": None,
    "explanationModelName": None, "notes": None,
}  # fmt: skip

SCORE: Final[Json] = {
    "id": "", "value": 0.0, "explanationId": "", "explanationScoreTypeName": "", "explanationScoreModelName": "",
    "jsonDetails": "", "initiatedByUserId": "",
}  # fmt: skip

DASHBOARD_ACTIVATION: Final = {
    "bin_min": "binMin", "bin_max": "binMax", "bin_contains": "binContains",
    "qualifying_token_index": "qualifyingTokenIndex", "dfa_values": "dfaValues", "dfa_maxValue": "dfaMaxValue",
    "dfa_targetIndex": "dfaTargetIndex", "loss_values": "lossValues", "logit_contributions": "logitContributions",
}  # fmt: skip
"""What SAEDashboard calls the columns of an activation."""

DASHBOARD_SOURCE: Final = {
    "n_prompts_total": "num_prompts", "n_tokens_in_prompt": "num_tokens_in_prompt", "dataset": "dataset",
}  # fmt: skip
"""What SAEDashboard says with every feature, and Neuronpedia once, of the source."""


def of_table(columns: Json, values: Json) -> Json:
    """A row with exactly the table's keys, in the table's order: the import takes its columns from the first line.
    Nulls become what the table has for unknown."""
    return {name: default if values.get(name) is None else values[name] for name, default in columns.items()}


def stored(value: Any) -> Any:
    """As their database can keep it: NUL is a space there, and no text is ill-formed."""
    if isinstance(value, str):
        return value.replace("\0", " ").encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [stored(one) for one in value]  # pyright: ignore[reportUnknownVariableType]  a JSON array
    return value
