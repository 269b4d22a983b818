"""What pushing features does, as rows of the published table `effects`, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from autointerp.effects import Effects, Scene, read_effects
from autointerp.sampling.store import Windows
from autointerp.stages.evidence import scene_texts
from autointerp.subject.vocabulary import Vocabulary
from autointerp.types import Json, TokenEffects, Window

SCENES: Final = ("shown", "select", "heldout", "ablated")
"""Values of `split`. `ablated` has prompts of held-out windows too, from which the feature is taken away."""
_OF_STEERED: Final = ("arm", "target_kl", "status", "strength", "kl")


def effect_rows(
    key: str, record: Json, windows: Windows, vocabulary: Vocabulary, *, with_prompts: bool
) -> Iterator[tuple[Json, str]]:
    """(values, the text in them) of each split; of a feature that was not pushed one row without a split.
    `with_prompts`: whether what is continued is quoted in full."""
    effects: Effects = read_effects(record)
    head: Json = {"feature": key, "status": effects.status, "other": effects.other}
    scenes: dict[str, Scene | None] = {name: getattr(effects, name) for name in SCENES}
    if not any(scenes.values()):
        yield head, ""
    for name, scene in scenes.items():
        if scene is not None:
            of_split = (
                windows.shown if name == "shown" else windows.select if name == "select" else windows.heldout
            )
            values = _scene(scene, of_split(key).active, vocabulary)
            if not with_prompts:
                values["prompts"] = None
            texts = [*(values["prompts"] or ()), *values["clean"]]
            texts += [
                text for one in values["steered"] for text in (*one["texts"], *one["raised"], *one["lowered"])
            ]
            yield head | {"split": name} | values, "\n".join(texts)


def _scene(scene: Scene, active: Sequence[Window], vocabulary: Vocabulary) -> Json:
    told = scene_texts(scene, active, vocabulary)
    steered: list[Json] = []
    for one, said in zip(scene.steered, told.steered, strict=True):
        row: Json = {name: getattr(one, name) for name in _OF_STEERED}
        row |= {"texts": list(said.texts), "text_ids": one.texts}
        row |= {"raised": list(said.raised), "lowered": list(said.lowered)}
        row |= _numbers("raised", one.raised) | _numbers("lowered", one.lowered)
        steered.append(row)
    return {
        "windows": scene.windows,
        "begins": scene.begins,
        "ends": scene.ends,
        "prompts": list(told.prompts),
        "clean": list(told.clean),
        "clean_ids": scene.clean,
        "steered": steered,
    }


def _numbers(name: str, tokens: TokenEffects) -> Json:
    return {f"{name}_ids": list(tokens.ids), f"{name}_effects": list(tokens.effects)}


def effects_record(rows: Sequence[Json]) -> Json:
    """The record that the rows of one feature were made of."""
    record: Json = {"status": rows[0]["status"], "other": rows[0]["other"], **dict.fromkeys(SCENES)}
    for row in rows:
        if row["split"] is not None:
            record[row["split"]] = {
                **{name: row[name] for name in ("windows", "begins", "ends")},
                "clean": row["clean_ids"],
                "steered": [_steered(one) for one in row["steered"]],
            }
    return record


def _steered(row: Json) -> Json:
    tokens = {
        name: {"ids": row[f"{name}_ids"], "effects": row[f"{name}_effects"]} for name in ("raised", "lowered")
    }
    return {name: row[name] for name in _OF_STEERED} | tokens | {"texts": row["text_ids"]}
