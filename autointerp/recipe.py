"""The recipe: everything a run depends on, as YAML, as `--set a.b=1`, and as frozen dataclasses.

    parse(mapping) -> Recipe     all faults at once, each with its place and the nearest right name
    dump(recipe) -> str          the YAML that parses to it

Sections that change results are digested into what is made from them (`run.py`); `resources` never is.
A plug-in's section is `{use: NAME, option: value, ...}`; its options are the plug-in class's own fields.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

import pydantic
import yaml

from autointerp import plugins
from autointerp.activations.random_rates import RandomTokens
from autointerp.effects import Intervention
from autointerp.errors import RecipeError, UnknownName
from autointerp.llm.protocol import EngineResources, Role
from autointerp.portion import Portion
from autointerp.prompting import shipped_folders
from autointerp.sampling import settings
from autointerp.sampling.settings import SamplingSettings
from autointerp.sections import FALLBACK, PluginSection, fault, instance, nearest
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
    format: Literal["auto", "folder", "delphi"] = "auto"
    """`folder`: vectors, as `activations/dump.py` has it; `delphi`: firings that delphi cached (then
    dictionaries need no weights). `auto`: by what lies there."""
    tokenizer: str | None = None
    """Folder or hub id. None: the model's."""
    documents: Literal["auto", "files", "rows"] = "auto"
    """What is kept apart between explaining and scoring: documents, where the files name them, or `rows`
    (weaker: rows of one text may fall on both sides). `auto`: documents where that can be."""


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
    """By name. None: every one that judges explanations, but for variants that are no headline, and those that have
    controls of their own. Never one for which the subject must read texts first."""


def _off(given: Any) -> Any:
    """YAML reads `off` as false."""
    return None if given is False or given == "off" else given


@dataclass(frozen=True, slots=True)
class LLMSections:
    """Who explains and who judges: `{use: openai, model: ...}`. None: not needed, or asked for. The one who explains
    may have a `fallback`, another such section: who is asked where the first one refuses."""

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
    """`auto` spreads a subject model over several cards."""
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


def _default_explainers() -> dict[str, PluginSection]:
    return {"plain": {"use": "plain"}}


