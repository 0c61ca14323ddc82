"""What may be remembered for a moment, and what may not."""

from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session

from ddcore.plan import engine_digest
from jobs import views, workers
from jobs.recent import FRESH, GRACE, MANY, SHARE, Recent
from tests.jobs.harness import World, plan

SESSION = Session()  # of no database: nothing is asked of it


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Source:
    """Counts how often it was asked."""

    def __init__(self, clock: Clock, seconds: float = 0.0) -> None:
        self.asked, self._clock, self._seconds = 0, clock, seconds

    def __call__(self, _session: Session) -> int:
        self._clock.now += self._seconds
        self.asked += 1
        return self.asked


def test_an_answer_is_kept_for_so_long_and_no_longer() -> None:
    clock = Clock()
    recent, ask = Recent(1.0, clock), Source(clock)
    assert [recent.get(SESSION, "a", ask) for _ in range(3)] == [1, 1, 1]
    assert recent.get(SESSION, "b", ask) == 2
    clock.now = 1.0 + GRACE
    assert recent.get(SESSION, "a", ask) == 3
    assert [FRESH.get(SESSION, "a", ask) for _ in range(2)] == [4, 5]
    assert recent.get(SESSION, "b", ask, lambda kept: kept > 2) == 6, "what was kept does not serve"
    recent.forget()
    assert recent.get(SESSION, "a", ask) == 7
    for n in range(2 * MANY):
        recent.get(SESSION, n, ask)
    assert len(recent._kept) <= MANY


def test_a_dear_answer_is_kept_for_longer() -> None:
    clock = Clock()
    recent, ask = Recent(1.0, clock), Source(clock, 3.0)
    assert recent.get(SESSION, "a", ask) == 1
    clock.now = 3.0 * SHARE - 1.0
    assert recent.get(SESSION, "a", ask) == 1
    assert not recent.wanted
    clock.now = 3.0 * SHARE
    assert recent.get(SESSION, "a", ask) == 1
    assert recent.wanted


def test_nobody_waits_for_a_new_answer_while_the_old_one_will_do() -> None:
    clock = Clock()
    recent, ask = Recent(1.0, clock), Source(clock)
    recent.get(SESSION, "a", ask)
    clock.now = 1.0
    assert (recent.get(SESSION, "a", ask), ask.asked, recent.wanted) == (1, 1, True)
    recent.renew(SESSION)
    assert (recent.get(SESSION, "a", ask), ask.asked, recent.wanted) == (2, 2, False)
    recent.renew(SESSION)
    assert ask.asked == 2, "nobody wanted it"


def test_what_was_asked_before_a_change_is_not_kept_after_it() -> None:
    clock = Clock()
    recent, ask = Recent(1.0, clock), Source(clock)

    def slow(session: Session) -> int:
        recent.forget()  # somebody writes meanwhile
        return ask(session)

    assert recent.get(SESSION, "a", slow) == 1
    assert recent.get(SESSION, "a", ask) == 2


def test_of_the_job_itself_nothing_is_remembered(world: World) -> None:
    presence = workers.Presence("w", "here", 1, ("gpu",), engine_digest(), "1")
    world.database.write(lambda s: workers.report(s, presence, alive_seconds=60))
    job_id, recent, said = world.submit(plan("distill"), labels=["x", "y"]), Recent(600.0), []

    def listen(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(("SELECT", "WITH")):
            said.append(statement)

    def look() -> views.JobView:
        said.clear()
        return world.database.read(lambda s: views.job(s, job_id, recent))

    event.listen(world.database.engine, "before_cursor_execute", listen)
    try:
        first = look()
        assert (first.labels, first.queue) == (["x", "y"], views.Queue(position=1, ahead=0))
        assert len(said) > 1
        assert look() == first
        assert len(said) == 1
        held = world.claim(job_id, "distill")
        assert (look().state, len(said)) == ("running", 2)  # with what is known of a running step's like
        assert (look().state, len(said)) == ("running", 1)
        world.finish(held)
        done = look()
        assert (done.state, set(done.results), len(said)) == ("succeeded", {"synthetic_set", "summaries"}, 1)
    finally:
        event.remove(world.database.engine, "before_cursor_execute", listen)
