"""The Python client: what the HTTP face offers, as methods; uploads and downloads say how far they are."""

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

import httpx

from potstill.download import Target, fetch
from potstill.errors import JobFailed, PotstillError
from potstill.problems import Refused, check

DEFAULT_URL = "http://127.0.0.1:8000"
ENDED = ("succeeded", "failed", "cancelled")
RESPITE = 5.0  # times as long as an answer took, `wait` leaves the API alone
PATIENCE = 60.0  # seconds that an API which does not answer is waited for
AWAY = (502, 503, 504)  # answers of an API that lacks its database for the moment, or of a proxy that lacks the API
LONGEST_PAUSE = 10.0  # seconds until such an API is asked again, whatever it says
SLOW = 600.0  # seconds for a part of a long work: ten, and however long the file takes that was begun

Json = dict[str, Any]
Progress = Callable[[int, int], None]  # bytes so far, bytes in all
OnPart = Callable[[Json], None]  # one answer of those that a long work takes


def ignore(done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


def unheard(part: Json) -> None:
    """An `OnPart` that does nothing."""


class Client:
    """A connection to one service; `with Client() as client: ...`. Every method raises `PotstillError`.

    Beside its spec, the body of a job may hold `priority`, `labels` and `owner`, the name for which workers are divided fairly: the
    service takes whatever it is given, and an absent owner for one more of them.
    url: where the API answers; the environment's POTSTILL_URL when absent, else this machine's port 8000.
    """

    def __init__(self, url: str | None = None, *, timeout: float = 30.0) -> None:
        self.url = (url or os.environ.get("POTSTILL_URL") or DEFAULT_URL).rstrip("/")
        self._http = httpx.Client(base_url=self.url, timeout=timeout, follow_redirects=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()

    def get(self, path: str, **params: Any) -> Json:
        """The JSON at `path`; parameters that are None are left out."""
        return self._json("GET", path, params={k: v for k, v in params.items() if v is not None})

    def post(self, path: str, body: Json | None = None, *, idempotency_key: str | None = None) -> Json:
        """Post JSON and return the JSON of the answer. The same key twice is the same request: it is not done again."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._json("POST", path, json=body or {}, headers=headers)

    def datasets(self) -> list[Json]:
        """All datasets, built in and uploaded."""
        page = self.get("/datasets", limit=200)
        found = cast("list[Json]", page["data"])
        while page["has_more"]:
            page = self.get("/datasets", limit=200, cursor=page["next_cursor"])
            found += page["data"]
        return found

    def dataset(self, id: str) -> Json:
        return self.get(f"/datasets/{id}")

    def upload(self, path: Path, name: str | None = None, on_progress: Progress = ignore) -> Json:
        """Upload a zip of images; returns its dataset."""
        with path.open("rb") as file:
            counted = cast("IO[bytes]", _Counted(file, path.stat().st_size, on_progress))
            files = {"file": (path.name, counted, "application/zip")}
            return self._json("POST", "/datasets", files=files, data={"name": name or path.stem}, timeout=httpx.Timeout(30.0, read=600.0))

    def distill(self, body: Json, *, idempotency_key: str | None = None) -> Json:
        """Post a distillation; returns its job."""
        return self.post("/distill", body, idempotency_key=idempotency_key)

    def evaluate(self, body: Json, *, idempotency_key: str | None = None) -> Json:
        """Post an evaluation; returns its job."""
        return self.post("/evaluate", body, idempotency_key=idempotency_key)

    def observe(self, body: Json, *, idempotency_key: str | None = None) -> Json:
        """Post an observation; returns its job."""
        return self.post("/observe", body, idempotency_key=idempotency_key)

    def sweep(self, body: Json, *, idempotency_key: str | None = None) -> Json:
        """Post a sweep; returns its job."""
        return self.post("/sweeps", body, idempotency_key=idempotency_key)

    def jobs(self, **filters: Any) -> list[Json]:
        """One page of jobs, newest first; filters: kind, state, label, owner, limit, cursor."""
        return cast("list[Json]", self.get("/jobs", **filters)["data"])

    def job(self, id: str) -> Json:
        return self.get(f"/jobs/{id}")

    def cancel(self, id: str) -> Json:
        return self.post(f"/jobs/{id}/cancel")

    def change(self, id: str, **fields: Any) -> Json:
        """Give a job another `priority` (from the next claim on) or other `labels`; returns the job."""
        return self._json("PATCH", f"/jobs/{id}", json=fields)

    def clone(self, id: str, *, idempotency_key: str | None = None, **fields: Any) -> Json:
        """Post a job of the same spec; returns it. fields: `priority`, `labels`, `owner`, where they differ from that job's."""
        return self.post(f"/jobs/{id}/clone", fields, idempotency_key=idempotency_key)

    def retry(self, id: str, *, idempotency_key: str | None = None) -> Json:
        """Post a job that failed or was cancelled again, as a new job; returns that. What it had finished is not done again."""
        return self.post(f"/jobs/{id}/retry", idempotency_key=idempotency_key)

    def pin(self, id: str, *, pinned: bool = True) -> Json:
        """Keep the files of all steps of a job, however long nobody uses them; or no longer."""
        return self._json("PATCH", f"/jobs/{id}", json={"pinned": pinned})

    def gc(self, *, dry_run: bool = False, unused_days: float | None = None, on_part: OnPart = unheard) -> Json:
        """Remove files that nobody needs from the store; with `dry_run`, what would go. It may take long: `on_part` hears of each part.

        unused_days: also what can be computed again and was not used for so long, whatever the service's settings are.
        """
        asked = {"dry_run": str(dry_run).lower(), "unused_days": unused_days}
        total: Json = {}
        for part in self._parts("/gc", {name: value for name, value in asked.items() if value is not None}):
            on_part(part)
            counted = ("files", "bytes", "deleted_files", "deleted_bytes")
            total = part | {name: total.get(name, 0) + part[name] for name in counted} | {"unneeded": _shares(total, part)}
        return total

    def verify(self, *, on_part: OnPart = unheard) -> Json:
        """Have every file of the store read; tells which are damaged (and now set aside) and which are missing.

        It may take long: `on_part` hears of each part.
        """
        total: Json = {}
        for part in self._parts("/verify", {}):
            on_part(part)
            total = part | {name: total[name] + part[name] for name in total if name not in ("has_more", "next_cursor")}
        return total

    def _parts(self, path: str, params: Json) -> Iterator[Json]:
        """The answers to a long work's calls, each of which goes on where the one before stopped. An API that does not answer for a
        moment is asked again, for a minute, once it has begun."""
        more, patience = params, _Patience(0.0)
        while True:
            try:
                part = self._json("POST", path, params=more, timeout=SLOW)
            except Unreachable as error:
                time.sleep(patience.again(error))
                continue
            patience = _Patience(PATIENCE)
            yield part
            if not part["has_more"]:
                return
            more = params | {"cursor": part["next_cursor"]}

    def wait(self, id: str, on_update: Callable[[Json], None] = lambda job: None, interval: float = 0.5) -> Json:
        """Poll a job every `interval` seconds until it ends; returns its last body, or raises `JobFailed`.

        An API that does not answer for a moment (it or its database restarts, the network blinks) is asked again, for a minute. One that
        many ask at once says for how long it wants to be left alone, up to a minute; and a job of thousands of steps, which takes a while
        to tell, is asked for less often.
        """
        patience = _Patience(PATIENCE)
        while True:
            asked = time.monotonic()
            try:
                job = self.job(id)
            except Unreachable as error:
                time.sleep(max(interval, patience.again(error)))
                continue
            took, patience = time.monotonic() - asked, _Patience(PATIENCE)
            on_update(job)
            if job["state"] in ENDED:
                return _ended(job)
            time.sleep(pause(job, took, interval))

    def artifacts(self, job_id: str) -> list[Json]:
        """The files of a job."""
        return cast("list[Json]", self.get(f"/jobs/{job_id}/artifacts")["data"])

    def download(self, path: str, target: Path, on_progress: Progress = ignore) -> Path:
        """Download the file at the address `path` to `target`, going on where an earlier try stopped, and verify its sha256."""
        return fetch(self._http, path, Target(target), on_progress)

    def download_pictures(self, job_id: str, folder: Path) -> list[Path]:
        """Download every figure of a job as PNG into `folder`."""
        plots = [one for one in self.artifacts(job_id) if one["kind"] == "plot" and one["name"].endswith(".png")]
        return [self.download(f"/artifacts/{one['id']}/content", folder / one["name"]) for one in plots]

    def download_set(self, id: str, target: Path, format: str = "safetensors", on_progress: Progress = ignore) -> Path:
        """Download a synthetic set; format: safetensors, pt, png, parquet or mtt."""
        return self.download(f"/synthetic-sets/{id}/download?format={format}", target, on_progress)

    def report(self, id: str) -> Json:
        """A report; in its `report`, `table` has one row an arm, `paired` the differences of synthetic minus arm.

        Of a sweep, `headline` has the variants' order, accuracies and differences.
        """
        return self.get(f"/reports/{id}")

    def _json(self, method: str, path: str, **options: Any) -> Json:
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise Unreachable(
                f"no answer from {self.url} ({error or type(error).__name__}); is it running? potstill up starts it here"
            ) from error
        try:
            check(response)
        except Refused as error:
            if error.status in AWAY:
                raise Unreachable(str(error), response.headers.get("Retry-After", "")) from error
            raise
        return cast("Json", response.json())


class Unreachable(PotstillError):
    """The API does not answer, or cannot for the moment. again: seconds after which it may, by what it says of that."""

    def __init__(self, message: str, retry_after: str = "") -> None:
        super().__init__(message)
        self.again = min(float(retry_after), LONGEST_PAUSE) if retry_after.isdecimal() else 1.0


class _Patience:
    """With an API that fails: so many seconds from its first failure on."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._since = seconds, math.inf

    def again(self, error: Unreachable) -> float:
        """Seconds until it is to be asked again; raises the error when that has been tried for long enough."""
        self._since = min(self._since, time.monotonic())
        if time.monotonic() - self._since >= self._seconds:
            raise error
        return error.again


def pause(job: Json, took: float, interval: float = 0.5) -> float:
    """Seconds until a job that goes on is to be asked for again, after an answer that took `took` seconds."""
    return float(max(interval, RESPITE * took, job.get("poll_after_seconds") or 0.0))


def _ended(job: Json) -> Json:
    if job["state"] == "succeeded":
        return job
    if job["state"] == "cancelled":
        raise JobFailed(f"{job['kind']} {job['id']} was cancelled", job)
    error = job.get("error") or {}
    steps = [f"{step['name']}" for step in job.get("steps", []) if step["state"] == "failed"]
    where = f" in step {', '.join(steps)}" if steps else ""
    hint = f"; {error['hint']}" if error.get("hint") else ""
    raise JobFailed(
        f"{job['kind']} {job['id']} failed{where} ({error.get('code', 'internal')}): {error.get('detail', 'no detail')}{hint}", job
    )


def _shares(total: Json, part: Json) -> list[Json]:
    """What two answers of a collection found, by kind."""
    shares: dict[str, Json] = {}
    for one in (*total.get("unneeded", ()), *part["unneeded"]):
        was = shares.get(one["kind"], one | {"files": 0, "bytes": 0})
        sums = {name: was[name] + one[name] for name in ("files", "bytes")}
        shares[one["kind"]] = one | sums | {"oldest": min(was["oldest"], one["oldest"])}
    return list(shares.values())


class _Counted:
    """A file that reports how much of it was read."""

    def __init__(self, file: IO[bytes], size: int, on_progress: Progress) -> None:
        self._file, self._size, self._on_progress = file, size, on_progress

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._on_progress(self._file.tell(), self._size)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def fileno(self) -> int:
        return self._file.fileno()
