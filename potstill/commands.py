"""What each command of `potstill` does, given its parsed arguments."""

import argparse
import getpass
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from potstill import demo
from potstill.client import ENDED, Client
from potstill.errors import PotstillError
from potstill.progress import display, remaining, stages
from potstill.stack import Stack
from potstill.tables import comparisons, ranking_tables, table
from potstill.terminal import console, say


def up(a: argparse.Namespace) -> None:
    say(f"Starting the service in {a.home.expanduser()} ...")
    with Stack(a.home, a.port, a.workers, say) as stack:
        say(f"[bold]potstill answers at {stack.url}[/] (try {stack.url}/docs); Ctrl-C stops it. Logs: {stack.home}/logs")
        try:
            while True:
                time.sleep(1.0)
                stack.check()
        except KeyboardInterrupt:
            say("Stopping: the API, the worker (it keeps a checkpoint of its step), Redis ...")
    say("Stopped.")


def run_demo(a: argparse.Namespace) -> None:
    demo.run(a.folder, a.workers)


def migrate(a: argparse.Namespace) -> int:
    env = {**os.environ, **({"POTSTILL_HOME": str(a.home.expanduser().absolute())} if a.home else {})}
    return subprocess.run([sys.executable, "-m", "jobs.migrate"], env=env).returncode


def upload(a: argparse.Namespace) -> None:
    if not a.file.is_file():
        raise PotstillError(f"{a.file} is not a file; give a zip of images, in class folders or flat")
    with Client(a.url) as client, _transfer() as bar:
        task = bar.add_task(a.file.name, total=a.file.stat().st_size)
        dataset = client.upload(a.file, a.name, lambda done, total: bar.update(task, completed=done, total=total))
    shape = "x".join(map(str, dataset["image_shape"])) if dataset.get("image_shape") else "?"
    say(f"{dataset['id']}  {dataset['name']}  {dataset['num_images']} images of {shape}, {dataset['state']}")


def _filed(a: argparse.Namespace) -> dict[str, Any]:
    """The options that say what a job is filed under, and how urgent it is."""
    return {name: value for name, value in (("priority", a.priority), ("labels", a.label)) if value is not None}


def _owner(a: argparse.Namespace) -> str:
    """For whom: --owner, POTSTILL_OWNER, or the login name, in letters that the service takes; empty where there is none."""
    if named := a.owner or os.environ.get("POTSTILL_OWNER"):
        return str(named)
    try:
        return re.sub(r"[^A-Za-z0-9._@+-]", "-", getpass.getuser())[:63].lstrip("._@+-")
    except (KeyError, OSError):  # a process of a user that the machine does not know
        return ""


def distill(a: argparse.Namespace) -> None:
    body = _body(a) | {name: value for name, value in (("preset", a.preset), ("dataset", a.dataset)) if value is not None}
    with Client(a.url) as client:
        job = _run(client, client.distill(body), a.detach)
        if job is not None:
            say(f"synthetic set {job['results']['synthetic_set']}; next: potstill download {job['results']['synthetic_set']}")


def evaluate(a: argparse.Namespace) -> None:
    body = _body(a) | {"synthetic_set": a.synthetic_set}
    if a.train or a.test:
        body["downstream"] = [{"train": a.train or a.test, "test": a.test or a.train}]
    if a.seeds is not None:
        body["seeds"] = a.seeds
    with Client(a.url) as client:
        job = _run(client, client.evaluate(body), a.detach)
        if job is not None:
            say(f"report {job['results']['report']}")
            _show_report(client.report(job["results"]["report"])["report"])


def observe(a: argparse.Namespace) -> None:
    body = _body(a) | {name: value for name, value in (("dataset", a.dataset), ("runs", a.runs)) if value is not None}
    with Client(a.url) as client:
        job = _run(client, client.observe(body), a.detach)
        if job is not None:
            folder = a.figures or Path(job["id"])
            pictures = client.download_pictures(job["id"], folder)
            say(f"observation {job['results']['observation']}; {len(pictures)} pictures are in {folder}/")


def sweep(a: argparse.Namespace) -> None:
    body = _body(a) | {name: value for name, value in (("preset", a.preset), ("seeds", a.seeds)) if value is not None}
    with Client(a.url) as client:
        job = _run(client, client.sweep(body), a.detach)
        if job is not None:
            say(f"report {job['results']['report']}; picture {client.url}/jobs/{job['id']}/plots/ranking.png")
            _show_report(client.report(job["results"]["report"])["report"])


