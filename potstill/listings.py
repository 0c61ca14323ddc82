"""Commands that list what the service knows."""

import argparse

from rich.markup import escape
from rich.table import Column, Table

from potstill.client import Client
from potstill.terminal import console

ID_LENGTH = 30  # characters of an id, at most


def datasets(a: argparse.Namespace) -> None:
    name, shape = Column("name", overflow="fold", min_width=16), Column("shape", overflow="fold")
    out = Table(_id_column(), name, "state", "images", "classes", shape, box=None, padding=(0, 1, 0, 0))
    with Client(a.url) as client:
        for one in client.datasets():
            size = "x".join(map(str, one["image_shape"] or []))
            out.add_row(one["id"], one["name"], one["state"], str(one["num_images"] or ""), str(one["num_classes"] or ""), size)
    console.print(out)


def presets(a: argparse.Namespace) -> None:
    out = Table("preset", "dataset", "images", "teacher", "experts", "method", box=None)
    ready = Table("sweep", "variants", "distillations of each", box=None)
    with Client(a.url) as client:
        found = client.get("/presets")
        for one in found["sweeps"]:
            ready.add_row(one["name"], ", ".join(one["variants"]), str(one["spec"]["seeds"]))
        for one in found["data"]:
            spec = one["spec"]
            out.add_row(
                one["name"],
                spec["dataset"],
                str(spec["num_images"]),
                spec["teacher"]["ssl"],
                str(spec["experts"]["num"]),
                spec["method"]["name"],
            )
    console.print(out)
    console.print(ready)


def jobs(a: argparse.Namespace) -> None:
    with Client(a.url) as client:
        found = client.jobs(kind=a.kind, state=a.state, label=a.label, owner=a.owner, limit=a.limit)
    several = len({job["owner"] for job in found}) > 1
    owner, created = ["owner"] if several else [], Column("created", min_width=10)  # a date is not cut short
    out = Table(_id_column(), "kind", "state", "prio", *owner, "phase", created, box=None, padding=(0, 1, 0, 0))
    for job in found:
        at = job["created_at"][:19].replace("T", " ")
        named = [escape(job["owner"])] if several else []
        out.add_row(job["id"], job["kind"], job["state"], str(job["priority"]), *named, escape(job["phase"] or ""), at)
    console.print(out)


def _id_column() -> Column:
    """Never cut short: it is there to be copied."""
    return Column("id", no_wrap=True, min_width=ID_LENGTH)
