"""Whoever deletes files that nothing names, and whoever is about to name one of them, may meet in any order and die anywhere."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import combinations
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ddcore.plan import Plan
from jobs import condemned, database
from jobs.condemned import GRACE, PROMISE, STUCK, Amount, BeingRemoved, HeldTooLongAgo
from jobs.errors import StoreAway
from jobs.ids import new_id
from jobs.models import Artifact, Condemned, Dataset
from jobs.store import Blob, FolderStore
from tests.jobs.harness import World, at_once

SECOND = timedelta(seconds=1)


class Clock:
    """The database's clock, if time passed as the test says."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self, session: Session) -> datetime:
        return database.now(session) + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(condemned, "now", clock)
    return clock


def put(world: World, content: str) -> Blob:
    path = world.folder / "out"
    path.write_text(content)
    return world.store.put(path)


def add_row(session: Session, blob: Blob) -> None:
    fields = {"name": "file", "kind": "checkpoint", "media_type": "application/octet-stream"}
    session.add(Artifact(id=new_id("art"), sha256=blob.sha256, size=blob.size, created_at=database.now(session), **fields))


def rows(world: World) -> int:
    return world.database.read(lambda s: s.scalar(select(func.count()).select_from(Condemned))) or 0


def storing(world: World, content: str) -> Iterator[None]:
    """What a runner does with one file, in the smallest steps, until it has named it."""
    blob = put(world, content)
    yield
    while True:
        try:
            held = world.database.write(lambda s: condemned.spare(s, [blob.sha256]))
        except BeingRemoved:
            yield
            continue
        yield
        for _ in world.store.missing([blob.sha256]):
            put(world, content)
        yield

        def name(session: Session, held: datetime = held) -> None:
            condemned.require(session, held)
            add_row(session, blob)

        try:
            world.database.write(name)
            return
        except HeldTooLongAgo:
            yield


def removing(world: World, clock: Clock, blob: Blob) -> Iterator[None]:
    """What a collector does with it, as soon as it may."""
    world.database.write(lambda s: condemned.condemn(s, [blob]))
    yield
    clock.ahead += GRACE
    yield
    at, doomed = world.database.write(condemned.doom)
    yield
    world.store.remove(doomed)
    yield
    world.database.write(lambda s: condemned._forget(s, doomed, at))


def orders(first: int, second: int) -> Iterator[str]:
    """Every way to do so many steps of p and so many of g, each in their own order."""
    for places in combinations(range(first + second), first):
        yield "".join("p" if place in places else "g" for place in range(first + second))


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("steps", range(1, 6))
def test_a_file_that_is_named_is_there_whatever_the_order_and_wherever_the_collector_dies(world: World, clock: Clock, steps: int) -> None:
    for number, order in enumerate(orders(4, steps)):
        content = f"{steps} {number}"
        blob = put(world, content)  # left by an attempt that was killed
        actors = {"p": storing(world, content), "g": removing(world, clock, blob)}
        for who in order:
            next(actors[who], None)
        for _ in actors["p"]:
            clock.ahead += STUCK  # the collector is dead
        assert world.store.exists(blob.sha256), f"after {order}"
        clock.ahead += GRACE
        condemned.remove(world.database.sessions, world.store)
        assert world.store.exists(blob.sha256), f"after {order}, and again"
    assert rows(world) == 0


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("steps", range(1, 4))
def test_a_file_that_its_runner_did_not_live_to_name_is_removed_in_the_end(world: World, clock: Clock, steps: int) -> None:
    for number, order in enumerate(orders(steps, 5)):
        content = f"{steps} {number}"
        blob = put(world, content)
        actors = {"p": storing(world, content), "g": removing(world, clock, blob)}
        for who in order:
            next(actors[who], None)
        if world.database.read(lambda s, blob=blob: condemned.named(s, [blob.sha256])):  # type: ignore[misc]
            continue
        world.database.write(lambda s, blob=blob: condemned.condemn(s, [blob]))  # type: ignore[misc]
        clock.ahead += GRACE + STUCK
        condemned.remove(world.database.sessions, world.store)
        assert not world.store.exists(blob.sha256), f"after {order}"
    assert rows(world) == 0


def test_files_are_named_within_half_of_the_time_that_they_are_safe(world: World, clock: Clock) -> None:
    assert PROMISE * 2 <= GRACE
    held = world.database.write(lambda s: condemned.spare(s, []))
    clock.ahead += PROMISE - SECOND
    world.database.write(lambda s: condemned.require(s, held))
    clock.ahead += 2 * SECOND
    with pytest.raises(HeldTooLongAgo):
        world.database.write(lambda s: condemned.require(s, held))


