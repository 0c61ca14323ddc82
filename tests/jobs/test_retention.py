"""Files that nobody uses go after their time, and nothing else does."""

from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError
from sqlalchemy import select, update

from ddcore.plan import Plan
from jobs import collect, condemned, quota, retention, views
from jobs.cancel import cancel
from jobs.change import change
from jobs.claims import succeed
from jobs.collect import Collected
from jobs.condemned import GRACE
from jobs.create import create_distill
from jobs.database import readers
from jobs.errors import Gone
from jobs.models import Artifact, Condemned, Event, Job, Step
from jobs.settings import Settings
from tests.jobs.harness import SMOKE, World, at_once, harm, plan

DAY = timedelta(days=1)
EXPERTS = {"experts": 10 * DAY}  # the kind of all steps of a plan here, but for the one called distill


def gc(world: World, lives: dict[str, timedelta] = EXPERTS, *, dry_run: bool = False, grace: timedelta = GRACE) -> Collected:
    database = world.database
    return collect.collect(readers(database.engine), database.sessions, world.store, lives, dry_run=dry_run, grace=grace)


def grow_old(world: World, days: float) -> None:
    """As if all that has happened had happened so much earlier."""
    with world.database.sessions.begin() as session:
        for table, columns in ((Step, ("finished_at",)), (Job, ("created_at", "finished_at")), (Condemned, ("at", "doomed_at"))):
            for row in session.scalars(select(table)):
                for column in columns:
                    if (moment := getattr(row, column)) is not None:
                        setattr(row, column, moment - days * DAY)


def in_parts(world: World, *, dry_run: bool = False) -> tuple[list[Collected], dict[str, int]]:
    """The answers of calls that have no time, and the files of each kind in all of them; nothing waits for its hour."""
    answers, cursor, sums = list[Collected](), None, Counter[str]()
    read, write = readers(world.database.engine), world.database.sessions
    while not answers or answers[-1].has_more:
        options = {"dry_run": dry_run, "cursor": cursor, "seconds": 0.0, "grace": -DAY}
        answers.append(collect.collect(read, write, world.store, EXPERTS, **options))
        assert (cursor or "") <= (answers[-1].next_cursor or "g")
        cursor = answers[-1].next_cursor
        assert answers[-1].files == sum(share.files for share in answers[-1].unneeded)
        sums.update({share.kind: share.files for share in answers[-1].unneeded})
    return answers, dict(sums)


def made(world: World, *edges: str) -> str:
    """A finished job."""
    job_id = world.submit(plan(*edges))
    world.finish_job(job_id)
    return job_id


def there(world: World, job_id: str, *names: str) -> list[bool]:
    """Whether the files of these steps are there, by the rows (and then in the store, too)."""
    found = []
    for name in names:
        step_id = world.step(job_id, name).id
        (file,) = world.database.read(lambda s, step_id=step_id: s.scalars(select(Artifact).where(Artifact.step_id == step_id)).all())
        assert file.gone_at is not None or world.store.exists(file.sha256)
        found.append(file.gone_at is None)
    return found


def test_what_can_be_computed_again_goes_after_its_time_and_results_stay(anywhere: World) -> None:
    world = anywhere
    job_id = made(world, "a", "b<a", "distill<b")
    used = world.database.read(quota.used_bytes)
    grow_old(world, 9)
    assert gc(world).unneeded == []
    grow_old(world, 2)
    told = gc(world, dry_run=True)
    assert [(share.kind, share.files, share.bytes) for share in told.unneeded] == [("experts", 2, 2 * used / 3)]
    assert there(world, job_id, "a", "b", "distill") == [True, True, True], "only told"
    done = gc(world)
    assert (done.unneeded, done.files, done.bytes) == (told.unneeded, told.files, told.bytes)
    assert (done.condemned_files, done.deleted_files) == (2, 0)
    assert there(world, job_id, "a", "b", "distill") == [False, False, True]
    assert world.database.read(quota.used_bytes) == used / 3
    first = world.database.read(lambda s: views.artifacts(s, job_id))[0]
    with pytest.raises(Gone, match=r"the file 'out.bin' was removed on \d{4}-"):
        views.there(first)
    files = {file.step: file.sha256 for file in world.database.read(lambda s: views.artifacts(s, job_id))}
    assert world.store.missing(files.values()) == set(), "for an hour"
    grow_old(world, 1 / 24)
    again = gc(world)
    assert (again.unneeded, again.deleted_files, again.deleted_bytes, again.condemned_files) == ([], 2, done.bytes, 0)
    assert world.store.missing(files.values()) == {files["a"], files["b"]}


