"""Whether each part that the service stands on can be used now, and what else should worry whoever runs it."""

import asyncio
from functools import partial

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Engine

from api.probe import LIMIT, Probe
from jobs import database, logs, migrate
from jobs.gauges import Now
from jobs.models import QUEUES
from jobs.settings import Settings
from jobs.store import Store

PATIENCE = 30.0  # seconds for which something may wait for the maintenance loop
KEY = "potstill:readyz"  # what is written to Redis, to see that it can be
LONGEST = 300  # characters of what is wrong with a part


class Readiness:
    """The parts of one installation. engine: connections that no request uses, so that a busy service is not taken for a broken one."""

    def __init__(self, settings: Settings, store: Store, engine: Engine) -> None:
        self._settings = settings
        self._probes = {
            "database": Probe(partial(check_database, engine)),
            "store": Probe(store.check),
            "redis": Probe(self._check_redis),
        }
        self._depths = Probe(self._count_messages)

    async def parts(self) -> dict[str, str]:
        """ "ok", or what is wrong, for each part; all are asked at once."""
        return dict(zip(self._probes, await asyncio.gather(*map(self._ask, self._probes.values())), strict=True))

    async def messages(self) -> dict[str, int]:
        """Messages that wait at the broker, by queue. Raises what Redis does, or `TimeoutError`."""
        return await self._depths.ask()

    async def _ask(self, probe: Probe[None]) -> str:
        try:
            await probe.ask()
        except Exception as error:  # whatever it is, the part cannot be used
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return self._without_secrets(said)[:LONGEST] or type(error).__name__
        return "ok"

    def _without_secrets(self, text: str) -> str:
        for secret in (self._settings.database_password, self._settings.redis_password, self._settings.store_secret_access_key):
            if plain := secret.get_secret_value():
                text = text.replace(plain, "***")
        return logs.redact(text)

    def _redis(self) -> redis.Redis:
        # Redis answers at once or not at all, so one try tells.
        limits = {"socket_timeout": LIMIT, "socket_connect_timeout": LIMIT}
        return redis.Redis.from_url(self._settings.redis_url, retry=Retry(NoBackoff(), 0), **limits)

    def _check_redis(self) -> None:
        """Written to: one that is full, a replica, or cannot save answers a ping as if all were well."""
        with self._redis() as client:
            client.set(KEY, "1", ex=60)

    def _count_messages(self) -> dict[str, int]:
        with self._redis() as client:
            return {name: int(client.llen(name)) for name in QUEUES}


def check_database(engine: Engine) -> None:
    """Raises unless the database has the schema of this code and takes changes."""
    reading = engine.execution_options(reads_only=True)
    migrate.check_revision(reading)
    database.require_writable(reading)


def warnings(now: Now, room: int | None) -> list[str]:
    """What keeps jobs waiting though they can be posted. room: bytes that the store can take; None if nobody can tell."""
    told = []
    for queue in now.queues:
        steps = f"{queue.ready} step{'s wait' if queue.ready != 1 else ' waits'}"
        if queue.ready and not queue.workers:
            told.append(f"{steps} on queue {queue.name}, and no worker listens to it")
        if queue.other_engines:
            told.append(f"steps on queue {queue.name} wait for workers of another version (engine {', '.join(queue.other_engines)})")
    if now.unsent_age > PATIENCE:
        told.append(f"doorbells have not been sent for {now.unsent_age:.0f} s: does a maintenance loop run, and does it reach Redis?")
    if now.overdue_age > PATIENCE:
        told.append(f"leases that ran out {now.overdue_age:.0f} s ago were not taken back: does a maintenance loop run?")
    if room is not None and room <= 0:
        told.append("the artifact store has no room: new work is refused")
    return told
