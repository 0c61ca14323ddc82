import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Service:
    """A tiny HTTP server that stands in for the API: one file with ranges, and scripted JSON answers."""

    content: bytes = bytes(range(256)) * 20_000
    break_after: list[int] = field(default_factory=list)  # bytes after which each of the next downloads breaks off
    etag: str = ""
    answers: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)  # "GET /path" -> answers in turn; the last one stays
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""

    def __post_init__(self) -> None:
        self.etag = f'"sha256:{hashlib.sha256(self.content).hexdigest()}"'


def _handler(service: Service) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path == "/file":
                self._file()
            else:
                self._scripted()

        def do_POST(self) -> None:
            self._scripted()

        def do_PATCH(self) -> None:
            self._scripted()

        def _scripted(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            service.requests.append((f"{self.command} {self.path}", dict(self.headers), body))
            script = service.answers[f"{self.command} {self.path}"]
            status, value = script.pop(0) if len(script) > 1 else script[0]
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _file(self) -> None:
            service.requests.append(("GET /file", dict(self.headers), b""))
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(asked[1]) if asked and self.headers.get("If-Range") == service.etag else 0
            data = service.content[start:]
            if not data:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(service.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            self.send_header("ETag", service.etag)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if service.break_after:
                data = data[: service.break_after.pop(0)]
                self.close_connection = True
            self.wfile.write(data)

    return Handler


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(made))
    server.daemon_threads = True
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join()