def _default_scorers() -> dict[str, PluginSection]:
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
    explainers: dict[str, PluginSection] = field(default_factory=_default_explainers)
    scorers: dict[str, PluginSection] = field(default_factory=_default_scorers)
    controls: Annotated[ControlSection | None, pydantic.BeforeValidator(_off)] = field(
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


# --- from outside --------------------------------------------------------------------------------------


def parse(mapping: Mapping[str, Any], *, check_plugins: bool = True) -> Recipe:
    """Checks everything and raises one RecipeError that lists every fault.

    To read a run's results its plug-ins need not be there: then `check_plugins` is False.
    """
    faults = list(_unknown_keys(Recipe, mapping, ""))
    recipe: Recipe | None = None
    try:
        recipe = pydantic.TypeAdapter(Recipe).validate_python(dict(mapping))
    except pydantic.ValidationError as error:
        faults += [fault(detail) for detail in error.errors()]
    if recipe is not None:
        faults += list(_faults_of(recipe, check_plugins))
    if recipe is None or faults:
        raise RecipeError("the recipe can't be run:\n" + "\n".join(f"  {fault}" for fault in faults))
    return recipe


def _unknown_keys(kind: type[Any], mapping: Mapping[str, Any], place: str) -> Iterator[str]:
    hints = typing.get_type_hints(kind)
    for key, value in mapping.items():
        inner = f"{place}.{key}" if place else str(key)
        if key not in hints:
            yield f"{inner}: no such key.{nearest(str(key), hints)}"
            continue
        section = _section_in(hints[key])
        if section is None:
            continue
        if typing.get_origin(hints[key]) is dict:
            for name, entry in (value or {}).items():
                if isinstance(entry, Mapping):
                    yield from _unknown_keys(
                        section, typing.cast(Mapping[str, Any], entry), f"{inner}.{name}"
                    )
        elif isinstance(value, Mapping):
            yield from _unknown_keys(section, typing.cast(Mapping[str, Any], value), inner)


def _section_in(hint: Any) -> type[Any] | None:
    """The dataclass that a field's type holds: `X`, `X | None` or `dict[str, X]`."""
    candidates = (
        typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_args(hint) else (hint,)
    )
    return next((kind for kind in candidates if dataclasses.is_dataclass(kind)), None)  # type: ignore[return-value]  # a class, as it comes from an annotation


def _faults_of(recipe: Recipe, check_plugins: bool) -> Iterator[str]:
    """What types alone don't say."""
    yield from _source_faults(recipe)
    for section in ("dictionaries", "explainers", "scorers"):
        for name in getattr(recipe, section):
            if not NAME.fullmatch(name):
                yield f"{section}.{name}: a name is letters, digits, '_', '.' and '-'"
    if check_plugins:
        yield from _all_plugin_faults(recipe)
    asked = recipe.features
    if sum(value is not None for value in (asked.n, asked.first, asked.ids)) > 1:
        yield "features: n, first and ids exclude each other; give one of them"
    if asked.n is not None and asked.n < 1:
        yield f"features.n: at least 1 (found {asked.n})"
    if asked.first is not None and asked.first < 1:
        yield f"features.first: at least 1 (found {asked.first})"
    yield from _control_faults(recipe)
    if recipe.resources.shard is not None:
        try:
            Portion.parse(recipe.resources.shard)
        except RecipeError as error:
            yield f"resources.shard: {error}"
        if recipe.cache.top_up:
            yield (
                f"cache.top_up: a portion of a cache can't be topped up (found resources.shard "
                f"{recipe.resources.shard}): which features lack windows is known when all of it is there. Merge "
                f"the portions (`autointerp merge`), then: explain --top-up {recipe.cache.top_up} --out RUN"
            )
    yield from _number_faults(recipe)


def _control_faults(recipe: Recipe) -> Iterator[str]:
    controls = recipe.controls
    if controls is None:
        return
    if controls.panel < 2:
        yield (
            f"controls.panel: at least 2, since each lends another its explanation (found {controls.panel}); for no "
            f"controls: --set controls=off"
        )
    for name in controls.scorers or ():
        if name not in recipe.scorers:
            yield f"controls.scorers: no scorer is called '{name}'.{nearest(name, recipe.scorers)}"


def _source_faults(recipe: Recipe) -> Iterator[str]:
    """Firings may come without weights; everything else needs dictionaries."""
    given = recipe.activations
    if given is None and not recipe.dictionaries:
        yield "dictionaries: none is named; give one with --sae PATH, or --sae demo"
    if given is not None and given.format == "folder" and not recipe.dictionaries:
        yield "dictionaries: none is named to encode these activations; give one with --sae PATH"
    if given is not None and recipe.corpus is not None:
        yield (
            "corpus: can't be used with activations, which are of their own text already; leave one of the "
            "two out (a run keeps what it began with: for the other use another --out)"
        )
    if given is not None and recipe.model.weights == "random":
        yield "model.weights: random weights make other activations than those in files; leave one of the two out"
    if given is not None and recipe.sampling.n_embedding:
        yield (
            "sampling.n_embedding: windows are compared by the model's token embeddings, and of these "
            f"activations the model is not here (found {recipe.sampling.n_embedding}); set it to 0"
        )
    if given is not None and recipe.cache.random_tokens:
        yield (
            f"cache.random_tokens: no model runs where activations come from files, so nothing is known of "
            f"random tokens; leave it out (found {recipe.cache.random_tokens})"
        )
    for name, section in recipe.dictionaries.items():
        if section.path is None and (given is None or given.format == "folder"):
            yield f"dictionaries.{name}.path: field required (found None)"


def _all_plugin_faults(recipe: Recipe) -> Iterator[str]:
    for kind, sections in (("explainers", recipe.explainers), ("scorers", recipe.scorers)):
        for name, section in sections.items():
            yield from _plugin_faults(typing.cast(plugins.Kind, kind), f"{kind}.{name}", section)
    for role in get_args(Role):
        section = getattr(recipe.llms, role)
        if section is not None:
            yield from _plugin_faults("llm", f"llms.{role}", section)
            yield from _fallback_faults(role, section)


def _fallback_faults(role: str, section: PluginSection) -> Iterator[str]:
    if FALLBACK not in section:
        return
    place, other = f"llms.{role}.{FALLBACK}", section[FALLBACK]
    if role != "explainer":
        yield f"{place}: only the LLM that explains can have one; a judge that refuses leaves its answer unreadable"
    elif not isinstance(other, Mapping):
        yield f"{place}: must be the section of an LLM, e.g. {{use: openai, model: MODEL}} (found {other!r})"
    elif FALLBACK in other:
        yield f"{place}.{FALLBACK}: a fallback has none of its own"
    elif faults := list(_plugin_faults("llm", place, typing.cast(PluginSection, other))):
        yield from faults
    elif _is_same_llm(section, typing.cast(PluginSection, other)):
        yield f"{place}: it is the LLM that refused, whose answers are kept under its name; name another model"


def _is_same_llm(section: PluginSection, other: PluginSection) -> bool:
    """Whether answers of both would be kept as one LLM's, also where they are asked at different addresses."""
    try:
        first, second = instance("llm", section), instance("llm", other)
    except RecipeError:  # told elsewhere
        return False
    model = getattr(first, "model", None)
    return (
        model is not None
        and model == getattr(second, "model", None)
        and first.identity() == second.identity()
    )


def _number_faults(recipe: Recipe) -> Iterator[str]:
    cache, engine = recipe.cache, recipe.resources.engine
    least = {
        "cache.n_tokens": (cache.n_tokens, 1),
        "cache.shard_tokens": (cache.shard_tokens, 1),
        "cache.top_up": (cache.top_up, 0),
        "cache.top_up_below": (cache.top_up_below, 1),
        "cache.max_rows": (cache.max_rows, 2),
        "cache.calibration_tokens": (cache.calibration_tokens, 1),
        "cache.random_tokens": (cache.random_tokens, 0),
        "resources.sample_firings": (recipe.resources.sample_firings, 1),
        "resources.n_in_flight": (
            1 if recipe.resources.n_in_flight is None else recipe.resources.n_in_flight,
            1,
        ),
        "resources.engine.tensor_parallel": (engine.tensor_parallel, 1),
        "resources.engine.data_parallel": (1 if engine.data_parallel is None else engine.data_parallel, 1),
    }
    for place, (value, minimum) in least.items():
        if value < minimum:
            yield f"{place}: at least {minimum} (found {value})"
    if cache.shard_tokens > 2**24:
        yield f"cache.shard_tokens: at most {2**24:,} (found {cache.shard_tokens:,})"
    if recipe.headline is not None and recipe.replica is None:
        yield (
            f"headline: {recipe.headline} rewards saying what most windows are; it is there to reproduce a published "
            f"protocol, and only a recipe that says so may have it: replica: NAME (else null)"
        )
    if recipe.replica is not None and not NAME.fullmatch(recipe.replica):
        yield f"replica: a name is letters, digits, '_', '.' and '-' (found {recipe.replica!r})"
    yield from _replica_only_faults(recipe)
    yield from settings.faults(recipe.sampling, is_replica=recipe.replica is not None)
    yield from (f"intervention.{fault}" for fault in recipe.intervention.faults())
    if cache.sink_ratio is not None and cache.sink_ratio <= 1:
        yield f"cache.sink_ratio: above 1, or null (found {cache.sink_ratio:g})"
    for name, most in (("max_cost", recipe.resources.max_cost), ("max_tokens", recipe.resources.max_tokens)):
        if most is not None and not 0 <= most < math.inf:
            yield f"resources.{name}: 0 or more (found {most:g})"
    if not 0 < engine.memory <= 1:
        yield f"resources.engine.memory: above 0, at most 1 (found {engine.memory:g})"
    if cache.context_length is not None and not 2 <= cache.context_length <= 65_535:
        yield f"cache.context_length: from 2 to 65,535 (found {cache.context_length})"


def _replica_only_faults(recipe: Recipe) -> Iterator[str]:
    """Scorers' options that reproduce a published protocol's faults."""
    if recipe.replica is not None:
        return
    for name, section in recipe.scorers.items():
        try:
            scorer = instance("scorers", section)
        except RecipeError:  # told elsewhere
            continue
        kept: dict[str, Any] = getattr(scorer, "replica_only", {})
        for option, value in kept.items():
            if (found := getattr(scorer, option)) != value:
                yield (
                    f"scorers.{name}.{option}: {found} tells a judge more than it should know; it is there to "
                    f"reproduce a published protocol, and only a recipe that says so may have it: replica: NAME "
                    f"(else {value})"
                )


def _plugin_faults(kind: plugins.Kind, place: str, section: PluginSection) -> Iterator[str]:
    try:
        instance(kind, section)
    except RecipeError as error:
        for line in str(error).splitlines():
            yield f"{place}: {line}"


# --- files and the command line ------------------------------------------------------------------------


def read_file(name: str) -> dict[str, Any]:
    """A recipe's mapping: a path, or the name of a shipped one (`demo` for `pipelines/demo.yaml`)."""
    path = Path(name)
    shipped = [folder / f"{name}.yaml" for folder in shipped_folders("pipelines")]
    found = next((place for place in (path, *shipped) if place.is_file()), None)
    if found is None:
        known = {p.stem for folder in shipped_folders("pipelines") for p in folder.glob("*.yaml")}
        raise UnknownName("recipe", name, known)
    try:
        mapping = yaml.safe_load(found.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{found} is not YAML: {error}") from error
    if not isinstance(mapping, dict):
        raise RecipeError(f"{found} must hold a mapping of sections (found {type(mapping).__name__}).")
    return typing.cast(dict[str, Any], mapping)


_WHOLE: Final = ("use", "model")


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, section by section. `features`, whose fields exclude each other, and a
    plug-in section with another `use` or another LLM's model replace what was there."""
    merged = dict(base)
    for key, value in over.items():
        before = None if key == "features" else merged.get(key)
        same_plugin = (
            not isinstance(value, Mapping)
            or not isinstance(before, Mapping)
            or all(value.get(name, before.get(name)) == before.get(name) for name in _WHOLE)
        )
        if isinstance(value, Mapping) and isinstance(before, Mapping) and same_plugin:
            merged[key] = merge(typing.cast(Mapping[str, Any], before), typing.cast(Mapping[str, Any], value))
        else:
            merged[key] = value
    return merged


def setting(text: str) -> dict[str, Any]:
    """`sampling.n_shown=20` -> {"sampling": {"n_shown": 20}}; the value is YAML."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise RecipeError(f"--set {text}: expected SECTION.FIELD=VALUE, e.g. --set sampling.n_shown=20.")
    try:
        parsed: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {text}: '{value}' is not YAML: {error}") from error
    for part in reversed(name.split(".")):
        parsed = {part: parsed}
    return typing.cast(dict[str, Any], parsed)


def to_mapping(recipe: Recipe, *, defaults: bool = True) -> dict[str, Any]:
    """Plain data that `parse` takes; without `defaults` only what was set."""
    adapter = pydantic.TypeAdapter(Recipe)
    return adapter.dump_python(recipe, mode="json", exclude_defaults=not defaults)


_VALUES: Final = ("seed", "replica", "headline")
"""What is no section."""


def check_shape(mapping: Mapping[str, Any]) -> None:
    """Raises RecipeError where a section is no mapping, before anybody looks into it."""
    faults: list[str] = []
    hints = typing.get_type_hints(Recipe)
    for name, section in mapping.items():
        is_off = name == "controls" and _off(section) is None
        if name in hints and name not in _VALUES and not is_off and not isinstance(section, Mapping | None):
            faults.append(f"{name}: must be a section of fields (found {section!r})")
        elif name in ("dictionaries", "explainers", "scorers"):
            entries = typing.cast(Mapping[str, Any], section or {})
            faults += [
                f"{name}.{inner}: must be a section of fields (found {entry!r})"
                for inner, entry in entries.items()
                if not isinstance(entry, Mapping)
            ]
    if faults:
        raise RecipeError("the recipe can't be run:\n" + "\n".join(f"  {fault}" for fault in faults))


def over_default_plugins(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Explainers or scorers that set an option without saying what they use change the default ones."""
    mapping = dict(mapping)
    for kind, defaults in (("explainers", _default_explainers()), ("scorers", _default_scorers())):
        sections = mapping.get(kind) or {}
        if any("use" not in section for section in sections.values()):
            mapping[kind] = merge(defaults, sections)
    return mapping


def dump(recipe: Recipe) -> str:
    """The recipe as YAML, every field written out."""
    plain = pydantic.TypeAdapter(Recipe).dump_python(recipe, mode="json")
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
