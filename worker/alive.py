"""`python -m worker.alive [maintenance]`: whether this machine's worker, or the maintenance loop, does its work; for health checks.

A worker does if it can hear doorbells, has just said in the database that it is there, which a frozen or dead one does not, and leaves no
step lying whose doorbell was sent, which a deaf one does. The maintenance loop does if nothing is left undone: no doorbell long unsent,
no lease long run out. Exits with 1 and says why not.
"""

import argparse
import socket
import sys
from datetime import datetime, timedelta

import redis
from sqlalchemy import func, or_, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from jobs.database import connect, now, readers
from jobs.models import Doorbell, Event, Step, Worker
from jobs.settings import Settings, get_settings

PATIENCE = 30.0  # seconds for which something may wait for the maintenance loop
DEAF = 120.0  # seconds for which a step may wait, its doorbell sent, though a worker that could take it runs nothing
_PING = 4.0  # seconds


def ailment(settings: Settings, part: str, host: str) -> str:
    """What is wrong with a part ("worker" or "maintenance") on a host, in a sentence; empty if nothing is."""
    try:
        with redis.Redis.from_url(settings.redis_url, socket_timeout=_PING, socket_connect_timeout=_PING) as client:
            client.ping()
    except redis.RedisError as error:
        return f"Redis cannot be used: {error}"
    engine = connect(settings)
    try:
        with readers(engine)() as session:
            return _undone(session) if part == "maintenance" else _silent(session, host)
    except SQLAlchemyError as error:
        return f"the database cannot be used: {(str(error).splitlines() or [type(error).__name__])[0]}"
    finally:
        engine.dispose()


def _silent(session: Session, host: str) -> str:
    at = now(session)
    there = session.scalars(select(Worker).where(Worker.host == host, Worker.alive_until >= at)).all()
    if not there:
        return f"no worker of {host} has said of late that it is there"
    busy = set(session.scalars(select(Step.worker).where(Step.state == "running", Step.worker.in_([one.name for one in there]))))
    since = at - timedelta(seconds=DEAF)
    for one in there:
        heard = select(Step.id).where(Step.state == "ready", Step.queue.in_(one.queues), Step.engine == one.engine)
        unsent = select(Doorbell.id).where(Doorbell.step_id == Step.id).exists()
        waiting = heard.where(Step.ready_at < since, Step.rung_at.is_not(None), ~unsent).limit(1)
        if one.name not in busy and (step_id := session.scalar(waiting)) and not _has_worked(session, one.name, since):
            return f"worker {one.name} runs nothing, though {step_id} has waited and been rung for more than {DEAF:g} s"
    return ""


def _has_worked(session: Session, worker: str, since: datetime) -> bool:
    """Whether a step that the worker took has begun or ended since then: it may be between two."""
    moved = or_(*(moment >= since for moment in (Step.started_at, Step.finished_at, Step.ready_at)))
    took = select(Event.id).join(Step, Step.id == Event.step_id).where(Event.type == "step_started", moved)
    return session.scalar(took.where(Event.data["worker"].as_string() == worker).limit(1)) is not None


def _undone(session: Session) -> str:
    since = now(session) - timedelta(seconds=PATIENCE)
    if unsent := session.scalar(select(func.count()).select_from(Doorbell).where(Doorbell.created_at < since)):
        return f"{unsent} doorbells were not sent for {PATIENCE:g} s"
    expired = select(func.count()).select_from(Step).where(Step.state == "running", Step.lease_until < since)
    if held := session.scalar(expired):
        return f"{held} steps whose lease ran out {PATIENCE:g} s ago were not taken back"
    return ""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worker.alive", description=__doc__)
    parser.add_argument("part", nargs="?", choices=("worker", "maintenance"), default="worker")
    said = ailment(get_settings(), parser.parse_args(arguments).part, socket.gethostname())
    if said:
        print(said, file=sys.stderr)
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
