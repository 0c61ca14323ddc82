"""People who wait for jobs: `python -m benchmarks.load_clients URL IDS --pollers 2000 --streams 200`, in one process without threads.

A poller asks for the status of a job until that has ended, and goes on to another one's; it pauses as `potstill.client.Client.wait`
does. A stream follows the events of a job to its end, and goes on to another one's. Each has a connection of its own, which a poller
opens anew after a pause for which no server keeps it. The time of a poll counts from the moment at which it was due, so that an answer
that is late does not hide the polls that it holds up. The last line of the output is one JSON object.
"""

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httptools

from potstill.client import ENDED, pause

IDLE_SECONDS = 4.0  # less than uvicorn keeps a connection on which nothing is asked
EACH = 5  # jobs that a stream follows one after the other
ONCE = ("job_queued", "step_started", "job_running", "step_succeeded", "job_succeeded", "end")  # what a stream of a job tells


class Connection(asyncio.Protocol):
    """A connection to the API on which one request at a time is made; `body` gets the pieces of the answer as they come."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._pieces.put_nowait(None)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._pieces.put_nowait(body)

    def on_message_complete(self) -> None:
        self._pieces.put_nowait(None)

    def ask(self, path: str, accept: str) -> None:
        """Send a request."""
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(f"GET {path} HTTP/1.1\r\nHost: load\r\nAccept: {accept}\r\n\r\n".encode())

    async def piece(self) -> bytes | None:
        """The next piece of the answer's body; None at its end."""
        return await self._pieces.get()

    @property
    def status(self) -> int:
        return int(self._parser.get_status_code())

    def close(self) -> None:
        self._transport.close()


async def connect(host: str, port: int) -> Connection:
    """A new connection."""
    _, connection = await asyncio.get_running_loop().create_connection(Connection, host, port)
    return connection


@dataclass
class Seen:
    """What all clients saw together."""

    polls: list[float] = field(default_factory=list)  # seconds from due to answered
    pauses: list[float] = field(default_factory=list)  # seconds until the next poll of a job that goes on
    ended: Counter[str] = field(default_factory=Counter)  # job -> pollers that saw its end
    streams: int = 0
    lags: list[float] = field(default_factory=list)  # seconds from the end of a job to the end of its stream
    wrong: list[str] = field(default_factory=list)


async def poll(host: str, port: int, jobs: Sequence[str], begin: float, seen: Seen) -> None:
    """One poller: from `begin` seconds on, one job after the other."""
    await asyncio.sleep(begin)
    connection, due = None, time.monotonic()
    for job_id in jobs:
        while True:
            asked = time.monotonic()
            if connection is None:
                connection = await connect(host, port)
            connection.ask(f"/jobs/{job_id}", "application/json")
            body = b""
            while (piece := await connection.piece()) is not None:
                body += piece
            now = time.monotonic()
            if connection.status != 200:
                seen.wrong.append(f"{job_id}: answer {connection.status}")
                return
            seen.polls.append(now - due)
            job = json.loads(body)
            if job["state"] in ENDED:
                if job["id"] != job_id or job["state"] != "succeeded":
                    seen.wrong.append(f"{job_id}: ended as {job['id']} {job['state']}")
                seen.ended[job_id] += 1
                due = now
                break
            wait = pause(job, now - asked)
            seen.pauses.append(wait)
            due = now + wait
            if wait > IDLE_SECONDS:
                connection.close()
                connection = None
            await asyncio.sleep(wait)
    if connection is not None:
        connection.close()


async def follow(host: str, port: int, jobs: Sequence[str], begin: float, seen: Seen) -> None:
    """From `begin` seconds on, one stream after the other."""
    await asyncio.sleep(begin)
    for job_id in jobs:
        connection = await connect(host, port)
        connection.ask(f"/jobs/{job_id}/events", "text/event-stream")
        told: Counter[str] = Counter()
        text, ended_at = b"", None
        while (piece := await connection.piece()) is not None:
            *blocks, text = (text + piece).split(b"\n\n")
            for block in blocks:
                fields = dict(line.split(": ", 1) for line in block.decode().splitlines() if not line.startswith(":"))
                told[fields.get("event", "")] += 1
                if fields.get("event") == "job_succeeded":
                    ended_at = datetime.fromisoformat(json.loads(fields["data"])["at"])
                elif fields.get("event") == "end" and ended_at is not None:
                    seen.lags.append((datetime.now(UTC) - ended_at).total_seconds())
        connection.close()
        seen.streams += 1
        if any(told[name] != 1 for name in ONCE):
            seen.wrong.append(f"stream of {job_id}: {dict(told)}")


async def watch(url: str, jobs: Sequence[str], pollers: int, streams: int, arrive: float) -> Seen:
    """All of them, who arrive at random within `arrive` seconds."""
    parts, seen, dice = urlsplit(url), Seen(), random.Random(0)
    host, port = parts.hostname or "", parts.port or 80
    followed = jobs[:: max(1, len(jobs) // (EACH * streams))] if streams else []
    async with asyncio.TaskGroup() as group:
        for n in range(streams):
            group.create_task(follow(host, port, followed[n::streams], dice.uniform(0.0, arrive), seen))
        for n in range(pollers):
            group.create_task(poll(host, port, jobs[n::pollers], dice.uniform(0.0, arrive), seen))
    return seen


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("url")
    parser.add_argument("ids", type=Path, help="a file with the jobs' ids, oldest first")
    parser.add_argument("--pollers", type=int, required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--arrive", type=float, default=20.0, help="seconds within which they come")
    options = parser.parse_args(arguments)
    jobs = options.ids.read_text().split()
    began = time.monotonic()
    seen = asyncio.run(watch(options.url, jobs, options.pollers, options.streams, options.arrive))
    print(
        json.dumps(
            {
                "seconds": time.monotonic() - began,
                "polls": sorted(seen.polls),
                "pauses": sorted(seen.pauses),
                "missed": [job for job in jobs if seen.ended[job] != 1] if options.pollers else [],
                "streams": seen.streams,
                "lags": sorted(seen.lags),
                "wrong": seen.wrong,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
