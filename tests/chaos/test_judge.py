"""The judge of the chaos rounds, put to the test itself: it must see whatever goes wrong."""

import dataclasses
import hashlib
import http.client
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import Engine, insert, update

from jobs.database import sessions, transact
from jobs.models import Event, Job, Metric, Step
from jobs.settings import Settings
from jobs.store import open_store
from tests.chaos import faults
from tests.chaos.__main__ import plan
from tests.chaos.faults import FAULTS, Scene, taken_over
from tests.chaos.judge import SET, Facts, compare, gather, misnamed
from tests.chaos.rounds import Lane, pace
from tests.chaos.servers import Manner, PostgreSQL, Proxy
from tests.chaos.stand import Late, Stand
from tests.chaos.watch import Watcher
from tests.worker.service import RedisServer, post, until

GOOD = Facts(
    state="succeeded",
    jobs=1,
    steps={"teacher": "succeeded", "distill": "succeeded"},
    successes={"teacher": 1, "distill": 1},
    artifacts={SET: "a" * 64, ("distill", "step.json"): "b" * 64, ("teacher", "teacher.safetensors"): "c" * 64},
    curves={("distill", "matching_loss"): [(1.0, 0.5), (2.0, 0.25), (3.0, None)]},
    downloaded="a" * 64,
)


def test_a_run_like_the_undisturbed_one_passes() -> None:
    assert compare(GOOD, GOOD) == []
    other_times = dataclasses.replace(GOOD, artifacts=GOOD.artifacts | {("distill", "step.json"): "d" * 64}, attempts=7, failures=2)
    assert compare(other_times, GOOD, costs=2) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"state": "failed", "error": "worker_lost: gone"}, "the job is failed: worker_lost: gone"),
        ({"jobs": 2}, "there are 2 jobs instead of one"),
        ({"failures": 1}, "counted against the steps are 1 failures, and may be 0"),
        ({"successes": {"teacher": 2, "distill": 1}}, "step teacher is succeeded, and has succeeded 2 times"),
        ({"successes": {"distill": 1}}, "step teacher is succeeded, and has succeeded 0 times"),
        ({"steps": {"teacher": "running", "distill": "succeeded"}}, "step teacher is running"),
        ({"steps": {"distill": "succeeded"}}, "steps are missing: ['teacher']"),
        ({"artifacts": GOOD.artifacts | {SET: "e" * 64}, "downloaded": "e" * 64}, "the synthetic set is eeeeeeeeeeee"),
        ({"artifacts": GOOD.artifacts | {("teacher", "teacher.safetensors"): "e" * 64}}, "teacher.safetensors of step teacher is eeee"),
        ({"artifacts": GOOD.artifacts | {("teacher", "more.json"): "e" * 64}}, "should not be: [('teacher', 'more.json')]"),
        ({"artifacts": {SET: "a" * 64}}, "artifacts are missing"),
        ({"downloaded": "f" * 64}, "was downloaded as ffffffffffff"),
        ({"curves": {("distill", "matching_loss"): [(1.0, 0.5), (3.0, None)]}}, "has 2 points, undisturbed 3"),
        ({"curves": {("distill", "matching_loss"): [(1.0, 0.5), (2.0, 0.25), (2.0, 0.5), (3.0, None)]}}, "has a point twice"),
        ({"curves": {("distill", "matching_loss"): [(1.0, 0.5), (2.0, 0.75), (3.0, None)]}}, "distill is 0.75 at 2, undisturbed 0.25"),
        ({"curves": {}}, "curves are missing"),
        ({"wrong": ["process 7 was left"]}, "process 7 was left"),
    ],
)
def test_whatever_differs_is_said(change: dict[str, Any], words: str) -> None:
    assert words in "\n".join(compare(dataclasses.replace(GOOD, **change), GOOD))


