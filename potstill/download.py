"""Downloads that survive an interruption: HTTP ranges tied to one ETag, and the sha256 in it checked at the end."""

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from potstill.errors import PotstillError
from potstill.problems import check

TRIES = 5
_SHA256 = re.compile(r'"(?:sha256:)?([0-9a-f]{64})"')


@dataclass(frozen=True)
class Target:
    """Where a download goes: `path` once it is whole and right; until then `part`, and `tag` says of which version."""

    path: Path

    @property
    def part(self) -> Path:
        return self.path.with_name(self.path.name + ".part")

    @property
    def tag(self) -> Path:
        return self.path.with_name(self.path.name + ".part.etag")

    def clear(self) -> None:
        self.part.unlink(missing_ok=True)
        self.tag.unlink(missing_ok=True)


def fetch(http: httpx.Client, url: str, target: Target, on_progress: Callable[[int, int], None]) -> Path:
    """Download `url`; returns the target's path. A connection that breaks is taken up again, `TRIES` times without any gain.

    Raises `PotstillError` for a refusal, a lost connection, or bytes that are not those that the ETag names.
    """
    target.path.parent.mkdir(parents=True, exist_ok=True)
    tries = 0
    while True:
        before = _size(target.part)
        try:
            etag = _attempt(http, url, target, on_progress)
            break
        except httpx.TransportError as error:
            tries = 0 if _size(target.part) > before else tries + 1
            if tries >= TRIES:
                raise PotstillError(f"the download of {url} broke off ({error or type(error).__name__}); run it again to go on") from error
            time.sleep(0.2 * 2**tries)
    _verify(url, target, etag)
    target.part.replace(target.path)
    target.tag.unlink(missing_ok=True)
    return target.path


def _attempt(http: httpx.Client, url: str, target: Target, on_progress: Callable[[int, int], None]) -> str:
    """One request that goes on where `part` ends; returns the ETag. Leaves what it got in `part`."""
    have = _size(target.part)
    known = target.tag.read_text() if target.tag.exists() else ""
    headers = {"Range": f"bytes={have}-", "If-Range": known} if have and known else {}
    # The service may send us to a server that keeps its files. That one has tags of its own: those of the service name the bytes.
    with http.stream("GET", url, headers={**headers, "Accept-Encoding": "identity"}, follow_redirects=True) as response:
        if response.status_code == 416:  # nothing is missing, or the file is another: verify, or begin again
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            if total == str(have):
                return known
            target.clear()
            raise httpx.ReadError("the file changed", request=response.request)
        if response.status_code >= 400:
            response.read()
            check(response)
        go_on = response.status_code == 206
        etag: str = next((answer.headers["ETag"] for answer in (*response.history, response) if "ETag" in answer.headers), "")
        target.tag.write_text(etag)
        done = have if go_on else 0
        total = done + int(response.headers.get("Content-Length", 0))
        with target.part.open("ab" if go_on else "wb") as part:
            for chunk in response.iter_bytes():  # as it comes: gathered into larger pieces, the last one would be lost with the connection
                part.write(chunk)
                done += len(chunk)
                on_progress(done, total)
    return etag


def _verify(url: str, target: Target, etag: str) -> None:
    named = _SHA256.fullmatch(etag)
    if named is None:
        return
    with target.part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != named[1]:
        target.clear()
        raise PotstillError(f"the download of {url} is damaged (sha256 {found}, expected {named[1]}); it was removed: try again")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
