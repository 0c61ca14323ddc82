"""Commands about files that are kept: make room, look whether they are whole, and pin what must stay."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from potstill.client import Client
from potstill.terminal import console, say

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def gc(a: argparse.Namespace) -> None:
    with Client(a.url) as client, _walk("collecting") as on_part:
        found = client.gc(dry_run=a.dry_run, unused_days=a.unused_days, on_part=on_part)
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


def verify(a: argparse.Namespace) -> int:
    def show(part: dict[str, Any]) -> None:
        on_part(part)
        for trouble in ("damaged", "missing"):
            for file in part[trouble]:
                say(f"{trouble}: {', '.join(map(_named, file['named_by'])) or 'a file that nothing needs'} ({file['sha256'][:12]})")

    with Client(a.url) as client, _walk("reading") as on_part:
        found = client.verify(on_part=show)
    damaged, missing = len(found["damaged"]), len(found["missing"])
    say(f"Read {_amount(found['files'], found['bytes'])}: {damaged:,} damaged, {missing:,} missing.")
    if damaged:
        say("What was damaged is set aside, and made again when a job needs it; potstill clone JOB posts one that needs the same results.")
    return 1 if damaged or missing else 0


def _named(by: dict[str, Any]) -> str:
    of = f"step {by['step']} of {by['job_id']}" if by["job_id"] else "sent by a user: send it again"
    return escape(f"{by['name']} {by['id']}, {of}")


@contextmanager
def _walk(what: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Shows how far a walk through the store is: names are hashes, so the place of the last tells the part of all."""
    columns = (TextColumn("{task.description}"), BarColumn(30), TaskProgressColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=1.0)

        def on_part(part: dict[str, Any]) -> None:
            last = part["next_cursor"] or "f"
            bar.update(task, completed=int(last, 16) / 16 ** len(last) if part["has_more"] else 1.0)

        yield on_part


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