def test_a_job_that_needs_what_is_gone_makes_it_again(world: World) -> None:
    made(world, "a", "distill<a")
    grow_old(world, 11)
    gc(world)
    other = world.submit(plan("a", "c<a", "distill<c"))
    assert world.states(other) == {"a": "ready", "c": "blocked", "distill": "blocked"}
    assert world.finish_job(other).state == "succeeded"
    same = world.submit(plan("a", "distill<a"))
    assert world.job(same).state == "succeeded", "its result is still there"


@pytest.mark.parametrize("keeps", ["pin", "live job", "later job", "cancelling", "reader", "checkpoint"])
def test_nothing_goes_that_somebody_needs(world: World, keeps: str) -> None:
    job_id = made(world, "a", "distill<a")
    grow_old(world, 11)
    if keeps == "pin":
        world.database.write(lambda s: change(s, job_id, pinned=True).id)
    elif keeps == "live job":  # also where no step that is left reads them
        world.run(world.submit(plan("a", "c<a", "d", "distill<c,d")), "c")
        grow_old(world, 11)
    elif keeps == "later job":
        later = world.submit(plan("a", "c<a", "distill<c"))
        grow_old(world, 11)
        world.database.write(lambda s: cancel(s, later).id)
    elif keeps == "cancelling":
        later = world.submit(plan("a", "c<a", "d", "distill<c,d"))
        world.run(later, "c")
        world.claim(later, "d")
        assert world.database.write(lambda s: cancel(s, later).state) == "cancelling"
        grow_old(world, 11)
    elif keeps == "reader":  # a job has failed, and its other steps run on for a moment
        later = world.submit(plan("a", "c<a", "distill<c"))
        world.claim(later, "c")
        world.set_job(later, "failed")
        grow_old(world, 11)
    else:  # the file of another step, given by its name
        (file,) = world.database.read(lambda s: s.scalars(select(Artifact).where(Artifact.step_id == world.step(job_id, "a").id)).all())
        given = Plan()
        given.add("t", "teacher", {"teacher": {"ssl": "given", "checkpoint": file.sha256}})
        given.add("distill", "distill", {}, {"teacher": ["t"]})
        world.submit(given)
        grow_old(world, 11)
    gc(world)
    assert there(world, job_id, "a") == [True]
    world.database.write(lambda s: s.execute(update(Step).where(Step.state != "succeeded").values(state="cancelled")))
    world.database.write(lambda s: s.execute(update(Job).values(pinned=False, state="cancelled")))
    grow_old(world, 11)
    assert gc(world).files > 0
    assert there(world, job_id, "a") == [False]


def test_an_unnamed_file_goes_when_it_is_old_enough_and_one_that_others_have_too_stays(anywhere: World) -> None:
    world = anywhere
    job_id = made(world, "a", "distill<a")
    lost = world.file("left by an attempt that was killed")
    assert gc(world, {}).unneeded == [], "its row may come in a moment"
    told = gc(world, {}, grace=-DAY)
    assert [(share.kind, share.files, share.bytes) for share in told.unneeded] == [("unnamed", 1, lost.size)]
    assert world.store.missing([lost.sha256]) == {lost.sha256}, "with no grace at all, at once"
    assert there(world, job_id, "a", "distill") == [True, True]


def test_a_file_of_two_steps_stays_while_one_of_them_needs_it(world: World) -> None:
    job_id = world.submit(plan("a", "distill<a"))
    for name in ("a", "distill"):
        held = world.claim(job_id, name)
        same = world.file("the same")
        world.database.write(lambda s, held=held, same=same: succeed(s, held.step_id, held.attempt, [same], {}))
    grow_old(world, 11)
    done = gc(world)
    assert (done.files, done.condemned_files) == (1, 0)
    assert there(world, job_id, "a", "distill") == [False, True]


def test_a_lost_result_keeps_the_files_that_it_has_left(world: World) -> None:
    job_id = made(world, "a", "distill<a")
    sha256 = world.file("a report", "report.json").sha256
    step_id = world.step(job_id, "distill").id
    with world.database.sessions.begin() as session:
        fields = {"name": "more", "kind": "report", "media_type": "application/json", "size": 8, "sha256": sha256}
        session.add(Artifact(id="art_x", step_id=step_id, created_at=session.get_one(Step, step_id).created_at, **fields))
    world.database.write(lambda s: retention.lose_file(s, sha256))
    assert world.step(job_id, "distill").lost_at is not None
    grow_old(world, 1000)
    gc(world, {}, grace=-DAY)
    assert world.store.exists(sha256)


