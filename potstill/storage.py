"""Commands about files that are kept: make room, and pin what must stay."""

import argparse
from typing import Any

from rich.table import Table

from potstill.client import Client
from potstill.terminal import console, say

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def gc(a: argparse.Namespace) -> None:
    with Client(a.url, timeout=600.0) as client:
        found = client.gc(dry_run=a.dry_run, unused_days=a.unused_days)
    _show(found)


def _show(found: dict[str, Any]) -> None:
    dry = found["dry_run"]
    if found["unneeded"]:
        out = Table("kind", "files", "size", "oldest", box=None)
        for share in found["unneeded"]:
            out.add_row(share["kind"], f"{share['files']:,}", size(share["bytes"]), share["oldest"][:10])
        console.print(out)
        say(f"{'Would let go of' if dry else 'Let go of'} {_amount(found['files'], found['bytes'])}.")
    else:
        say("Nothing new to let go of.")
    if found["deleted_files"]:
        say(
            f"{'Would delete' if dry else 'Deleted'} {_amount(found['deleted_files'], found['deleted_bytes'])} that had waited for an hour."
        )
    if found["condemned_files"]:
        say(f"Waiting: {_amount(found['condemned_files'], found['condemned_bytes'])}. What is let go of is deleted an hour later.")


def pin(a: argparse.Namespace) -> None:
    with Client(a.url) as client:
        job = client.pin(a.job)
    say(f"{job['id']} is pinned: the files of all its steps stay")


def unpin(a: argparse.Namespace) -> None:
    with Client(a.url) as client:
        job = client.pin(a.job, pinned=False)
    say(f"{job['id']} is not pinned: its files stay as long as others of their kind")


def _amount(files: int, length: int) -> str:
    return f"{files:,} file{'' if files == 1 else 's'} ({size(length)})"


def size(length: float) -> str:
    """Bytes in a unit that a person reads."""
    for unit in _UNITS[:-1]:
        if length < 1000:
            return f"{length:.1f} {unit}" if unit != "bytes" else f"{length:.0f} bytes"
        length /= 1000
    return f"{length:.1f} {_UNITS[-1]}"
