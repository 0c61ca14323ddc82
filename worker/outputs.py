"""What the files are that a finished step leaves behind: their kind and media type, by their names."""

import mimetypes
from collections.abc import Iterable

_KINDS = {
    "dataset.safetensors": "dataset",
    "teacher.safetensors": "teacher",
    "targets.safetensors": "targets",
    "trajectory.safetensors": "trajectories",
    "experts.safetensors": "trajectories",
    "synthetic.safetensors": "synthetic_set",
    "preview.png": "preview",
    "report.json": "report",
    "report.md": "report",
    "ranking.md": "report",
    "observations.json": "observations",
    "observations.parquet": "observations",
    "rates.json": "rates",
    "scores.json": "scores",
    "history.json": "history",
}
_MEDIA = {
    ".safetensors": "application/octet-stream",
    ".pt": "application/octet-stream",
    ".parquet": "application/vnd.apache.parquet",
    ".md": "text/markdown",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".png": "image/png",
    ".zip": "application/zip",
}


def kinds_of(names: Iterable[str]) -> dict[str, str]:
    """The artifact kind of each file of one step. A picture is a plot, and so is the JSON that has the picture's name."""
    listed = sorted(names)
    drawn = {name.removesuffix(".png") for name in listed if name.endswith(".png")}
    return {name: _KINDS.get(name) or _kind_by_ending(name, drawn) for name in listed}


def _kind_by_ending(name: str, drawn: set[str]) -> str:
    stem, _, ending = name.rpartition(".")
    if ending in ("png", "svg") or (ending == "json" and stem in drawn):
        return "plot"
    return "manifest" if ending == "json" else "export"


def media_type_of(name: str) -> str:
    ending = name[name.rfind(".") :] if "." in name else ""
    return _MEDIA.get(ending) or mimetypes.guess_type(name)[0] or "application/octet-stream"