def test_a_file_without_its_name_is_seen() -> None:
    whole = b"all of it"
    name = hashlib.sha256(whole).hexdigest()
    assert misnamed({name: whole}) == []
    assert misnamed({name: whole[:4]}) == [f"the store holds 4 bytes under the name {name[:12]}"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_rows_and_blobs_are_read_as_they_are(settings: Settings, engine: Engine, tmp_path: Path) -> None:
    """A step that was noted to have succeeded twice, its curve, and a half-written blob."""
    job_id, steps = post(settings, engine, num_images=4, method={"name": "random"})
    twice = [{"step_id": steps["teacher"], "type": "step_succeeded", "data": {}, "at": transact(sessions(engine), _created)}] * 2
    transact(sessions(engine), lambda session: session.execute(insert(Event), twice))
    points = [{"step_id": steps["teacher"], "name": "loss", "x": x, "value": value, "attempt": 1} for x, value in ((2.0, None), (1.0, 0.1))]
    transact(sessions(engine), lambda session: session.execute(insert(Metric), points))
    (tmp_path / "file").write_bytes(b"whole")
    blob = open_store(settings).put(tmp_path / "file")
    place = open_store(settings).here(blob.sha256)
    assert place is not None
    place.chmod(0o644)
    place.write_bytes(b"wh")
    facts = gather(Stand(settings, engine, {}), job_id)
    assert (facts.state, facts.jobs, facts.successes["teacher"], facts.steps["teacher"]) == ("queued", 1, 2, "blocked")
    assert facts.curves == {("teacher", "loss"): [(1.0, 0.1), (2.0, None)]}
    assert facts.wrong == [f"the store holds 2 bytes under the name {blob.sha256[:12]}"]


def _created(session: Any) -> Any:
    return session.query(Step.created_at).first()[0]


def test_what_is_shown_may_not_be_taken_back() -> None:
    watcher = Watcher("http://127.0.0.1:1", "job")
    watcher.stop()
    job = {"state": "running", "results": {}, "steps": [{"name": "a", "state": "succeeded"}, {"name": "b", "state": "running"}]}
    watcher.see(job)
    assert watcher.wrong == []
    watcher.see(job | {"steps": [{"name": "a", "state": "running"}, {"name": "b", "state": "running"}]})
    watcher.see(job | {"state": "succeeded", "results": {}})
    assert watcher.wrong == [
        "a was succeeded, and then running",
        "the job has succeeded, but b not",
        "a job that is succeeded shows no synthetic set",
    ]


def test_an_answer_that_is_no_json_is_wrong_and_looking_goes_on(echo: int) -> None:
    watcher = Watcher(f"http://127.0.0.1:{echo}", "job")
    until(lambda: watcher.wrong, 10)
    watcher.stop()
    assert watcher.wrong == ["an answer could not be made sense of: JSONDecodeError: Expecting value: line 1 column 1 (char 0)"]


def test_who_looks_must_look_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watcher, "_run", lambda self: None)
    watcher = Watcher("http://127.0.0.1:1", "job")
    until(lambda: not watcher.looking, 10)
    watcher.stop()
    watcher.stop()
    assert watcher.wrong == ["who looked at the job gave up before its end"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_fault_that_comes_when_the_job_has_ended_is_late(settings: Settings, engine: Engine, tmp_path: Path) -> None:
    scene, steps = _scene(settings, engine)
    lane = Lane(tmp_path, tmp_path, keep=False)
    lane.undisturbed = Facts(seconds={"teacher": 0.01})
    _change(engine, Step, steps["teacher"], state="succeeded")
    lane.wait_for_the_moment(scene)
    _change(engine, Job, scene.job_id, state="succeeded")
    with pytest.raises(Late):
        lane.wait_for_the_moment(scene)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_frozen_step_must_be_taken_over(settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, steps = _scene(settings, engine)
    monkeypatch.setattr(faults, "_TAKEN_OVER", 0.1)
    monkeypatch.setattr(faults, "_LOCKED", 0.1)
    _change(engine, Step, steps["teacher"], state="running", attempt=1)
    step = scene.stand.step(steps["teacher"])
    assert not taken_over(scene, step, whole=True)
    scene.postgresql = cast(PostgreSQL, object())
    with pytest.raises(TimeoutError, match="nobody took over teacher"):
        taken_over(scene, step, whole=True)
    _change(engine, Step, step.id, state="succeeded")
    assert taken_over(scene, step, whole=False)
    with pytest.raises(Late):
        taken_over(scene, step, whole=True)
    _change(engine, Step, step.id, attempt=2)
    assert taken_over(scene, step, whole=True)


def _scene(settings: Settings, engine: Engine) -> tuple[Scene, dict[str, str]]:
    """A job that nobody works on, and its steps' ids by their names."""
    job_id, steps = post(settings, engine, num_images=4, method={"name": "random"})
    scene = Scene(Stand(settings, engine, {}), cast(RedisServer, object()), random.Random(1), {}, job_id=job_id)
    return scene, steps


def _change(engine: Engine, what: type[Job] | type[Step], id: str, **values: Any) -> None:
    transact(sessions(engine), lambda session: session.execute(update(what).where(what.id == id).values(**values)))


def test_every_fault_is_played_on_a_database_that_it_applies_to() -> None:
    rounds = plan(20, seed=5)
    assert {one.fault for one in rounds} == FAULTS.keys()
    assert all(one.database in FAULTS[one.fault].databases for one in rounds)
    assert {one.database for one in rounds} == {"postgresql", "sqlite"}
    assert rounds == plan(20, seed=5)
    assert rounds != plan(20, seed=6)
    with pytest.raises(SystemExit, match="applies only to postgresql"):
        plan(1, 0, ["postgresql-crashed"], ["sqlite"])


def test_a_fault_waits_as_much_longer_as_the_steps_before_it_took() -> None:
    undisturbed = {"teacher": 1.0, "experts": 2.0, "distill": 9.0}
    assert pace({}, undisturbed) == 1.0
    assert pace({"teacher": 3.0, "experts": 1.5}, undisturbed) == 1.5


@pytest.fixture
def echo() -> Any:
    """A server that answers with 1000 bytes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 1000)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("manner", "answer"), [("well", 1000), ("503", 503), ("reset", "RemoteDisconnected"), ("cut", "IncompleteRead")])
def test_the_proxy_disturbs_as_it_says(echo: int, manner: Manner, answer: int | str) -> None:
    proxy = Proxy(echo)
    proxy.manner = manner
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=10)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        found: int | str = response.status if response.status != 200 else len(response.read())
    except http.client.HTTPException as error:
        found = type(error).__name__
    finally:
        connection.close()
        proxy.stop()
    assert found == answer
