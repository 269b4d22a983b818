"""The recipe: everything a run depends on, as YAML, as `--set a.b=1`, and as frozen dataclasses.

parse(mapping) -> Recipe     all faults at once, each with its place and the nearest right name
dump(recipe) -> str          the YAML that parses to it
"""

from autointerp.recipe.fields import (
    DEFAULT_FEATURES,
    NAME,
    ActivationsSection,
    CacheSection,
    ControlKind,
    ControlSection,
    DictionarySection,
    FeatureSection,
    LLMSections,
    ModelSection,
    Recipe,
    Resources,
)
from autointerp.recipe.text import (
    check_shape,
    dump,
    merge,
    over_default_plugins,
    parse,
    read_file,
    setting,
    to_mapping,
)

__all__ = [
    "DEFAULT_FEATURES",
    "NAME",
    "ActivationsSection",
    "CacheSection",
    "ControlKind",
    "ControlSection",
    "DictionarySection",
    "FeatureSection",
    "LLMSections",
    "ModelSection",
    "Recipe",
    "Resources",
    "check_shape",
    "dump",
    "merge",
    "over_default_plugins",
    "parse",
    "read_file",
    "setting",
    "to_mapping",
]
