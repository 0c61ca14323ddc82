"""Reading what one iteration of matching needs of the experts, two snapshots, against loading the file that holds them.

The file holds one expert's snapshots 0 to 20. Read are a start, drawn evenly from 0 to 18, and the goal two snapshots later, drawn anew
each time and from the same seed in every run. From the mapped file and from the device's memory any of them costs the same. From bfloat16
differences snapshot t is the first one and a sum of t differences, so that a window costs from 2 (start 0) to 38 (start 18) of them, 20
on average: the quartiles of that row are wide, and a few pairs may be far from its median. Early windows, as `max_start_epoch` asks for,
are the cheap ones.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.output import between, table
from benchmarks.pairs import Pairs, clocked, interleave
from ddcore.experts.store import Storage, Trajectories, write_trajectories
from ddcore.task import generator

SNAPSHOTS, SPAN = 21, 2  # of one expert, 113 MB for the published student; epochs from start to goal


def reads(parameters: int, device: torch.device, repeats: int | None, seconds: float) -> list[dict[str, Any]]:
    """One row for each way to read: from the mapped file, as bfloat16 differences, and from the device's memory if that is a GPU.

    Both sides touch every byte of start and goal; the files are in the page cache.
    """
    random = generator(0, "reads")
    path = torch.randn(1, SNAPSHOTS, parameters, generator=random).mul_(0.01).cumsum(1)
    rows = []
    with tempfile.TemporaryDirectory(prefix="potstill-") as folder:
        pickled = Path(folder, "replay_buffer.pt")
        torch.save(list(path[0]), pickled)
        ways: list[tuple[str, Storage, int]] = [("mapped", "float32", 0), ("bf16 differences", "bf16_deltas", 0)]
        if device.type == "cuda":
            ways.append(("resident", "float32", path.nbytes))
        for name, storage, budget in ways:
            shard = Path(folder, storage)
            shard.mkdir(exist_ok=True)
            write_trajectories(shard, path, storage, "{}")
            pairs = _compared(pickled, Trajectories([shard], device, budget), device, repeats, seconds / len(ways))
            rows.append({"read": name, "parameters": parameters, "file_bytes": pickled.stat().st_size} | pairs.report())
    return rows


def _compared(pickled: Path, experts: Trajectories, device: torch.device, repeats: int | None, seconds: float) -> Pairs:
    random = generator(0, "windows")

    def window() -> int:
        return int(torch.randint(SNAPSHOTS - SPAN, (), generator=random))

    def whole() -> None:
        snapshots, first = torch.load(pickled, weights_only=True), window()
        torch.dot(snapshots[first].to(device), snapshots[first + SPAN].to(device))

    def ours() -> None:
        first = window()
        torch.dot(experts.row(0, first), experts.row(0, first + SPAN))

    return interleave(clocked(whole, device), clocked(ours, device), repeats, seconds)


def reads_table(rows: list[dict[str, Any]]) -> str:
    heads = ("start and goal", "whole file ms", "ours ms", "ratio [quartiles]", "n")
    return table(heads, [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    times = (f"{row['baseline_ms']:,.1f}", f"{row['ms']:,.2f}")
    return row["read"], *times, between(row["time_ratio"], row["time_ratio_quartiles"]), str(row["n_pairs"])
