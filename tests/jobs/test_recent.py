"""What may be remembered for a moment, and what may not."""

from typing import Any

from sqlalchemy import event

from ddcore.plan import engine_digest
from jobs import views, workers
from jobs.recent import FRESH, MANY, SHARE, Recent
from tests.jobs.harness import World, plan


def test_an_answer_is_kept_for_so_long_and_no_longer() -> None:
    moment, asked = [0.0], iter(range(10_000))
    recent = Recent(1.0, lambda: moment[0])
    assert [recent.get("a", lambda: next(asked)) for _ in range(3)] == [0, 0, 0]
    assert recent.get("b", lambda: next(asked)) == 1
    moment[0] = 1.0
    assert recent.get("a", lambda: next(asked)) == 2
    assert [FRESH.get("a", lambda: next(asked)) for _ in range(2)] == [3, 4]
    assert recent.get("b", lambda: next(asked), lambda kept: kept > 1) == 5, "what was kept does not serve"
    recent.forget()
    assert recent.get("a", lambda: next(asked)) == 6
    for n in range(2 * MANY):
        recent.get(n, lambda: next(asked))
    assert len(recent._kept) <= MANY


def test_a_dear_answer_is_kept_for_longer() -> None:
    moment, asked = [0.0], iter(range(10))
    recent = Recent(1.0, lambda: moment[0])

    def ask() -> int:
        moment[0] += 3.0
        return next(asked)

    assert recent.get("a", ask) == 0
    moment[0] = 3.0 * SHARE - 1.0
    assert recent.get("a", ask) == 0
    moment[0] = 3.0 * SHARE
    assert recent.get("a", ask) == 1


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
        assert len(said) > 2
        assert look() == first
        assert len(said) == 2  # job with labels and result, steps
        held = world.claim(job_id, "distill")
        assert (look().state, len(said)) == ("running", 3)  # with what is known of a running step's like
        assert (look().state, len(said)) == ("running", 2)
        world.finish(held)
        done = look()
        assert (done.state, set(done.results), len(said)) == ("succeeded", {"synthetic_set", "summaries"}, 2)
    finally:
        event.remove(world.database.engine, "before_cursor_execute", listen)
