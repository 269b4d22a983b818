"""What can be set: a recipe's sections as frozen dataclasses.

A plug-in's section is `{use: NAME, option: value, ...}`; its options are the plug-in class's own fields. Sections
that change results are digested into what is made from them (`run/journals.py`); `resources` never is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, get_args

import pydantic

from autointerp.activations.random_rates import RandomTokens
from autointerp.effects import Intervention
from autointerp.llm.protocol import EngineResources, Role
from autointerp.sampling.settings import SamplingSettings
from autointerp.sections import PluginSection
from autointerp.subject.corpus import CorpusSpec

DEFAULT_FEATURES: Final = 1_000
"""Features explained where the recipe names none."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""Names of dictionaries and instances become folder names."""


@dataclass(frozen=True, slots=True)
class ModelSection:
    """The subject model."""

    path: str | None = None
    """Folder or hub id. None: what the dictionary's checkpoint says."""
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 on a GPU, float32 on a CPU."""
    weights: Literal["trained", "random"] = "trained"
    """`random`: a control. Each tensor is replaced by random numbers of its own mean and spread (arXiv
    2501.17727), drawn by `seed`. (Windows are still compared by the trained model's token embeddings, so that
    the test stays the same.)"""


@dataclass(frozen=True, slots=True)
class DictionarySection:
    """One dictionary to explain."""

    path: str | None = None
    """Folder, hub id, or `demo`. None: no weights, where delphi's cache has the firings."""
    hook: str | None = None
    """Hook point in any spelling. None: what the checkpoint says."""


@dataclass(frozen=True, slots=True)
class ActivationsSection:
    """Activations that somebody computed already, instead of a corpus and the subject model."""

    path: str
    """Folder."""
    format: Literal["auto", "folder", "delphi", "neuronpedia"] = "auto"
    """`folder`: vectors, as `activations/dump.py` has it; `delphi`: firings that delphi cached (then
    dictionaries need no weights). `auto`: by what lies there. `neuronpedia`: windows that were published, which
    `autointerp import` made samples of; only of its runs."""
    tokenizer: str | None = None
    """Folder or hub id. None: the model's."""
    documents: Literal["auto", "files", "rows"] = "auto"
    """What is kept apart between explaining and scoring: documents, where the files name them, or `rows`
    (weaker: rows of one text may fall on both sides). `auto`: documents where that can be."""

    @property
    def has_firings(self) -> bool:
        """Whether what fires is in the files, and nothing is encoded."""
        return self.format in ("delphi", "neuronpedia")

    @property
    def is_published(self) -> bool:
        """Whether of each feature only the windows that somebody chose are there."""
        return self.format == "neuronpedia"


