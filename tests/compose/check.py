"""`make compose-check`: builds the images, brings the composed stack up, runs the demo's job on it, and breaks it on purpose.

The last line is `N passed, M failed`. tests/compose/composed.py says which variables choose Compose and the engine.
`--profiles s3,monitoring` checks with these; `--keep` leaves the stack up at the end; `--no-build` takes the images that are there.
"""

import argparse
import hashlib
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from potstill.client import Client
from potstill.demo import DISTILL, EVALUATE
from potstill.errors import PotstillError
from tests.compose.composed import Composed

STAGES = (("postgres", "redis"), ("migrate",), ("api",), ("worker-cpu", "maintenance"))
OURS = ("api", "worker-cpu", "maintenance")
ALL = ("postgres", "redis", *OURS)
TORCH = "import importlib.util, sys; sys.exit(0 if importlib.util.find_spec('torch') else 3)"
ENDED = ("succeeded", "failed", "cancelled")
Json = dict[str, Any]


class Check:
    """The checks, in order, on one stack; each that fails is told and counted."""

    def __init__(self, stack: Composed) -> None:
        self.stack, self.passed, self.failed = stack, 0, 0
        self.client = Client(stack.url)
        self.kept: dict[str, str] = {}  # the address of a file, and its sha256
        self.posted: list[str] = []  # jobs that were disturbed

    @contextmanager
    def that(self, what: str) -> Iterator[None]:
        """A check: passed unless its body raises."""
        began = time.monotonic()
        try:
            yield
        except Exception as error:
            self.failed += 1
            print(f"FAILED  {what}: {error}", flush=True)
            if not isinstance(error, AssertionError):
                traceback.print_exc()
        else:
            self.passed += 1
            print(f"ok      {what} ({time.monotonic() - began:.0f} s)", flush=True)

    def start(self) -> None:
        extra = [("objects",)] if "s3" in self.stack.profiles else []
        for services in (*extra, *STAGES, *([("prometheus", "grafana")] if "monitoring" in self.stack.profiles else [])):
            with self.that(f"{' and '.join(services)} start, and are ready"):
                self.stack.up(services)
        with self.that("the API says that each part is ready"):
            ready = self.client.get("/readyz")
            assert ready["ready"], ready

    def hardening(self) -> None:
        for service in OURS:
            with self.that(f"{service} is no root, and cannot write to its image"):
                assert self.stack.inside(service, "id", "-u").stdout.strip() == "10001"
                assert self.stack.inside(service, "touch", "/opt/potstill/here").returncode != 0
        for service, there in (("api", 3), ("worker-cpu", 0)):
            with self.that(f"torch is {'in' if there == 0 else 'not in'} the image of {service}"):
                assert self.stack.inside(service, "python", "-c", TORCH).returncode == there
        with self.that("Redis wants its password, writes a log to disk and evicts nothing"):
            assert "NOAUTH" in "".join(self._redis("redis-cli ping"))
            said = self._redis(f"{_AUTH} redis-cli config get appendonly; {_AUTH} redis-cli config get maxmemory-policy")[0].split()
            assert said == ["appendonly", "yes", "maxmemory-policy", "noeviction"], said
        for service in (*ALL, *(["objects"] if "s3" in self.stack.profiles else [])):
            with self.that(f"no secret of {service} is in its description, its command lines or its log"):
                name = self.stack.container(service)
                logs = self.stack.of_engine("logs", name)
                shown = self.stack.of_engine("inspect", name).stdout + logs.stdout + logs.stderr
                shown += self.stack.inside(service, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout
                found = [path.name for path in self.stack.secrets.iterdir() if path.read_text() in shown]
                assert not found, found

    def _redis(self, command: str) -> tuple[str, str]:
        done = self.stack.inside("redis", "sh", "-c", command)
        return done.stdout, done.stderr

    def demo(self) -> None:
        """The demo's two jobs over HTTP, and its files."""
        jobs: list[Json] = []
        with self.that("the demo's distillation succeeds"):
            jobs.append(self.client.wait(self.client.distill(DISTILL)["id"]))
        with self.that("its synthetic set is downloaded, and is what the API says it is"):
            set_id = jobs[0]["results"]["synthetic_set"]
            self.keep(f"/synthetic-sets/{set_id}/download?format=safetensors")
        with self.that("the demo's evaluation succeeds, and the report compares the set with baselines"):
            evaluated = self.client.wait(self.client.evaluate({"synthetic_set": set_id, **EVALUATE})["id"])
            arms = {row["arm"] for row in self.client.report(evaluated["results"]["report"])["report"]["table"]}
            assert {"synthetic", "random", "k_means", "high_loss"} <= arms, arms
        with self.that("every file of the distillation can be downloaded"):
            for one in self.client.artifacts(jobs[0]["id"]):
                self.keep(f"/artifacts/{one['id']}/content")

    def keep(self, address: str) -> None:
        """Download a file (the client verifies it) and remember it."""
        self.kept[address] = self._sha256(address)

    def _sha256(self, address: str) -> str:
        target = self.stack.folder / hashlib.sha256(address.encode()).hexdigest()
        target.unlink(missing_ok=True)
        return hashlib.sha256(self.client.download(address, target).read_bytes()).hexdigest()

    def restarts(self) -> None:
        """Each service in turn, in the middle of a step; a job that ended meanwhile is followed by another."""
        for service in (*ALL, *(["objects"] if "s3" in self.stack.profiles else [])):
            with self.that(f"{service} is restarted while a step runs, and is ready again"):
                self._running()
                self.stack.run("restart", service)
                self.stack.wait(service)
        with self.that("PostgreSQL was told to stop, and not killed"):
            said = self.stack.of_engine("logs", self.stack.container("postgres"))
            assert "not properly shut down" not in said.stdout + said.stderr
        with self.that("PostgreSQL is killed while a step runs, and is ready again"):
            self._running()
            self.stack.of_engine("kill", "--signal", "KILL", self.stack.container("postgres"))
            self.stack.run("start", "postgres")
            self.stack.wait("postgres")
        self._ends_well()
        with self.that("no attempt of it failed"):
            events = [event for job in self.posted for event in self._events(job)]
            failed = [event for event in events if event["type"] in ("step_retried", "step_failed")]
            assert events
            assert not failed, failed

    def _events(self, job: str) -> list[Json]:
        events: list[Json] = self.client.get(f"/jobs/{job}/events", limit=1000)["data"]
        return events

    def _ends_well(self) -> None:
        with self.that("what ran meanwhile succeeds"):
            for job in self.posted:
                self.client.wait(job)
        with self.that("no step of it failed, and each succeeded once"):
            for job in self.posted:
                steps = self.client.job(job)["steps"]
                assert {step["state"] for step in steps} == {"succeeded"}, steps
                own = [step["name"] for step in steps if not step["cached"]]  # of what was done before, the events are another job's
                done = [event["step"] for event in self._events(job) if event["type"] == "step_succeeded"]
                assert sorted(done) == sorted(own), f"recorded as done: {done}, of {own}"

    def _running(self) -> None:
        """Return when a step of a job posted here runs; posts another when the last one has ended."""

        def runs() -> bool:
            if not self.posted or self.client.job(self.posted[-1])["state"] in ENDED:
                self.posted.append(self.client.distill({**DISTILL, "seed": 100 + len(self.posted)})["id"])
            return any(step["state"] == "running" for step in self.client.job(self.posted[-1])["steps"])

        _until(runs, "no step runs")

    def down_and_up(self) -> None:
        """Containers and networks go, in the middle of a step; volumes stay.

        Some engines stop everything at once: then the worker has nowhere to hand its step back, and the lease must run out first.
        """
        before: dict[str, str] = {}
        with self.that("everything is taken down while a step runs"):
            self._running()
            before = {job["id"]: job["state"] for job in self.client.jobs(limit=100) if job["state"] in ENDED}
            self.stack.run("down")
        self.start()
        with self.that("all jobs are still there"):
            after = {job["id"]: job["state"] for job in self.client.jobs(limit=100)}
            assert {job: after.get(job) for job in before} == before
            assert set(self.posted) <= after.keys()
        self._ends_well()
        with self.that(f"all {len(self.kept)} files are still there, byte for byte"):
            assert self.kept, "nothing was downloaded before"
            assert {address: self._sha256(address) for address in self.kept} == self.kept
        with self.that("what was computed before is not computed again"):
            job = self.client.wait(self.client.distill(DISTILL)["id"])
            assert all(step["cached"] for step in job["steps"]), job["steps"]

    def monitoring(self) -> None:
        port = self.stack.environment["POTSTILL_PROMETHEUS_PORT"]

        def of_prometheus(what: str) -> Json:
            return httpx.get(f"http://127.0.0.1:{port}/api/v1/{what}", timeout=10).raise_for_status().json()["data"]

        def scraped() -> bool:
            targets = of_prometheus("targets")["activeTargets"]
            return bool(targets) and all(target["health"] == "up" for target in targets)

        def evaluated() -> bool:
            rules = [rule for group in of_prometheus("rules")["groups"] for rule in group["rules"]]
            return bool(rules) and all(rule["health"] == "ok" for rule in rules)

        with self.that("Prometheus reads every target"):
            _until(scraped, "a target is not up")
        with self.that("and evaluates every rule"):
            _until(evaluated, "a rule has no value")

    def revisions(self) -> None:
        """Last, for it takes the database back by one revision."""
        self.stack.run("stop", *OURS)
        with self.that("a database of another revision is refused, with words that say what to run"):
            self.stack.run("run", "--rm", "--no-deps", "migrate", "python", "-m", "jobs.migrate", "downgrade", "-1")
            for service, command in (("worker-cpu", ()), ("maintenance", ()), ("api", ())):
                done = self.stack.run("run", "--rm", "--no-deps", service, *command, check=False)
                assert done.returncode != 0, f"{service} started"
                assert "migrate" in done.stdout + done.stderr, f"{service} said: {done.stdout[-500:]}{done.stderr[-500:]}"
        with self.that("migrating brings it back, with all that it had"):
            self.stack.run("run", "--rm", "--no-deps", "migrate")
            self.stack.run("start", *OURS)
            for service in OURS:
                self.stack.wait(service)
            assert {address: self._sha256(address) for address in self.kept} == self.kept


_AUTH = "REDISCLI_AUTH=$(cat /run/secrets/redis_password)"


def _until(condition: Callable[[], bool], otherwise: str, seconds: float = 120.0) -> None:
    """Wait for a condition; an API that restarts is no answer, and is asked again."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if condition():
                return
        except (httpx.HTTPError, PotstillError):
            pass
        time.sleep(0.2)
    raise AssertionError(f"{otherwise} within {seconds:g} s")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make compose-check", description=__doc__)
    parser.add_argument("--profiles", default="", help="also these: s3, monitoring")
    parser.add_argument("--no-build", action="store_true", help="take the images that are there")
    parser.add_argument("--keep", action="store_true", help="leave the stack up")
    arguments = parser.parse_args()
    stack = Composed(*[name for name in arguments.profiles.split(",") if name])
    check = Check(stack)
    try:
        if not arguments.no_build:
            with check.that("the images build"):
                stack.run("build")
        check.start()
        check.hardening()
        check.demo()
        check.restarts()
        if "monitoring" in stack.profiles:
            check.monitoring()
        check.down_and_up()
        check.revisions()
    finally:
        if not arguments.keep:
            stack.run("down", "--volumes", check=False)
            shutil.rmtree(stack.folder, ignore_errors=True)
    print(f"{check.passed} passed, {check.failed} failed")
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main())
