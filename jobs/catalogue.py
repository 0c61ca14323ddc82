"""The datasets: built-ins by name, uploads by the digest of their bytes."""

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from ddcore.checks import DatasetFacts, digest
from ddcore.data import builtins
from ddcore.data.archives import ArchiveFacts, Limits, inspect
from ddcore.errors import DdcoreError
from ddcore.plan import plan_dataset
from jobs.bodies import Error
from jobs.database import lock_graph, now
from jobs.errors import UnknownDataset
from jobs.ids import new_id
from jobs.models import LIVE_STEP, Artifact, Dataset, Step
from jobs.store import Blob, Store
from jobs.submit import add_steps, decide

LONGEST_NAME = 200


@dataclass(frozen=True)
class Upload:
    """An archive whose bytes are in the store and whose names and headers have been read."""

    blob: Blob
    facts: ArchiveFacts


@dataclass(frozen=True)
class DatasetState:
    """available: known, not read yet. validating: being read. ready: its tensor file is there. rejected: it cannot be read."""

    state: Literal["available", "validating", "ready", "rejected"]
    error: Error | None = None


def ensure_builtins(session: Session) -> None:
    """Write a row for each built-in that has none. The id is made of the name, so it is the same in every installation."""
    lock_graph(session)
    there = set(session.scalars(select(Dataset.id).where(Dataset.origin == "builtin")))
    for name in builtins.BUILTINS:
        if f"ds_{name}" not in there:
            session.add(_row(session, f"ds_{name}", builtins.facts(name), "builtin", None))
    session.flush()


def read_upload(store: Store, path: Path, max_images: int | None = None) -> Upload:
    """Check the archive at `path` and put it in the store; slow, so no transaction may be open.

    Raises `DdcoreError` bad_dataset, `StoreFull`.
    """
    limits = Limits() if max_images is None else Limits(images=max_images)
    facts = inspect(path, limits)
    return Upload(store.put(path), facts)


def look(session: Session, store: Store, upload: Upload) -> set[str]:
    """Files in the store that `add_upload` would look for while others wait."""
    return decide(session, store, plan_dataset(_facts(upload, ""))).found


def add_upload(session: Session, store: Store, upload: Upload, name: str, *, max_attempts: int = 3, found: Collection[str] = ()) -> Dataset:
    """Add a dataset and the step that reads it. The same bytes again are the same dataset, read again if it was rejected.

    It keeps its first name, and is found by the new one as well: each name given to the bytes leaves an artifact of kind archive.
    Raises `DdcoreError` bad_dataset for a name that cannot be used. found: by `look`, a moment ago.
    """
    lock_graph(session)
    _check_name(name)
    facts = _facts(upload, name)
    dataset = session.scalar(select(Dataset).where(Dataset.digest == facts.digest))
    if dataset is None:
        dataset = _row(session, new_id("ds"), facts, "upload", upload.facts.classes)
        session.add(dataset)
        session.flush()
    if _uploaded(session, name) is not dataset:
        blob = {"sha256": upload.blob.sha256, "size": upload.blob.size}
        session.add(Artifact(id=new_id("art"), name=name, kind="archive", media_type="application/zip", created_at=now(session), **blob))
        session.flush()
    plan = plan_dataset(facts)
    fates = decide(session, store, plan, found=found)
    add_steps(session, plan, fates, priority=0, max_attempts=max_attempts)
    return dataset


def _facts(upload: Upload, name: str) -> DatasetFacts:
    read = upload.facts
    return DatasetFacts(name, {"archive": upload.blob.sha256}, read.num_images, read.image_shape, read.class_counts)


def find(session: Session, ref: str) -> Dataset:
    """The dataset with this id, else the latest upload with this name, else the built-in. Raises `UnknownDataset`.

    Who uploads their copy of a public data set under its usual name means that copy from then on.
    """
    builtin = select(Dataset).where(Dataset.origin == "builtin", Dataset.name == ref)
    dataset = session.get(Dataset, ref) or _uploaded(session, ref) or session.scalar(builtin)
    if dataset is None:
        names = session.scalars(select(Dataset.name).distinct())
        raise UnknownDataset(ref, difflib.get_close_matches(ref, list(names), n=5, cutoff=0.4))
    return dataset


def _uploaded(session: Session, name: str) -> Dataset | None:
    """The dataset of the latest upload under this name."""
    archives = select(Artifact.sha256).where(Artifact.step_id.is_(None), Artifact.name == name, Artifact.kind == "archive")
    sha256 = session.scalar(archives.order_by(Artifact.id.desc()).limit(1))
    return None if sha256 is None else session.scalar(select(Dataset).where(Dataset.digest == digest({"archive": sha256})))


def facts(dataset: Dataset) -> DatasetFacts:
    """What planning needs of it."""
    channels, height, width = dataset.image_shape
    counts = None if dataset.class_counts is None else tuple(dataset.class_counts)
    return DatasetFacts(dataset.name, dataset.source, dataset.num_images, (channels, height, width), counts)


def state(session: Session, dataset: Dataset) -> DatasetState:
    """What the latest step that read it tells."""
    return states(session, [dataset])[dataset.id]


def states(session: Session, datasets: Collection[Dataset]) -> dict[str, DatasetState]:
    """`state` of many, by id, with one query."""
    rows = select(Step).where(Step.key.in_({dataset.step_key for dataset in datasets})).order_by(Step.id)
    latest = {step.key: step for step in session.scalars(rows)}
    return {dataset.id: _state(dataset, latest.get(dataset.step_key)) for dataset in datasets}


def _state(dataset: Dataset, step: Step | None) -> DatasetState:
    if step is None or step.state == "cancelled" or step.lost_at is not None:
        return DatasetState("available")
    if step.state in LIVE_STEP:
        return DatasetState("validating")
    if step.state == "succeeded":
        return DatasetState("ready")
    error = Error(code=step.error_code or "internal", detail=step.error_detail or "", hint=step.error_hint or "")
    # A built-in that could not be fetched today may be fetched tomorrow.
    return DatasetState("available" if dataset.origin == "builtin" else "rejected", error)


def _check_name(name: str) -> None:
    if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        raise DdcoreError("bad_dataset", f"{name!r} cannot name a dataset", f"1 to {LONGEST_NAME} printable characters")
    if name.startswith("ds_"):
        raise DdcoreError("bad_dataset", f"the name {name!r} looks like an id", "choose another name")


def _row(session: Session, id: str, facts: DatasetFacts, origin: str, classes: Collection[str] | None) -> Dataset:
    (step,) = plan_dataset(facts)
    return Dataset(
        id=id,
        name=facts.name,
        digest=facts.digest,
        origin=origin,
        source=facts.source,
        num_images=facts.num_images,
        image_shape=list(facts.image_shape),
        classes=None if classes is None else list(classes),
        class_counts=None if facts.class_counts is None else list(facts.class_counts),
        step_key=step.key,
        created_at=now(session),
    )
