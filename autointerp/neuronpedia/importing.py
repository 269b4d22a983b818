"""Published features -> a run whose samples are sampled already: it is explained and scored like any other, without
model, corpus or cache."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Final

import orjson

from autointerp import __version__
from autointerp.errors import PublishedError, SiteError
from autointerp.files import write_atomically
from autointerp.identities import Identities
from autointerp.journal import Part, unit_of_feature
from autointerp.neuronpedia.kept import keep, keep_source
from autointerp.neuronpedia.pool import Counts, Pool, TokenTexts
from autointerp.neuronpedia.reading import Published, Source, find_sources
from autointerp.neuronpedia.samples import PER, samples_of, settings_for
from autointerp.recipe import NAME as FITS
from autointerp.recipe import ActivationsSection, CacheSection, DictionarySection, FeatureSection, Recipe
from autointerp.results import Explanation
from autointerp.run import PACKED, VOCABULARY, Run
from autointerp.stages.sample import save_samples
from autointerp.subject.sites import parse_hook
from autointerp.types import Directions, Json, TokenEffects, digest

PUBLISHED: Final = "published"
"""The explainer whose explanations came along."""


@dataclass(slots=True)
class Imported:
    """What came of it."""

    run: Run
    notes: list[str] = field(default_factory=list[str])


@dataclass(slots=True)
class _Found:
    """What is noted of a source while it is read the first time."""

    source: Source
    name: str
    """Of the dictionary."""
    identity: str
    indices: list[int]
    longest: int
    """Tokens of its longest window."""
    n_tokens: int
    """Of all of them."""
    hook: str | None
    n_explained: int = 0
    """Features that an explanation came with."""


def import_neuronpedia(folder: Path, out: Path) -> Imported:
    """Everything is read and checked before the run appears. Raises PublishedError, DiskFull."""
    if out.exists() and any(out.iterdir()):
        raise PublishedError(f"{out} is there already, and not empty: import into a new folder with --out.")
    found = _look(find_sources(folder))
    longest = max(one.longest for one in found)
    if longest < 2:
        raise PublishedError(f"{folder} holds no window of two tokens or more: there is nothing to look at.")
    partial_folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    run = _run(folder, partial_folder, found, longest)
    texts, counts = TokenTexts(), Counts()
    notes: list[str] = []
    try:
        run.write()
        for one in found:
            counts.add(_write(run, one, texts))
        with Part(run.rows(), VOCABULARY) as part:
            part.append(VOCABULARY, part.attach(".parquet", texts.vocabulary().save))
        said = {"package": __version__, "with_requests": False}
        write_atomically(partial_folder / PACKED, orjson.dumps(said))
        notes = [*_of_windows(counts, texts, run), *_of_sources(found)]
        partial_folder.replace(out)
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
    return Imported(Run.open(out), notes)


def _look(sources: list[Source]) -> list[_Found]:
    found: list[_Found] = []
    for source in sources:
        one = _Found(source, _name(source.name), "", [], 0, 0, None)
        digests: list[str] = []
        for block in source.blocks:
            for feature in source.features(block):
                one.indices.append(feature.index)
                lengths = [len(window["tokens"]) for window in feature.activations]
                one.longest, one.n_tokens = max([one.longest, *lengths]), one.n_tokens + sum(lengths)
                one.hook = one.hook or feature.neuron.get("hookName")
                one.n_explained += bool(feature.explanations)
                digests.append(_digest_of(feature, source))
        one.identity = digest("neuronpedia", source.model, source.name, source.said, digests)
        found.append(one)
    return found


def _digest_of(feature: Published, source: Source) -> str:
    try:
        return digest(feature.index, feature.neuron, feature.activations, feature.explanations)
    except orjson.JSONEncodeError as error:
        raise PublishedError(
            f"feature {feature.index} of {source.name} holds what can't be kept ({error}): take that field out."
        ) from error


def _name(name: str) -> str:
    plain = "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in name
    )
    return plain if FITS.fullmatch(plain) else f"source-{plain}"


def _place(one: _Found) -> str:
    """Where the dictionary reads the model, as far as that is said."""
    if not one.hook:
        return one.source.name
    try:
        return str(parse_hook(one.hook))
    except SiteError:
        return one.hook


def _run(folder: Path, out: Path, found: list[_Found], longest: int) -> Run:
    recipe = Recipe(
        dictionaries={one.name: DictionarySection(hook=_place(one)) for one in found},
        activations=ActivationsSection(str(folder.absolute()), "neuronpedia", documents="rows"),
        cache=CacheSection(
            n_tokens=sum(one.n_tokens for one in found),
            context_length=longest,
            prepend_bos=False,
            mask_first=False,
        ),
        sampling=settings_for(longest),
        explainers=({PUBLISHED: {"use": PUBLISHED}} if any(one.n_explained for one in found) else {})
        | Recipe().explainers,
        features=FeatureSection(ids=[text for one in found for text in _ids(one, alone=len(found) == 1)]),
    )
    models = sorted({one.source.model for one in found})
    identities = Identities(
        model="neuronpedia:" + "+".join(models),
        corpus=digest("neuronpedia", *(one.identity for one in found)),
        dictionaries={one.name: one.identity for one in found},
        widths={one.name: 1 + max(one.indices) for one in found},
        sites={one.name: _place(one) for one in found},
        sliceable=dict.fromkeys((one.name for one in found), False),
        poles=dict.fromkeys((one.name for one in found), 1),
    )
    return Run(out, recipe, identities)


def _ids(one: _Found, *, alone: bool) -> Iterator[str]:
    """Ranges, where no other dictionary would read them as its own."""
    if not alone:
        yield from (f"{one.name}/{index}" for index in one.indices)
        return
    for _, group in groupby(enumerate(one.indices), lambda pair: pair[1] - pair[0]):
        run = [index for _, index in group]
        yield str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}"


def _write(run: Run, one: _Found, texts: TokenTexts) -> Counts:
    settings, counts = run.recipe.sampling, Counts()
    journal = run.sample(one.name)
    keep_source(run, one.name, one.source)
    for block in one.source.blocks:
        features = one.source.features(block)
        keep(run, one.name, features)
        with tempfile.TemporaryDirectory() as place:
            pool = Pool(features, texts, Path(place), width=settings.width, overlap=settings.overlap)
            counts.add(pool.counts)
            for sampled in samples_of(
                pool, features, one.name, settings, one.source.said, seed=run.recipe.seed
            ):
                save_samples(journal, sampled)
        _write_directions(run, one.name, features, texts)
        _write_explanations(run, one.name, features)
    return counts


def _write_explanations(run: Run, name: str, features: Sequence[Published]) -> None:
    for unit, group in groupby(features, lambda feature: unit_of_feature(feature.index)):
        explained = [feature for feature in group if feature.explanations]
        if explained:
            with Part(run.explain(name, PUBLISHED), unit) as part:
                for feature in explained:
                    part.append(f"{name}/{feature.index}", _explanation(f"{name}/{feature.index}", feature))


def _explanation(key: str, feature: Published) -> Json:
    """The first that is there; `details` says of what type it is, and how many more came."""
    first = feature.explanations[0]
    record = Explanation(
        feature=key,
        explainer=PUBLISHED,
        status="ok",
        text=first["description"],
        label=None,
        llm=first.get("explanationModelName") or "unknown",
        prompts={},
        details={"type": first.get("typeName"), "n_others": len(feature.explanations) - 1},
    )
    left_out = ("feature", "refused_by")  # the key says the one, and nobody refused
    return {
        field.name: getattr(record, field.name)
        for field in dataclasses.fields(Explanation)
        if field.name not in left_out
    }


def _write_directions(run: Run, name: str, features: Sequence[Published], texts: TokenTexts) -> None:
    for unit, group in groupby(features, lambda feature: unit_of_feature(feature.index)):
        known = [(feature, found) for feature in group if (found := _directions(feature, texts)) is not None]
        if known:
            with Part(run.directions(name), unit) as part:
                for feature, directions in known:
                    part.append(f"{name}/{feature.index}", dataclasses.asdict(directions))


def _directions(feature: Published, texts: TokenTexts) -> Directions | None:
    promoted = _effects(feature.neuron, "pos", texts)
    suppressed = _effects(feature.neuron, "neg", texts)
    if promoted is None and suppressed is None:
        return None
    return Directions(neighbours=(), similarity=(), promoted=promoted, suppressed=suppressed)


def _effects(neuron: Json, side: str, texts: TokenTexts) -> TokenEffects | None:
    tokens: list[str] = neuron.get(f"{side}_str") or []
    if not tokens:
        return None
    ids = tuple(texts.ids([token])[0] for token in tokens)
    return TokenEffects(ids, tuple(map(float, neuron[f"{side}_values"])))


# --- what a reader must know ---------------------------------------------------------------------------


def _of_windows(counts: Counts, texts: TokenTexts, run: Run) -> Iterator[str]:
    n_used = counts.n_windows - counts.n_repeated - counts.n_empty
    yield (
        f"{counts.n_windows:,} windows were published: {n_used:,} texts of their features, {counts.n_repeated:,} "
        f"that repeat one of these; {counts.n_silent:,} are silent. Windows of {run.recipe.sampling.width} tokens "
        f"are cut from them"
    )
    if counts.n_empty or counts.n_at_front:
        yield (
            f"a token in front of the text is no part of it: {counts.n_empty:,} windows held nothing else, and "
            f"{counts.n_at_front:,} fire on it"
        )
    yield (
        "silent windows are also of other features, where a random window of this one's is silent with p >= 0.9 "
        "(each feature's is in `show`); whether it is on these nobody looked at"
    )
    if texts.n_spelled:
        yield (
            f"{texts.n_spelled:,} of {texts.n_sequences:,} lists of tokens spell characters byte by byte ('âĢ', "
            f"'Ļ'): they are read as the text that they stand for; exports keep them as they are"
        )


def _of_sources(found: Sequence[_Found]) -> Iterator[str]:
    for one in found:
        if one.n_explained:
            yield f"{one.name}: {one.n_explained:,} features came with an explanation, by explainer '{PUBLISHED}'"
        if not (one.source.said.get("num_prompts") and one.source.said.get("num_tokens_in_prompt")):
            yield (
                f"{one.name}: how many tokens were looked at is not said; counts of firings are of {PER:,} tokens"
            )
