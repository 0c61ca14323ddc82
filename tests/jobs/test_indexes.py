"""What readers ask all the time finds its rows by indexes among a hundred thousand jobs, without reading or sorting the rest."""

import re
from collections.abc import Callable
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.orm import Session

from ddcore.plan import engine_digest
from jobs import views
from jobs.news import newest, news
from jobs.records import metrics
from tests.jobs.harness import World

JOBS = 100_000
RUNNING, QUEUED = 79_900, 80_000  # the first job that runs, the first that waits; those before them have ended
AT = {"sqlite": "'2026-11-20 12:00:00.000000'", "postgresql": "CAST('2026-11-20 12:00:00Z' AS timestamptz)"}
EXPLAIN = {"sqlite": "EXPLAIN QUERY PLAN ", "postgresql": "EXPLAIN "}
# PostgreSQL and SQLite say so when they read a table from end to end, or sort what they found.
WHOLE = re.compile(r"Seq Scan on (?!workers|datasets)|SCAN (?!workers|datasets|.*USING|\(|CONSTANT|\d+ CONSTANT|owners|anon)")
SORTED = re.compile(r"Sort|TEMP B-TREE FOR ORDER BY")


def test_lists_jobs_and_events_are_found_by_indexes(world: World) -> None:
    fill(world)
    lists: dict[str, dict[str, Any]] = {
        "all": {},
        "state": {"state": "failed"},
        "kind": {"kind": "observe"},
        "owner": {"owner": "o7"},
        "label": {"label": "l3"},
        "state and kind": {"state": "queued", "kind": "observe"},
    }
    for name, filters in lists.items():
        found = world.database.read(lambda s, filters=filters: views.jobs(s, limit=20, **filters))
        assert len(found.data) == 20, name
        assert found.has_more, name
        # The first statement chooses the jobs, in order; the next ones look up what belongs to them.
        plans = explained(world, lambda s, filters=filters, found=found: views.jobs(s, limit=20, cursor=found.next_cursor, **filters))
        assert not SORTED.search(plans[0][1]), plans[0]
        assert_no_whole_table(plans)
    for number, state in ((0, "succeeded"), (RUNNING, "running"), (QUEUED + 500, "queued")):
        seen = world.database.read(lambda s, number=number: views.job(s, job(number)))
        assert seen.state == state
        assert (seen.queue and seen.queue.ahead) == (500 if state == "queued" else None)
        assert_no_whole_table(explained(world, lambda s, number=number: views.job(s, job(number))))
    assert_no_whole_table(explained(world, lambda s: views.events(s, views.job(s, job(5)), after=3, limit=200)))
    assert_no_whole_table(explained(world, lambda s: metrics(s, job(5))))
    assert_no_whole_table(explained(world, newest) + explained(world, lambda s: news(s, 199_000)))


def job(number: int) -> str:
    return f"job_{number:06d}"


def assert_no_whole_table(plans: list[tuple[str, str]]) -> None:
    assert plans
    for statement, how in plans:
        assert not WHOLE.search(how), (statement, how)


def explained(world: World, work: Callable[[Session], Any]) -> list[tuple[str, str]]:
    """The statements of `work`, each with the database's plan for it."""
    said: list[tuple[str, Any]] = []

    def listen(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        if statement.startswith(("SELECT", "WITH")) and " FROM " in statement.replace("\n", " "):
            said.append((statement, parameters))

    engine = world.database.engine
    event.listen(engine, "before_cursor_execute", listen)
    try:
        world.database.read(work)
    finally:
        event.remove(engine, "before_cursor_execute", listen)
    with engine.connect() as connection:
        how = EXPLAIN[engine.dialect.name]
        return [(one, "\n".join(str(row[-1]) for row in connection.exec_driver_sql(how + one, values))) for one, values in said]


def fill(world: World) -> None:
    """So many jobs of one step: most have ended, a hundred run, a fifth waits; two events, a label for some, a curve for a few."""
    at = AT[world.database.engine.dialect.name]
    state = f"CASE WHEN n >= {QUEUED} THEN '%s' WHEN n >= {RUNNING} THEN 'running' WHEN n %% 50 = 1 THEN 'failed' ELSE 'succeeded' END"
    number, thousands = (f"substr(CAST(1000000 + {n} AS TEXT), 2)" for n in ("n", "n / 1000"))
    common = {"created_at": at, "priority": "0", "owner": "'o' || (n % 20)"}
    kind = "CASE n % 10 WHEN 0 THEN 'observe' ELSE 'distill' END"
    tables: dict[str, tuple[int, dict[str, str]]] = {
        "jobs": (JOBS, common | {"id": f"'job_' || {number}", "kind": kind, "state": state % "queued", "spec": "'{}'", "resolved": "'{}'"}),
        "steps": (
            JOBS,
            common
            | {"id": f"'step_' || {number}", "key": "'key_' || n", "kind": "'distill'", "queue": "'gpu'", "params": "'{}'"}
            | {"state": state % "ready", "engine": f"'{engine_digest()}'", "shape": "'s' || (n % 100)", "owner": "''", "max_attempts": "3"}
            | dict.fromkeys(("waiting", "failures", "rings", "turn"), "0")
            | {"attempt": f"CASE WHEN n < {QUEUED} THEN 1 ELSE 0 END", "ready_at": at}
            | dict.fromkeys(("started_at", "finished_at"), f"CASE WHEN n < {RUNNING} THEN {at} END"),
        ),
        "job_steps": (
            JOBS,
            {"job_id": f"'job_' || {number}", "name": "'distill'", "step_id": f"'step_' || {number}", "position": "0", "cached": "false"},
        ),
        "job_labels": (JOBS // 5, {"job_id": f"'job_' || {number}", "label": "'l' || (n % 100)"}),
        "events": (JOBS, {"job_id": f"'job_' || {number}", "type": "'job_queued'", "data": "'{}'", "at": at}),
        "events ": (JOBS, {"step_id": f"'step_' || {number}", "type": "'step_started'", "data": "'{}'", "at": at}),
        "metrics": (
            JOBS // 5,
            {"step_id": f"'step_' || {thousands}", "name": "'loss'", "x": "n % 1000", "value": "1"} | {"attempt": "1"},
        ),
        "results": (
            JOBS // 5,
            {"id": f"'syn_' || {number}", "kind": "'synthetic_set'", "job_id": f"'job_' || {number}", "step_id": f"'step_' || {number}"}
            | {"dataset_id": "'ds_digits-train'", "info": "'{}'", "created_at": at},
        ),
    }
    with world.database.engine.begin() as connection:
        for table, (rows, columns) in tables.items():
            numbers = f"WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < {rows - 1})"
            connection.execute(
                text(f"INSERT INTO {table.strip()} ({', '.join(columns)}) {numbers} SELECT {', '.join(columns.values())} FROM numbers")
            )
        connection.execute(text("ANALYZE"))
