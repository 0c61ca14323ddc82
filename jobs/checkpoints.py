"""Teachers that exist: safetensors files that a user sent, checked by their header alone."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from sqlalchemy import select
from sqlalchemy.orm import Session

from ddcore.errors import DdcoreError, Problem
from ddcore.networks.shapes import Shapes, expected_shapes
from ddcore.specs import BackboneSpec
from jobs.database import now
from jobs.errors import NotFound
from jobs.ids import new_id
from jobs.models import Artifact
from jobs.store import Blob, Store

KINDS = ("checkpoint", "teacher")  # a teacher that a job trained may be given to another
LOC = ("teacher", "checkpoint")
MOST_NAMED = 3  # tensors that a message lists


def read_checkpoint(store: Store, path: Path, name: str) -> Blob:
    """Check the safetensors file at `path` and put it in the store; slow, so no transaction may be open.

    Raises `DdcoreError` bad_checkpoint, `StoreFull`.
    """
    if not shapes_in(path):
        raise DdcoreError("bad_checkpoint", f"{name} holds no tensors", "save the backbone's state dict with safetensors")
    return store.put(path, name=name)


def add_checkpoint(session: Session, blob: Blob, name: str) -> Artifact:
    """Add the artifact of a checkpoint that is in the store; the same bytes again are the same artifact."""
    here = select(Artifact).where(Artifact.sha256 == blob.sha256, Artifact.kind == "checkpoint", Artifact.step_id.is_(None))
    artifact = session.scalars(here).first()
    if artifact is None:
        fields = {"name": name, "kind": "checkpoint", "media_type": "application/octet-stream", "sha256": blob.sha256, "size": blob.size}
        artifact = Artifact(id=new_id("art"), created_at=now(session), **fields)
        session.add(artifact)
        session.flush()
    return artifact


def shapes_in(path: Path) -> Shapes:
    """Name and shape of each tensor of a safetensors file. Raises `DdcoreError` bad_checkpoint."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise DdcoreError("bad_checkpoint", f"not a safetensors file: {error}", "save the state dict with safetensors") from error


def shapes_stored(store: Store, sha256: str) -> Shapes:
    """Name and shape of each tensor of a stored file that was checked when it came; only its header is read. Raises `NotFound`."""
    length = int.from_bytes(b"".join(store.pieces(sha256, 0, 8)), "little")
    header = json.loads(b"".join(store.pieces(sha256, 8, length)))
    return {name: tuple(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}


def resolve(
    session: Session, store: Store, artifact_id: str, backbone: BackboneSpec, image_shape: tuple[int, int, int], known: dict[str, Shapes]
) -> tuple[str | None, list[Problem]]:
    """The sha256 of a checkpoint that fits `backbone` on images of this shape; or None, and why not.

    known: what `shapes_stored` told of some files a moment ago; it is added to, and the store is asked for no others.
    """
    artifact = session.get(Artifact, artifact_id)
    if artifact is None or artifact.kind not in KINDS or not artifact.name.endswith(".safetensors"):
        allowed = "the id of an uploaded safetensors checkpoint, or of a job's teacher.safetensors"
        return None, [Problem(LOC, "there is no such checkpoint", artifact_id, allowed)]
    try:
        if artifact.gone_at is not None:
            raise NotFound("file", artifact.sha256)
        if artifact.sha256 not in known:
            known[artifact.sha256] = shapes_stored(store, artifact.sha256)
    except NotFound:
        return None, [Problem(LOC, "the file of this checkpoint is gone from the store", artifact_id, "upload it again")]
    channels, height, width = image_shape
    expected = expected_shapes(backbone, channels, (height, width))
    misfits = [] if expected is None else _misfits(expected, known[artifact.sha256])
    if misfits:
        more = f", and {len(misfits) - MOST_NAMED} more" if len(misfits) > MOST_NAMED else ""
        message = f"does not fit backbone {backbone.name}: {'; '.join(misfits[:MOST_NAMED])}{more}"
        allowed = "a state dict of this backbone; its width, depth and the images' channels must match"
        return None, [Problem(LOC, message, artifact_id, allowed)]
    return artifact.sha256, []


def _misfits(expected: Shapes, given: Shapes) -> list[str]:
    """What is missing or of another shape. Counters of batch norm do not matter, nor do tensors of a head."""
    wrong = []
    for name, shape in expected.items():
        if name not in given:
            wrong += [] if name.endswith("num_batches_tracked") else [f"{name} is missing"]
        elif given[name] != shape:
            wrong.append(f"{name} is {list(given[name])}, not {list(shape)}")
    return wrong
