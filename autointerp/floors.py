"""A run's scores beside those of its control runs (`controls.py`), as a table that is kept in the run's folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Final

import orjson
import pydantic

from autointerp.errors import RunError
from autointerp.files import write_atomically
from autointerp.metrics import MeanOver
from autointerp.metrics.differences import Difference, unpaired
from autointerp.run import Run
from autointerp.scored import Instance, instances, pooled, scored
from autointerp.sections import fault

CONTROLS: Final = "controls.json"
"""In the folder of the run that is compared."""


@dataclass(frozen=True, slots=True)
class Floor:
    """One control's score beside the real one."""

    control: str
    mean: MeanOver | None
    """None where none of its features could be scored."""
    n_asked: int
    above: Difference | None
    """Real minus control. Unpaired: features of the same number have nothing else in common."""


@dataclass(frozen=True, slots=True)
class Row:
    """One instance of a run and its floors."""

    instance: Instance
    headline: str
    real: MeanOver | None
    n_asked: int
    floors: list[Floor] = field(default_factory=list[Floor])


def table(run: Run, controls: dict[str, Run]) -> list[Row]:
    """Every instance of the run with its floors; intervals are over features and documents. Memory: a number a
    score."""
    seed = run.recipe.seed
    rows: list[Row] = []
    for instance in instances(run):
        real, purpose = pooled(run, instance), f"{instance.explainer} {instance.scorer}"
        row = Row(
            instance,
            scored(run, instance).headline,
            real.mean(seed=seed, purpose=purpose),
            len(run.asked(instance.dictionary)),
        )
        for name, control in controls.items():
            floor = pooled(control, instance)
            row.floors.append(
                Floor(
                    name,
                    floor.mean(seed=seed, purpose=purpose),
                    len(control.asked(instance.dictionary)),
                    unpaired(real, floor, seed=seed, purpose=purpose),
                )
            )
        rows.append(row)
    return rows


def save(run: Run, rows: list[Row]) -> None:
    """Keeps the table in the run's folder. Raises DiskFull."""
    content = [dataclasses.asdict(row) for row in rows]
    write_atomically(run.path / CONTROLS, orjson.dumps(content, option=orjson.OPT_INDENT_2))


def load(run: Run) -> list[Row]:
    """What `save` kept; none where no control was run. Raises RunError."""
    path = run.path / CONTROLS
    if not path.is_file():
        return []
    try:
        return pydantic.TypeAdapter(list[Row]).validate_json(path.read_bytes())
    except pydantic.ValidationError as error:
        raise RunError(
            f"{path} can't be read ({fault(error.errors()[0])}). Delete it, or make it anew: "
            f"autointerp controls {run.path}"
        ) from error