def test_posting_and_letting_go_at_once_never_leave_a_job_without_its_input(world: World) -> None:
    for seed in range(3):
        first = world.submit(plan("a", "distill<a", seed=seed))
        world.finish_job(first)
    grow_old(world, 11)
    posts = [lambda seed=seed: world.submit(plan("a", "c<a", "distill<c", seed=seed)) for seed in range(3)]
    jobs = [one for one in at_once([*posts, lambda: gc(world), lambda: gc(world)]) if isinstance(one, str)]
    grow_old(world, 1)
    gc(world)
    for job_id in jobs:
        step = world.step(job_id, "a")
        assert step.lost_at is None
        if step.state == "succeeded":
            assert there(world, job_id, "a") == [True]
        assert world.finish_job(job_id).state == "succeeded"


def test_what_was_interrupted_is_gone_on_with(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "AT_ONCE", 2)
    names = [f"n{number}" for number in range(5)]
    job_id = made(world, *names, "distill<" + ",".join(names))
    grow_old(world, 11)
    condemn, calls = condemned.condemn, []

    def dies(*args: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return condemn(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(condemned, "condemn", dies)
    with pytest.raises(KeyboardInterrupt):
        gc(world)
    assert sorted(there(world, job_id, *names)) == [False] * 2 + [True] * 3
    assert gc(world).files == 3
    assert there(world, job_id, *names) == [False] * 5
    told = world.database.read(lambda s: [event.type for event in s.scalars(select(Event)) if event.type == "step_files_removed"])
    assert len(told) == 5


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_large_collection_goes_on_over_many_calls(anywhere: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with as little work as there is; what they tell adds up to what one call tells."""
    world = anywhere
    monkeypatch.setattr(retention, "AT_ONCE", 2)
    monkeypatch.setattr(condemned, "AT_ONCE", 2)
    monkeypatch.setattr(collect, "LEFT", -DAY)
    names = [f"n{number}" for number in range(5)]
    job_id = made(world, *names, "distill<" + ",".join(names))
    grow_old(world, 11)
    nameless = [world.file(f"nameless {number}") for number in range(6)]
    harm(world.store, nameless[0].sha256, b"other bytes")
    world.store.set_aside(nameless[0].sha256)

    told, sums = in_parts(world, dry_run=True)
    assert sums == {"experts": 5, "unnamed": 5, "set_aside": 1}
    assert len(told) > 1
    assert there(world, job_id, *names) == [True] * 5
    done, sums = in_parts(world)
    assert sums == {"experts": 5, "unnamed": 5, "set_aside": 1}
    assert sum(answer.deleted_files for answer in done) == 10
    assert len(done) > 8
    assert (done[-1].condemned_files, there(world, job_id, *names, "distill")) == (0, [False] * 5 + [True])
    assert sum(len(some) for some in world.store.listing()) == 1


def test_settings_say_how_long_each_kind_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert retention.lifetimes(Settings(home=tmp_path).keep_days) == {}, "nothing goes by itself"
    monkeypatch.setenv("POTSTILL_KEEP_DAYS", '{"intermediate": 30, "experts": 7.5, "export": 100}')
    lives = retention.lifetimes(Settings(home=tmp_path).keep_days)
    assert lives == dict.fromkeys(retention.INTERMEDIATE, 30 * DAY) | {"experts": 7.5 * DAY, "export": 100 * DAY}
    assert set(retention.INTERMEDIATE) == {"dataset", "teacher", "targets", "experts", "tune", "evaluate"}
    assert retention.lifetimes({"export": 9}, 2.0) == dict.fromkeys(retention.INTERMEDIATE, 2 * DAY) | {"export": 9 * DAY}
    monkeypatch.setenv("POTSTILL_KEEP_DAYS", "")
    assert Settings(home=tmp_path).keep_days == {}
    monkeypatch.setenv("POTSTILL_KEEP_DAYS", "30 days")
    with pytest.raises(ValidationError, match="must be a JSON object of days by kind of step"):
        Settings(home=tmp_path)
    for wrong, said in (({"expert": 1}, "keep_days names expert; the kinds are dataset"), ({"experts": 0}, "more than 0")):
        with pytest.raises(ValidationError, match=said):
            Settings(home=tmp_path, keep_days=wrong)


def test_a_data_set_that_was_let_go_of_is_available_again(world: World) -> None:
    job_id = world.database.write(lambda s: create_distill(s, world.store, SMOKE).id)
    world.finish_job(job_id)
    grow_old(world, 11)
    done = gc(world, retention.lifetimes({"intermediate": 10}))
    assert {share.kind for share in done.unneeded} <= set(retention.INTERMEDIATE)
    assert world.database.read(lambda s: views.dataset(s, "digits-train")).state == "available"
