"""Stands before a PostgreSQL server, and loses an answer on demand."""

import contextlib
import socket
import threading
from pathlib import Path


class Swallower:
    """Serves on `port` what a server serves on a socket in `folder`.

    armed: when the next COMMIT has been done, its answer is lost, and the connection with it; `lost` counts these.
    """

    def __init__(self, folder: str) -> None:
        self.armed, self.lost = False, 0
        self._behind = next(str(path) for path in Path(folder).glob(".s.PGSQL.*") if path.is_socket())
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Take no more connections; those that are there end with either side."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listening.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._behind)
                losing = threading.Event()
                threading.Thread(target=self._ask, args=(client, server, losing), daemon=True).start()
                threading.Thread(target=self._answer, args=(server, client, losing), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket, losing: threading.Event) -> None:
        with contextlib.suppress(OSError), server:
            while data := client.recv(65536):
                if self.armed and b"COMMIT" in data:
                    self.armed = False
                    losing.set()
                server.sendall(data)

    def _answer(self, server: socket.socket, client: socket.socket, losing: threading.Event) -> None:
        with contextlib.suppress(OSError), client:
            while data := server.recv(65536):
                if losing.is_set():
                    self.lost += 1
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(data)
