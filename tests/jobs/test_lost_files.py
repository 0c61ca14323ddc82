"""Files that should be in the store and are not: found before they are missed, without keeping others waiting, and made again."""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from sqlalchemy import select, update

from ddcore.errors import SpecError
from ddcore.networks.shapes import expected_shapes
from ddcore.specs import BackboneSpec, SweepSpec
from jobs import catalogue, checkpoints, object_store, quota
from jobs.checkpoints import add_checkpoint, read_checkpoint, shapes_stored
from jobs.claims import claim
from jobs.create import Found, clone, create_distill, create_sweep, look, look_again, retry
from jobs.database import now
from jobs.models import Artifact, Step
from jobs.store import FolderStore, open_store
from jobs.submit import decide
from tests.conftest import Database, stand_in
from tests.jobs.harness import SMOKE, World, plan
from tests.object_server import ObjectServer

SMALL = BackboneSpec(name="convnet", width=8, depth=2)


@dataclass(frozen=True)
class Counted(FolderStore):
    """A folder that notes what it is asked for."""

    def missing(self, names: Collection[str]) -> set[str]:
        with (self.root / "asked").open("a") as notes:
            notes.write(json.dumps(sorted(names)) + "\n")
        return super().missing(names)

    def asked(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.root / "asked").read_text().splitlines()]


def test_files_are_looked_for_all_at_once_and_further_back_only_where_some_are_gone(world: World) -> None:
    made = plan("a", "b", "c<a,b", "d<a,b", "distill<c,d", "e<distill", "f<distill")
    first = world.submit(made)
    world.finish_job(first)
    store = Counted(world.store.root)
    fates = world.database.read(lambda s: decide(s, store, made, ["distill"]))
    assert set(fates.done) == {step.key for step in made}
    assert [len(asked) for asked in store.asked()] == [3], "those of distill, e and f, in one go"

    for name in ("distill", "c"):
        world.lose_files(first, name)
    (store.root / "asked").unlink()
    fates = world.database.read(lambda s: decide(s, store, made, ["distill"]))
    assert set(fates.new) == {made.steps[name].key for name in ("distill", "c")}
    assert [len(asked) for asked in store.asked()] == [3, 2, 2], "then those of c and d, then those of a and b"

    (store.root / "asked").unlink()
    known = world.database.read(lambda s: decide(s, store, made, ["distill"], fates.found))
    assert known.new.keys() == fates.new.keys()
    assert [len(asked) for asked in store.asked()] == [1, 1, 0], "what was found before is not asked for again"


def test_the_transaction_that_posts_a_job_asks_the_server_nothing(
    object_server: ObjectServer, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = object_server.settings(tmp_path / "home")
    store = open_store(settings)
    world = World(database, store, tmp_path)  # type: ignore[arg-type]
    first = database.write(lambda s: create_distill(s, store, SMOKE).id)
    world.finish_job(first)
    found = database.read(lambda s: look(s, store, SMOKE))
    assert found.files
    with deaf(monkeypatch):
        again = database.write(lambda s: create_distill(s, store, SMOKE, found=found).id)
        assert world.job(again).state == "succeeded"
        assert all(step.cached for step in world.job(again).steps)
    store.remove([next(iter(found.files))])
    third = database.write(lambda s: create_distill(s, store, SMOKE, found=database.read(lambda r: look(r, store, SMOKE))).id)
    assert [step.cached for step in world.job(third).steps].count(False) == 1
    world.set_job(third, "failed")
    assert set(database.read(lambda s: look_again(s, store, third)).files) < set(found.files)
    assert database.write(lambda s: retry(s, store, third, found=found).parent_id) == third


def test_a_checkpoint_that_many_variants_are_given_is_read_once_and_not_while_others_wait(
    object_server: ObjectServer, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(object_server.settings(tmp_path / "home"))
    path = tmp_path / "weights"
    save_file({name: np.zeros(shape, np.float32) for name, shape in (expected_shapes(SMALL, 1, (8, 8)) or {}).items()}, path)
    blob = read_checkpoint(store, path, "encoder.safetensors")
    given = database.write(lambda s: add_checkpoint(s, blob, "encoder.safetensors").id)
    spec = sweep(given)
    read: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "shapes_stored", lambda s, sha256, real=shapes_stored: read.append(sha256) or real(s, sha256))
        found = database.read(lambda s: look(s, store, spec))
    assert read == [blob.sha256]
    with deaf(monkeypatch):
        job_id = database.write(lambda s: create_sweep(s, store, spec, found=found).id)
        clone_id = database.write(lambda s: clone(s, store, job_id, found=found).id)
    assert World(database, store, tmp_path).job(clone_id).parent_id == job_id  # type: ignore[arg-type]
    database.write(lambda s: s.execute(update(Artifact).values(gone_at=now(s))))
    with pytest.raises(SpecError, match="gone from the store"):
        database.write(lambda s: create_sweep(s, store, spec, found=found).id)


def test_an_upload_that_is_there_already_asks_the_server_nothing_while_others_wait(
    object_server: ObjectServer, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(object_server.settings(tmp_path / "home"))
    world = World(database, store, tmp_path)  # type: ignore[arg-type]
    upload = catalogue.read_upload(store, stand_in(tmp_path / "mine.zip", classes=2, each=12))
    key = database.write(lambda s: catalogue.add_upload(s, store, upload, "mine").step_key)
    world.finish(database.write(lambda s: claim(s, s.scalars(select(Step.id).where(Step.key == key)).one(), "w")) or pytest.fail("no step"))
    found = database.read(lambda s: catalogue.look(s, store, upload))
    assert found
    with deaf(monkeypatch):
        again = database.write(lambda s: catalogue.add_upload(s, store, upload, "yours", found=found))
        assert database.read(lambda s: catalogue.state(s, again).state) == "ready"


def test_a_folder_needs_no_looking_ahead_but_for_what_it_holds(world: World) -> None:
    world.finish_job(world.database.write(lambda s: create_distill(s, world.store, SMOKE).id))
    assert world.database.read(lambda s: look(s, world.store, SMOKE)) == Found()
    limited = replace(world.store, quota=1 << 40)
    assert world.database.read(lambda s: look(s, limited, SMOKE)) == Found(used=world.database.read(quota.used_bytes))


@contextmanager
def deaf(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever asks the server fails."""
    with monkeypatch.context() as patched:
        for question in ("head", "get_ranges", "list"):
            patched.setattr(object_store.obstore, question, lambda *args, **more: pytest.fail("asked while everybody waits"))
        yield


def sweep(checkpoint: str) -> SweepSpec:
    base = {"preset": "smoke", "teacher": {"ssl": "given", "checkpoint": checkpoint, "backbone": SMALL.model_dump()}}
    measure = {"downstream": [{"train": "digits-train", "test": "digits-test"}], "seeds": 1, "baselines": ["random"]}
    variants = {"plain": {}, "longer": {"method": {"iterations": 11}}}
    return SweepSpec.model_validate({"base": base, "variants": variants, "seeds": 1, "evaluate": measure})
