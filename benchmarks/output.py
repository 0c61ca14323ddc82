"""What a benchmark prints: facts of the machine, a table for a person, and last one line of JSON for a program."""

import json
from collections.abc import Sequence
from typing import Any


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns set flush right."""
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (heads, *rows))


def facts_line(facts: dict[str, Any]) -> str:
    """The machine's facts for a person."""
    return "; ".join(f"{name} {value}" for name, value in facts.items())


def between(median: float, quartiles: Sequence[float]) -> str:
    """A median and its quartiles."""
    return f"{median:.3f} [{quartiles[0]:.3f}, {quartiles[1]:.3f}]"


def finish(result: dict[str, Any]) -> None:
    """Print the last line."""
    print(json.dumps(result), flush=True)