@dataclass(frozen=True, slots=True)
class CacheSection:
    """What the subject model reads and what is kept of it."""

    n_tokens: int = 10_000_000
    """Corpus tokens, BOS not counted."""
    context_length: int | None = None
    """Tokens a row, BOS counted. None: the checkpoint's, at most 1,024; 256 where it doesn't say."""
    prepend_bos: bool | None = None
    """None: as the checkpoint says."""
    mask_first: bool = True
    """Nobody looks at position 0, where models park attention with activations unlike any other."""
    sink_ratio: float | None = 10.0
    """Nor at tokens whose activation has more than so many times the median norm. None: at all."""
    max_rows: int = 40_000
    """Of a feature that fires in more rows than this, whole rows are kept: half of them the strongest,
    half drawn; how often it fires stays exact."""
    encode_in: Literal["float32", "bfloat16"] = "float32"
    """Of the dictionary's matrix product; selection is float32 always."""
    top_up: int = 0
    """Corpus tokens beyond `n_tokens` that are read when the cache is made, and of which only firings of
    features that lack windows are kept: of the others everything is known on the first `n_tokens` alone."""
    top_up_below: int = 200
    """A feature lacks windows that fires in fewer rows of the cache than this."""
    shard_tokens: int = 2**18
    """Tokens a shard: what is held in memory at once, and what a crash can cost. At most 2**24."""
    calibration_tokens: int = 2**17
    """Of a dictionary that chose among whole batches in training and stores no threshold, it is found on so many
    of the run's tokens, in rows drawn from all of it. Digested for such dictionaries alone."""
    random_tokens: int = 0
    """On so many random tokens it is counted how often each feature fires (arXiv 2604.03532): one that fires
    there as it does on text follows single tokens or positions. Not digested: asking for it extends a run."""
    random_distribution: Literal["unigram", "uniform"] = "unigram"
    """Random tokens are drawn as often as the run's first million tokens hold them, or each alike."""

    @property
    def rows_per_shard(self) -> int:
        """Of a complete recipe."""
        assert self.context_length is not None  # filled by `resolve`
        return max(1, self.shard_tokens // self.context_length)


@dataclass(frozen=True, slots=True)
class FeatureSection:
    """Which features are asked for, of each dictionary: one of the three, or a sample of `DEFAULT_FEATURES`.
    Not digested: asking for more extends a run."""

    n: int | None = None
    """A seeded sample of so many; a larger one contains a smaller one. All where it is the width or more."""
    first: int | None = None
    """Features 0 to first - 1."""
    ids: list[str] | None = None
    """Indices, ranges `100-200`, or ids `layers.2/17`."""


ControlKind = Literal["shuffled", "top_tokens", "lexical"]


@dataclass(frozen=True, slots=True)
class ControlSection:
    """What explanations are set against: what some features score with an explanation that should not fit, and with
    those that nobody had to think about. Not digested: asking for more extends a run."""

    panel: int = 40
    """Features: of those asked for that have enough windows so many, drawn by a keyed hash."""
    kinds: list[ControlKind] = field(default_factory=lambda: list(get_args(ControlKind)))
    """`shuffled`: another feature's explanation, by the same explainer; `top_tokens`: the list of strongest tokens;
    `lexical`: what counting words and tokens says."""
    scorers: list[str] | None = None
    """By name. None: every one that judges explanations, but for variants that are no headline. Never one for which
    the subject must read texts first."""


def none_if_off(given: Any) -> Any:
    """YAML reads `off` as false."""
    return None if given is False or given == "off" else given


@dataclass(frozen=True, slots=True)
class LLMSections:
    """Who explains and who judges: `{use: openai, model: ...}`. None: not needed, or asked for. The one who explains
    may have a `fallback`, another such section: who is asked where the first one refuses; it may have one, too."""

    explainer: PluginSection | None = None
    judge: PluginSection | None = None
    embedder: PluginSection | None = None
    """Who embeds texts, for scorers that compare them. None: the judge, if it can."""

    def of(self, role: Role) -> PluginSection | None:
        """Who is asked in this role."""
        section: PluginSection | None = getattr(self, role)
        return self.judge if section is None and role == "embedder" else section


@dataclass(frozen=True, slots=True)
class Resources:
    """What changes no result."""

    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`; `auto` takes a GPU where there is one."""
    shard: str | None = None
    """`0/4`: of the cache the first of four portions, made by a process with a folder of its own; `merge`
    unites them. None: all of it."""
    device_map: str | None = None
    """`auto` spreads a subject model over several cards, by accelerate (the extra `cards`)."""
    batch_tokens: int | None = None
    """Tokens a forward pass. None: 2,048 on a CPU (its caches are small); on a GPU as many as make it fast,
    tried once."""
    sample_firings: int = 700_000
    """Firings sampled at once, some 200 bytes of memory each."""
    n_in_flight: int | None = None
    """Requests at once to an LLM's server, and features worked on at once. None: as many requests as make the
    server faster, and 256 features."""
    max_cost: float | None = None
    """US dollars that the run's LLM requests may cost in all; it stops before it passes them."""
    max_tokens: int | None = None
    """Tokens that they may take in all, prompts and answers."""
    reuse_requests: str | None = None
    """Folder of another run: requests that it has answers to are not made again."""
    engine: EngineResources = field(default_factory=EngineResources)
    """What an LLM that runs on this machine (`vllm`) takes of its cards."""
    prompts: str | None = None
    """Folder of the user's own prompt templates, looked into first."""
    prefetch: str | None = None
    """Folder of the corpora that `autointerp prefetch` copies. None: autointerp/corpora in HF_HOME."""
    wandb: str | None = None
    """Project on Weights & Biases (`PROJECT` or `ENTITY/PROJECT`) that totals are logged to. None: nowhere."""


def default_explainers() -> dict[str, PluginSection]:
    return {"plain": {"use": "plain"}}


def default_scorers() -> dict[str, PluginSection]:
    return {"detection": {"use": "detection"}, "fuzzing": {"use": "fuzzing"}}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A run, in full."""

    replica: str | None = None
    """Name of the published protocol that this recipe reproduces, its faults included: only then may windows be
    shown to the explainer and tested, or count as silent unseen. Every score says so. None: nothing of the kind."""
    headline: Literal["accuracy"] | None = None
    """`accuracy`: the plain share of right answers is what binary scorers give (SAEBench); only in a `replica`,
    since always saying no gets the share of silent windows. None: what each scorer's metrics say."""
    dictionaries: dict[str, DictionarySection] = field(default_factory=dict[str, DictionarySection])
    """By name. The name `auto` becomes the dictionary's site (`layers.12`)."""
    model: ModelSection = field(default_factory=ModelSection)
    corpus: CorpusSpec | None = None
    """None: what the dictionary's checkpoint says."""
    activations: ActivationsSection | None = None
    """Where it is given there is no corpus, and of the model only the tokenizer is needed."""
    cache: CacheSection = field(default_factory=CacheSection)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    intervention: Intervention = field(default_factory=Intervention)
    features: FeatureSection = field(default_factory=FeatureSection)
    llms: LLMSections = field(default_factory=LLMSections)
    explainers: dict[str, PluginSection] = field(default_factory=default_explainers)
    scorers: dict[str, PluginSection] = field(default_factory=default_scorers)
    controls: Annotated[ControlSection | None, pydantic.BeforeValidator(none_if_off)] = field(
        default_factory=ControlSection
    )
    """None, or `off`: none."""
    seed: int = 0
    resources: Resources = field(default_factory=Resources)

    @property
    def random_tokens(self) -> RandomTokens | None:
        """None where they are not asked for."""
        cache = self.cache
        if not cache.random_tokens:
            return None
        return RandomTokens(cache.random_tokens, cache.random_distribution, self.seed)
