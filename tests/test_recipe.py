"""Recipes: what parses, what is refused and how it is said, and what survives a round trip."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from autointerp.errors import RecipeError, UnknownName
from autointerp.recipe import Recipe, dump, merge, parse, read_file, setting, to_mapping
from autointerp.sections import instance

DEMO = {"dictionaries": {"auto": {"path": "demo"}}}


def faults(mapping: object) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse(mapping)  # type: ignore[arg-type]
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_a_recipe_round_trips_through_yaml() -> None:
    recipe = parse(DEMO | {"corpus": {"path": "stdlib"}, "sampling": {"shares": [0.5, 0.1, 0.4]}})
    assert parse(yaml.safe_load(dump(recipe))) == recipe
    assert parse(to_mapping(recipe)) == recipe


def test_every_fault_is_listed_with_its_place() -> None:
    found = faults(
        {
            "dictionaries": {"a b": {"path": "x"}},
            "sampling": {"n_shwn": 3, "width": 1},
            "sample": {},
            "scorers": {"d": {"use": "detecton"}, "f": {"use": "fuzzing", "treshold": 0.1}},
            "llms": {"judge": {"use": "openai", "modle": "x"}},
        }
    )
    assert "sampling.n_shwn: no such key. Did you mean 'n_shown'?" in found
    assert "sample: no such key. Did you mean 'sampling'?" in found
    assert "sampling.width: at least 2 (found 1)" in found
    assert any(line.startswith("scorers.d: no scorer is called 'detecton'. Did you mean") for line in found)
    assert "scorers.f: no option 'treshold'. Did you mean 'threshold'?" in found
    assert "llms.judge: no option 'modle'. Did you mean 'model'?" in found
    assert any(line.startswith("dictionaries.a b:") for line in found)


def test_a_wrong_type_says_what_was_found() -> None:
    (line,) = faults(DEMO | {"cache": {"n_tokens": "many"}})
    assert line.startswith("cache.n_tokens:") and "'many'" in line


def test_what_sampling_does_not_know_is_said_with_what_it_does() -> None:
    with pytest.raises(RecipeError) as caught:
        parse({"dictionaries": {"a": {"path": "x"}}, "sampling": {"active_above": "10%", "n_same_token": -1}})
    assert "'10% of maximum' or 'quantile 0.9' (found '10%')" in str(caught.value)
    assert "sampling.n_same_token: at least 0 (found -1)" in str(caught.value)
    given = parse({"dictionaries": {"a": {"path": "x"}}, "sampling": {"active_above": "quantile 0.5"}})
    assert given.sampling.active_above == "quantile 0.5"


def test_features_exclude_each_other() -> None:
    (line,) = faults(DEMO | {"features": {"n": 3, "first": 4}})
    assert "exclude" in line


def test_a_plug_in_without_options_says_so() -> None:
    (line,) = faults(DEMO | {"llms": {"judge": {"use": "lexical", "model": "m"}}})
    assert line == "llms.judge: no option 'model'. It has none."


def test_no_dictionary_names_the_way() -> None:
    (line,) = faults({})
    assert "--sae" in line


def test_merging_keeps_what_is_not_named_and_replaces_other_plugins() -> None:
    base = {"sampling": {"width": 16, "n_shown": 3}, "explainers": {"a": {"use": "plain", "threshold": 0.2}}}
    merged = merge(base, {"sampling": {"n_shown": 4}, "explainers": {"a": {"threshold": 0.5}}})
    assert merged["sampling"] == {"width": 16, "n_shown": 4}
    assert merged["explainers"] == {"a": {"use": "plain", "threshold": 0.5}}
    assert merge(base, {"explainers": {"a": {"use": "lexical"}}})["explainers"] == {"a": {"use": "lexical"}}
    assert merge({"features": {"n": 3}}, {"features": {"first": 4}}) == {"features": {"first": 4}}


def test_a_backend_and_then_its_model_are_one_section_and_another_model_is_another() -> None:
    """As `--set llms.judge.use=openai --set llms.judge.model=M` say it."""
    judge = merge({"judge": {"use": "openai"}}, {"judge": {"model": "a", "temperature": 1}})
    assert judge == {"judge": {"use": "openai", "model": "a", "temperature": 1}}
    assert merge(judge, {"judge": {"use": "openai", "model": "b"}}) == {
        "judge": {"use": "openai", "model": "b"}
    }


@pytest.mark.parametrize(
    ("text", "mapping"),
    [
        ("a.b=1", {"a": {"b": 1}}),
        ("a=null", {"a": None}),
        ("a.b.c=[1, 2]", {"a": {"b": {"c": [1, 2]}}}),
        ("a=x=y", {"a": "x=y"}),
    ],
)
def test_settings_are_yaml(text: str, mapping: object) -> None:
    assert setting(text) == mapping


@pytest.mark.parametrize("text", ["a", "=1", "a={"])
def test_settings_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="--set"):
        setting(text)


def test_a_recipe_file_that_is_not_there_offers_the_shipped_ones() -> None:
    with pytest.raises(UnknownName, match="default"):
        read_file("defualt")
    assert "sampling" in read_file("default")


def test_the_shipped_default_is_the_default() -> None:
    """What `pipelines/default.yaml` writes out is what the code does without it."""
    assert parse(merge(read_file("default"), DEMO)) == parse(DEMO)


def test_an_outside_plugin_is_reached_by_its_module() -> None:
    assert (
        type(instance("scorers", {"use": "autointerp.scorers.detection:Detection"})).__name__ == "Detection"
    )
    with pytest.raises(RecipeError, match="no module"):
        instance("scorers", {"use": "nowhere.at_all:Thing"})
    with pytest.raises(RecipeError, match="nothing called"):
        instance("scorers", {"use": "autointerp.scorers.detection:Thing"})


@given(st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.text(max_size=5), max_size=5))
def test_any_mapping_parses_or_is_refused_with_a_message(mapping: dict[str, object]) -> None:
    try:
        assert isinstance(parse(DEMO | mapping), Recipe)
    except RecipeError as error:
        assert "the recipe can't be run" in str(error)
