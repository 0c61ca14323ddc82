import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from jobs.settings import Settings

KEYS = {"store_access_key_id": "anyone", "store_secret_access_key": "anything"}


@dataclass
class ObjectServer:
    """A real S3-compatible server, which keeps everything in memory; a test may stop and start it."""

    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        if not self.port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(self.url)
                return
            except httpx.TransportError:
                assert time.monotonic() < deadline, "the object server did not start"
                time.sleep(0.05)

    def stop(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def settings(self, home: Path, bucket: str = "", **more: Any) -> Settings:
        """Settings of an installation with a new bucket."""
        bucket = bucket or f"bucket-{os.urandom(6).hex()}"
        httpx.put(f"{self.url}/{bucket}").raise_for_status()
        return Settings(**{"home": home, "store": f"s3://{bucket}/some/prefix", "store_endpoint": self.url} | KEYS | more)

    def objects(self, settings: Settings) -> dict[str, str]:
        """Address of each object by its last name."""
        bucket = settings.store.removeprefix("s3://").partition("/")[0]
        listing = httpx.get(f"{self.url}/{bucket}?list-type=2").text
        keys = [part.partition("</Key>")[0] for part in listing.split("<Key>")[1:]]
        return {key.rpartition("/")[2]: f"{self.url}/{bucket}/{key}" for key in keys}
