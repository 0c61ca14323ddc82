"""Everything that an observation found, as rows of one long table: a quantity, the path it belongs to, a step, a value."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

Row = dict[str, Any]  # quantity, path, step, value; and layer, where it is of one layer


def motion_rows(motion: dict[str, Any]) -> Iterator[Row]:
    """Of `Motion.to_json`: a value that belongs to a step from one snapshot to the next stands at the later one.

    The matrices of cosines between all steps are left to the figure's own numbers: they are no function of one step.
    """
    for name, path in motion["paths"].items():
        for quantity in ("distance_from_start", "step_length", "cosine_to_last_displacement"):
            yield from series(quantity, name, motion["step"], path[quantity])
        for layer, values in path["layer_displacement"].items():
            yield from ({**row, "layer": layer} for row in series("layer_displacement", name, motion["step"], values))
    for quantity, values in (motion["pair"] or {}).items():
        yield from series(quantity, "student and teacher", motion["step"], values)


def history_rows(path: str, history: dict[str, list[list[float]]]) -> Iterator[Row]:
    """Of the curves that a teacher's run kept: its loss, and for DINO the entropy and the divergence of its outputs."""
    for quantity, points in history.items():
        yield from series(f"training_{quantity}", path, [step for step, _ in points], [value for _, value in points])


def feature_rows(found: Iterable[Row]) -> Iterator[Row]:
    """Of `per_snapshot`."""
    for one in found:
        for quantity in ("knn", "rank", "cka_to_last"):
            yield {"quantity": quantity, "path": one["network"], "step": one["step"], "value": one[quantity]}


def noise_rows(path: str, found: dict[str, Any]) -> Iterator[Row]:
    """Of `noise_to_signal`."""
    for quantity in ("signal", "noise", "ratio", "deviation"):
        yield from series(f"runs_{quantity}", path, found["step"], found[quantity])


def series(quantity: str, path: str, steps: Sequence[int | float], values: Sequence[float | None]) -> Iterator[Row]:
    """One curve; values may begin later than steps, by the one snapshot that has none before it."""
    for step, value in zip(steps[len(steps) - len(values) :], values, strict=True):
        yield {"quantity": quantity, "path": path, "step": step, "value": value}


SCHEMA = pa.schema(
    [("quantity", pa.string()), ("path", pa.string()), ("layer", pa.string()), ("step", pa.float64()), ("value", pa.float64())]
)


def write_parquet(rows: Sequence[Row], path: Path) -> None:
    """One file of five columns; `layer` is null but for layers, `value` null where it is undefined. Equal rows give equal bytes."""
    columns = {name: [row.get(name) for row in rows] for name in SCHEMA.names}
    pa.parquet.write_table(pa.table(columns, schema=SCHEMA), path)
