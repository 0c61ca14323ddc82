"""Whether parts can really be used, told in time whatever hangs, and without secrets."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import obstore
import pytest
import redis
from obstore.exceptions import PermissionDeniedError
from sqlalchemy import update

from api.readiness import Readiness, warnings
from jobs import gauges
from jobs.database import connect_to_watch
from jobs.errors import StoreAway
from jobs.models import Doorbell, Step
from jobs.settings import Settings
from jobs.store import FolderStore, Store, open_store
from jobs.workers import Presence, report
from tests.conftest import Database
from tests.jobs.harness import World, plan
from tests.object_server import ObjectServer


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
    for connection in held:
        connection.close()


@pytest.fixture
def world(database: Database, tmp_path: Path) -> World:
    return World(database, FolderStore(tmp_path / "blobs"), tmp_path)


def readiness_of(settings: Settings, store: Store | None = None) -> Readiness:
    return Readiness(settings, store or FolderStore(Path(settings.store)), connect_to_watch(settings))


def parts_of(settings: Settings, store: Store | None = None) -> dict[str, str]:
    return asyncio.run(readiness_of(settings, store).parts())


def test_all_parts_are_well_on_both_databases(database: Database, redis_url: str) -> None:
    settings = database.settings.model_copy(update={"redis_url": redis_url})
    assert parts_of(settings) == {"database": "ok", "store": "ok", "redis": "ok"}


@dataclass(frozen=True)
class HangingStore(FolderStore):
    def check(self) -> None:
        threading.Event().wait(60)


def test_what_hangs_is_told_in_time_and_never_asked_twice(tmp_path: Path, silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.probe.LIMIT", 1.0)
    addresses = {"database_url": f"postgresql://me:hunter2@127.0.0.1:{silent}/x", "redis_url": f"redis://:hunter2@127.0.0.1:{silent}/0"}
    readiness = readiness_of(Settings(home=tmp_path, **addresses), HangingStore(tmp_path))

    async def ask_thrice() -> list[dict[str, str]]:
        first = await asyncio.gather(readiness.parts(), readiness.parts())
        return [*first, await readiness.parts()]

    began, before = time.monotonic(), threading.active_count()
    told = asyncio.run(ask_thrice())
    assert time.monotonic() - began < 5, "three parts one after the other, asked twice, would take 6 s"
    assert told[0] == told[1] == told[2] == dict.fromkeys(("database", "store", "redis"), "no answer within 1 s")
    assert threading.active_count() <= before + 3


def test_redis_that_answers_pings_but_takes_nothing_is_not_ready(settings: Settings, redis_url: str) -> None:
    ours = settings.model_copy(update={"redis_url": redis_url})
    with redis.Redis.from_url(redis_url) as server:
        try:
            server.config_set("maxmemory", "1")
            assert "maxmemory" in parts_of(ours)["redis"]
            server.config_set("maxmemory", "0")
            server.replicaof("127.0.0.1", 1)
            assert "read only replica" in parts_of(ours)["redis"]
        finally:
            server.replicaof("NO", "ONE")
            server.config_set("maxmemory", "0")
    assert parts_of(ours)["redis"] == "ok"


def test_a_database_that_takes_no_changes_is_not_ready(postgresql: str, postgresql_engine: object, settings: Settings) -> None:
    mark = "&" if "?" in postgresql else "?"
    standby = f"{postgresql}{mark}options=-c%20default_transaction_read_only%3Don"
    told = parts_of(settings.model_copy(update={"database_url": standby}))
    assert told["database"] == "the database takes no changes: it is a standby, or set to read only"


def test_a_bucket_that_may_only_be_read_is_not_ready(object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = object_server.settings(tmp_path)
    store = open_store(settings)
    with monkeypatch.context() as patched:

        def refuse(*_: object) -> None:
            raise PermissionDeniedError("403 Forbidden: AccessDenied")

        patched.setattr(obstore, "put", refuse)
        assert "AccessDenied" in parts_of(settings, store)["store"]
    assert parts_of(settings, store)["store"] == "ok"
    assert ".writable" in object_server.objects(settings)
    monkeypatch.setattr(obstore, "put", lambda *_: pytest.fail("written again"))
    assert parts_of(settings, store)["store"] == "ok"


@dataclass(frozen=True)
class TellingStore(FolderStore):
    def check(self) -> None:
        raise StoreAway("GET https://s3.example/b?X-Amz-Signature=hunter2&X-Amz-Credential=hunter2: 403, secret hunter2-key")


def test_no_secret_is_told(tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path,
        database_url="postgresql://me:hunter2@no-such-host.invalid:5432/x",
        redis_url="redis://:hunter2@no-such-host.invalid:6379/0",
        store_access_key_id="id",
        store_secret_access_key="hunter2-key",
    )
    told = parts_of(settings, TellingStore(tmp_path))
    assert "ok" not in told.values()
    assert "hunter2" not in str(told)
    assert "s3.example" in told["store"]


def test_what_keeps_jobs_waiting_is_told_as_a_warning(world: World) -> None:
    def told(room: int | None = None) -> list[str]:
        return warnings(world.database.read(gauges.look), room)

    assert told() == []
    job_id = world.submit(plan("a", "b", "distill<a,b"))
    assert told() == ["2 steps wait on queue gpu, and no worker listens to it"]
    one = Presence("one/1", "host", 1, ("gpu",), "other", "1.0")
    world.database.write(lambda s: report(s, one, alive_seconds=60))
    (mismatch,) = told()
    assert mismatch.startswith("steps on queue gpu wait for workers of another version (engine ")
    world.database.write(lambda s: s.execute(update(Step).values(engine="other")))
    assert told() == []
    with world.database.sessions.begin() as session:
        for bell in session.query(Doorbell):
            bell.created_at -= timedelta(seconds=100)
    assert "doorbells have not been sent for 10" in told()[0]
    world.database.write(lambda s: s.execute(Doorbell.__table__.delete()))
    held = world.claim(job_id, "a")
    world.pass_time(held.step_id, 200)
    assert told()[0].startswith("leases that ran out 1")
    world.finish(held)
    assert told(room=1) == []
    assert told(room=0) == ["the artifact store has no room: new work is refused"]
