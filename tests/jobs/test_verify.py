"""Damage that nobody has met is found, told with who made the file, and mended by the next job that needs it."""

import pytest
from sqlalchemy import select

from jobs import verify as module
from jobs.checkpoints import add_checkpoint
from jobs.claims import succeed
from jobs.condemned import condemn
from jobs.database import readers
from jobs.models import Artifact
from jobs.retention import lose_file
from jobs.store import Blob, FolderStore, Store
from jobs.verify import BadFile, Verified
from tests.jobs.harness import World, harm, plan


def verify(world: World, cursor: str | None = None, seconds: float = 60.0) -> Verified:
    return module.verify(readers(world.database.engine), world.database.sessions, world.store, cursor=cursor, seconds=seconds)


def in_parts(world: World) -> list[Verified]:
    """The answers of calls that have no time."""
    told = [verify(world, None, 0.0)]
    while told[-1].has_more:
        told.append(verify(world, told[-1].next_cursor, 0.0))
        assert (told[-2].next_cursor or "") < (told[-1].next_cursor or "g")
    return told


def file_of(world: World, job_id: str, name: str) -> str:
    query = select(Artifact.sha256).where(Artifact.step_id == world.step(job_id, name).id)
    return world.database.read(lambda s: s.scalars(query).one())


def makers(found: list[BadFile]) -> dict[str, list[tuple[str, str | None, str | None]]]:
    return {one.sha256: [(by.name, by.step, by.job_id) for by in one.named_by] for one in found}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_damaged_file_is_told_set_aside_and_made_again(anywhere: World) -> None:
    world = anywhere
    first = world.submit(plan("a", "b<a", "distill<b"))
    world.finish_job(first)
    world.finish_job(world.submit(plan("a", "b<a", "d<b", "distill<d")))
    posted = world.submit(plan("a", "b<a", "e<b", "distill<e"))
    whole = verify(world)
    assert (whole.files, whole.damaged, whole.missing, whole.has_more) == (5, [], [], False)
    sha256 = file_of(world, first, "b")
    assert whole.bytes == sum(one.size for some in world.store.listing() for one in some)
    harm(world.store, sha256, b"x" * world.store.size(sha256))

    told = verify(world)
    assert (makers(told.damaged), told.missing, told.files) == ({sha256: [("out.bin", "b", first)]}, [], 5)
    assert not world.store.exists(sha256)
    assert [world.step(first, name).lost_at is None for name in ("a", "b", "distill")] == [True, False, True]
    assert verify(world).damaged == verify(world).missing == [], "it is known by now"

    assert world.states(posted)["b"] == "succeeded", "it fails when it reads the file"
    again = world.submit(plan("a", "b<a", "f<b", "distill<f"))
    assert world.states(again) == {"a": "succeeded", "b": "ready", "f": "blocked", "distill": "blocked"}
    assert world.finish_job(again).state == "succeeded"
    assert (verify(world).files, verify(world).missing) == (7, [])


def test_a_missing_file_is_told_until_it_is_there_and_nothing_is_lost(world: World) -> None:
    job_id = world.submit(plan("a", "b", "distill<a,b"))
    world.finish_job(job_id)
    sent = world.file("a checkpoint")
    checkpoint = world.database.write(lambda s: add_checkpoint(s, Blob(sent.sha256, sent.size), "mine.safetensors").id)
    files = {name: file_of(world, job_id, name) for name in ("a", "b")}
    world.store.remove([*files.values(), sent.sha256])
    for _ in range(2):
        told = verify(world)
        found = {files["a"]: [("out.bin", "a", job_id)], files["b"]: [("out.bin", "b", job_id)]}
        assert (makers(told.missing), told.damaged) == (found | {sent.sha256: [("mine.safetensors", None, None)]}, [])
        assert world.step(job_id, "a").lost_at is None, "the store may not have been mounted"
    assert {by.id for one in told.missing for by in one.named_by if by.step is None} == {checkpoint}
    world.file("a checkpoint")
    world.database.write(lambda s: lose_file(s, files["a"]))
    assert set(makers(verify(world).missing)) == {files["b"]}


def test_a_file_that_nothing_names_or_that_was_let_go_of_is_no_loss(world: World) -> None:
    job_id = world.submit(plan("a", "distill<a"))
    world.finish_job(job_id)
    nameless, sha256 = world.file("nameless"), file_of(world, job_id, "a")
    harm(world.store, nameless.sha256, b"damaged")
    with world.database.sessions.begin() as session:
        file = session.scalars(select(Artifact).where(Artifact.sha256 == sha256)).one()
        file.gone_at = file.created_at
    world.database.write(lambda s: condemn(s, [Blob(sha256, 1)]))
    world.store.remove([sha256])
    told = verify(world)
    assert (makers(told.damaged), told.missing) == ({nameless.sha256: []}, [])
    assert not world.store.exists(nameless.sha256), "the next attempt puts it whole"


def test_a_file_of_two_steps_is_told_once_with_both(world: World) -> None:
    job_id = world.submit(plan("a", "b", "distill<a,b"))
    same = world.file("the same")
    for name in ("a", "b"):
        held = world.claim(job_id, name)
        world.database.write(lambda s, held=held: succeed(s, held.step_id, held.attempt, [same], {}))
    harm(world.store, same.sha256, b"other")
    assert {frozenset(found) for found in makers(verify(world).damaged).values()} == {
        frozenset({("out.bin", "a", job_id), ("out.bin", "b", job_id)})
    }
    assert None not in {world.step(job_id, name).lost_at for name in ("a", "b")}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_what_is_put_again_or_removed_meanwhile_is_not_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = world.submit(plan("a", "distill<a"))
    world.finish_job(job_id)
    other = world.file("will be removed")
    looks: list[str] = []

    def look(store: Store, sha256: str, real=FolderStore.verify) -> bool:  # type: ignore[no-untyped-def]
        looks.append(sha256)
        if sha256 == other.sha256:
            store.remove([sha256])
        return real(store, sha256) and looks.count(sha256) > 1

    monkeypatch.setattr(FolderStore, "verify", look)
    told = verify(world)
    assert (told.files, told.damaged, told.missing) == (3, [], [])
    assert len(looks) == 5
    assert world.step(job_id, "a").lost_at is None


def test_a_large_store_is_read_over_many_calls(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with as little work as there is; what they tell adds up to what one call tells."""
    names = [f"n{number}" for number in range(9)]
    job_id = world.submit(plan(*names, "distill<" + ",".join(names)))
    world.finish_job(job_id)
    files = sorted(file_of(world, job_id, name) for name in names)
    monkeypatch.setattr(module, "MANY", 2)
    world.store.remove(files[2:5])
    harm(world.store, files[7], b"damaged")
    told = in_parts(world)
    assert [one.sha256 for answer in told for one in answer.missing] == files[2:5]
    assert [one.sha256 for answer in told for one in answer.damaged] == files[7:8]
    assert len(told) > 3
    assert sum(answer.files for answer in told) >= 7

    monkeypatch.setattr(module, "HANDFUL", 1)
    assert [one.sha256 for one in verify(world).missing] == files[2:5], "also by a call that goes on"
    told = in_parts(world)
    assert [one.sha256 for answer in told for one in answer.missing] == files[2:5]
    assert sum(answer.files for answer in told) == sum(len(some) for some in world.store.listing()) == 6
    world.store.remove(files)
    assert [one.sha256 for answer in in_parts(world) for one in answer.missing] == files[:7] + files[8:]