def _run(client: Client, job: dict[str, Any], detach: bool) -> dict[str, Any] | None:
    """Follow a job to its end; None if it was only to be posted."""
    say(f"{job['kind']} {job['id']}")
    if detach:
        return None
    try:
        with display(console) as shown:
            return client.wait(job["id"], shown.update)
    except KeyboardInterrupt:
        say(f"The job goes on. See it: potstill status {job['id']}   End it: potstill cancel {job['id']}")
        raise


def change(a: argparse.Namespace) -> None:
    fields = _filed(a)
    if not fields:
        raise PotstillError("nothing to change: give --priority, or the --label of each word the job is to be filed under")
    with Client(a.url) as client:
        job = client.change(a.job, **fields)
    say(f"{job['id']}: priority {job['priority']}, {'labels ' + ', '.join(job['labels']) if job['labels'] else 'no labels'}")


def clone(a: argparse.Namespace) -> None:
    with Client(a.url) as client:
        _go_on(client, client.clone(a.job, owner=_owner(a), **_filed(a)), a.detach)


def retry(a: argparse.Namespace) -> None:
    with Client(a.url) as client:
        _go_on(client, client.retry(a.job), a.detach)


def _go_on(client: Client, job: dict[str, Any], detach: bool) -> None:
    """Follow a job that was posted after another."""
    done = sum(step["cached"] for step in job["steps"])
    say(f"A new job after {job['parent_id']}; {done} of its {len(job['steps'])} steps are done already.")
    ended = _run(client, job, detach)
    if ended is not None:
        _show_results(ended)


def status(a: argparse.Namespace) -> None:
    with Client(a.url) as client:
        job = client.job(a.job)
        _show_job(job)
        if a.follow and job["state"] not in ENDED:
            _run(client, job, detach=False)


def _show_job(job: dict[str, Any]) -> None:
    say(f"{job['kind']} {job['id']}: [bold]{job['state']}[/], {escape(job['phase'] or '')}")
    if left := remaining(job):
        say(left)
    if job.get("error"):
        error = job["error"]
        say(f"[red]{error['code']}[/]: {escape(error['detail'])} {escape(error.get('hint') or '')}")
    out = Table("stage", "done", "of", "", "seconds", box=None)
    for stage in stages(job):
        spent = "cached" if stage.cached else "" if stage.seconds is None else f"{stage.seconds:.1f}"
        out.add_row(stage.name, f"{stage.done:.4g}", f"{stage.total:.4g}", stage.unit, spent)
    console.print(out)
    _show_results(job)


def _show_results(job: dict[str, Any]) -> None:
    for name, value in (job.get("results") or {}).items():
        if isinstance(value, str):
            say(f"{name}: {value}")


def cancel(a: argparse.Namespace) -> None:
    with Client(a.url) as client:
        job = client.cancel(a.job)
    say(f"{job['id']}: {job['state']}")


def download(a: argparse.Namespace) -> None:
    suffix = {"png": "-png.zip", "mtt": "-mtt.zip"}.get(a.format, f".{a.format}")
    with Client(a.url) as client, _transfer() as bar:
        target = a.output or Path(a.id + suffix)
        task = bar.add_task(target.name, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        if a.id.startswith("art_"):
            client.download(f"/artifacts/{a.id}/content", a.output or Path(client.get(f"/artifacts/{a.id}")["name"]), update)
        else:
            client.download_set(a.id, target, a.format, update)


def report(a: argparse.Namespace) -> None:
    with Client(a.url) as client:
        report = client.report(a.report)
    if a.json:
        print(json.dumps(report, indent=2))
    else:
        _show_report(report["report"])


def _show_report(report: dict[str, Any]) -> None:
    if "variants" in report:
        for one in ranking_tables(report["headline"]):
            console.print(one)
        return
    for comparison in comparisons(report):
        console.print(table(comparison))


def _body(a: argparse.Namespace) -> dict[str, Any]:
    """The spec of --spec with the fields of --set, where a value is JSON, or else a word; and the other options of all posts."""
    try:
        body = json.loads(a.spec.read_text()) if a.spec else {}
    except (OSError, ValueError) as error:
        raise PotstillError(f"cannot read the spec {a.spec}: {error}") from error
    if not isinstance(body, dict):
        raise PotstillError(f"the spec {a.spec} is not a JSON object")
    for assignment in a.set or []:
        path, equals, text = assignment.partition("=")
        if not (path and equals):
            raise PotstillError(f"--set takes FIELD=VALUE, such as method.iterations=100; given {assignment!r}")
        *tables, last = path.split(".")
        place = body
        for name in tables:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise PotstillError(f"--set {assignment}: {name} is not a table")
        place[last] = _value(text)
    if a.owner or "owner" not in body:
        body["owner"] = _owner(a)
    return body | _filed(a)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _transfer() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(30), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)
