"""What would fill the store is refused before it is full, and nothing of it is written."""

from dataclasses import replace

import pytest
from sqlalchemy import func, select

from jobs import quota
from jobs.claims import succeed
from jobs.create import create_distill, dry_run, look, retry
from jobs.errors import NoRoom
from jobs.models import Job, Step
from jobs.store import FolderStore
from tests.jobs.harness import SMOKE, World


def limited(world: World, spare: int) -> FolderStore:
    """The world's store with a quota that leaves so much room."""
    return replace(world.store, quota=world.database.read(quota.used_bytes) + spare)


def test_a_job_that_does_not_fit_is_refused_with_the_numbers_and_leaves_nothing(world: World) -> None:
    needed = world.database.read(lambda s: dry_run(s, world.store, SMOKE)).disk_bytes
    with pytest.raises(NoRoom, match=f"no room for about {needed:,} bytes: it holds 0 of the {needed - 1:,} that it may") as caught:
        world.database.write(lambda s: create_distill(s, limited(world, needed - 1), SMOKE).id)
    assert "POTSTILL_STORE_QUOTA_BYTES" in caught.value.hint
    assert world.database.read(lambda s: [s.scalar(select(func.count()).select_from(table)) for table in (Job, Step)]) == [0, 0]
    assert world.database.write(lambda s: create_distill(s, limited(world, needed), SMOKE).id)


def test_the_disk_of_a_folder_keeps_its_reserve(world: World) -> None:
    full = replace(world.store, reserve=1 << 60)
    assert full.free() < 0
    with pytest.raises(NoRoom, match="its disk has 0 to spare"):
        world.database.write(lambda s: create_distill(s, full, SMOKE).id)


def test_what_is_done_or_was_answered_before_needs_no_room(world: World) -> None:
    job_id = world.database.write(lambda s: create_distill(s, world.store, SMOKE, idempotency_key="key").id)
    full = replace(world.store, reserve=1 << 60)
    assert world.database.write(lambda s: create_distill(s, full, SMOKE, idempotency_key="key").id) == job_id
    world.finish_job(job_id)
    again = world.database.write(lambda s: create_distill(s, full, SMOKE).id)
    assert world.job(again).state == "succeeded"


def test_who_has_looked_before_keeps_nobody_waiting(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store = limited(world, 1)
    found = world.database.read(lambda s: look(s, store, SMOKE))
    monkeypatch.setattr(quota, "used_bytes", lambda session: pytest.fail("read while everybody waits"))
    with pytest.raises(NoRoom, match=r"it holds 0 of the 1 that it may"):
        world.database.write(lambda s: create_distill(s, store, SMOKE, found=found).id)


def test_a_retry_needs_room_too(world: World) -> None:
    job_id = world.database.write(lambda s: create_distill(s, world.store, SMOKE).id)
    world.set_job(job_id, "failed")
    world.database.write(lambda s: s.execute(Step.__table__.update().values(state="failed")))
    with pytest.raises(NoRoom):
        world.database.write(lambda s: retry(s, limited(world, 1), job_id).id)


def test_a_file_of_two_names_counts_once(world: World) -> None:
    job_id = world.database.write(lambda s: create_distill(s, world.store, SMOKE).id)
    step = next(step for step in world.job(job_id).steps if step.state == "ready")
    held = world.claim(job_id, step.name)
    files = [world.file("the same", "a.bin"), world.file("the same", "b.bin"), world.file("another", "c.bin")]
    world.database.write(lambda s: succeed(s, held.step_id, held.attempt, files, {}))
    assert world.database.read(quota.used_bytes) == len("the same") + len("another")