def test_holding_puts_again_what_was_removed_and_waits_for_what_is_being_removed(world: World, clock: Clock) -> None:
    blob = put(world, "again")
    path = world.folder / "kept"
    path.write_text("again")
    world.database.write(lambda s: condemned.condemn(s, [blob]))
    clock.ahead += GRACE
    at, doomed = world.database.write(condemned.doom)
    assert doomed == {blob.sha256: blob.size}
    files = {blob.sha256: (path, "name")}
    with pytest.raises(BeingRemoved):
        condemned.hold(world.database.write, world.store, files)
    world.store.remove(doomed)
    world.database.write(lambda s: condemned._forget(s, doomed, at))
    condemned.hold(world.database.write, world.store, files)
    assert world.store.read(blob.sha256) == b"again"


def test_nothing_is_condemned_that_has_a_name_or_deleted_that_has_one_again(world: World, clock: Clock) -> None:
    nameless, named = put(world, "nameless"), put(world, "named")
    world.database.write(lambda s: add_row(s, named))
    assert world.database.write(lambda s: condemned.condemn(s, [nameless, named])) == Amount(1, nameless.size)
    assert world.database.write(lambda s: condemned.condemn(s, [nameless, named])) == Amount(0, 0), "once is enough"
    assert condemned.remove(world.database.sessions, world.store) == Amount(0, 0), "not before its time"
    world.database.write(lambda s: add_row(s, nameless))
    clock.ahead += GRACE
    assert condemned.remove(world.database.sessions, world.store) == Amount(0, 0)
    assert rows(world) == 0
    assert world.store.missing([nameless.sha256, named.sha256]) == set()


def test_an_archive_that_a_data_set_names_is_named(world: World) -> None:
    archive = put(world, "zip")

    def add(session: Session) -> None:
        like = session.get_one(Dataset, "ds_digits-train")
        columns = {column.name: getattr(like, column.name) for column in Dataset.__table__.columns}
        session.add(Dataset(**columns | {"id": "ds_x", "digest": "d", "origin": "upload", "source": {"archive": archive.sha256}}))

    world.database.write(add)
    assert world.database.read(lambda s: condemned.named(s, [archive.sha256, "0" * 64])) == {archive.sha256}


def test_a_checkpoint_that_a_step_under_way_was_given_is_named(world: World) -> None:
    given = put(world, "another step's teacher")
    made = Plan()
    made.add("teacher", "teacher", {"teacher": {"ssl": "given", "checkpoint": given.sha256}})
    made.add("distill", "distill", {}, {"teacher": ["teacher"]})
    job_id = world.submit(made)
    assert world.database.read(lambda s: condemned.named(s, [given.sha256])) == {given.sha256}
    world.run(job_id, "teacher")
    assert world.database.read(lambda s: condemned.named(s, [given.sha256])) == set()


@dataclass(frozen=True)
class Stumbling(FolderStore):
    """A store that goes away in the middle of a request."""

    before: Callable[[Collection[str]], None] = lambda names: None

    def remove(self, names: Collection[str]) -> None:
        self.before(names)
        super().remove(names)


def test_a_store_that_goes_away_in_the_middle_is_gone_on_with_later(
    world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(condemned, "AT_ONCE", 4)
    monkeypatch.setattr(condemned, "TOGETHER", 2)
    blobs = [put(world, f"{number:02d}") for number in range(11)]
    world.database.write(lambda s: condemned.condemn(s, blobs))
    clock.ahead += GRACE
    asked: list[int] = []

    def goes_away(names: Collection[str]) -> None:
        asked.append(len(names))
        if len(asked) == 4:
            raise StoreAway("refused")

    away = Stumbling(world.store.root, before=goes_away)
    with pytest.raises(StoreAway):
        condemned.remove(world.database.sessions, away)
    assert (asked, rows(world)) == ([2, 2, 2, 2], 5)
    assert condemned.remove(world.database.sessions, away) == Amount(3, 6), "what is marked may be in the hands of another process"
    clock.ahead += STUCK
    assert condemned.remove(world.database.sessions, away) == Amount(2, 4)
    assert world.store.missing([blob.sha256 for blob in blobs]) == {blob.sha256 for blob in blobs}
    assert rows(world) == 0


def test_a_slow_deletion_gives_up_before_it_could_be_taken_for_dead(world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(condemned, "TOGETHER", 1)
    monkeypatch.setattr(condemned, "HURRY", -1.0)
    blob = put(world, "slow")
    world.database.write(lambda s: condemned.condemn(s, [blob]))
    clock.ahead += GRACE
    assert condemned.remove(world.database.sessions, world.store) == Amount(0, 0)
    assert world.store.exists(blob.sha256)
    assert rows(world) == 1


def test_two_at_once_delete_each_file_once(world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(condemned, "AT_ONCE", 3)
    blobs = [put(world, f"{number:02d}") for number in range(24)]
    world.database.write(lambda s: condemned.condemn(s, blobs))
    clock.ahead += GRACE
    deleted: list[str] = []
    store = Stumbling(world.store.root, before=deleted.extend)
    done = at_once([lambda: condemned.remove(world.database.sessions, store)] * 3)
    assert sum((amount for amount in done), Amount()) == Amount(24, 48)
    assert sorted(deleted) == sorted(blob.sha256 for blob in blobs)
    assert rows(world) == 0
    assert replace(world.store).missing(deleted) == set(deleted)
