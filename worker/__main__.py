"""`python -m worker [--queues gpu,cpu,io] [--concurrency auto]`: a Celery worker with the flags that it needs."""

import argparse
import logging
import os
import socket
import time

from sqlalchemy.exc import OperationalError

from jobs import logs
from jobs.database import connect
from jobs.errors import StoreUnusable, WrongRevision
from jobs.migrate import check_revision
from jobs.models import QUEUES
from jobs.settings import get_settings
from jobs.store import open_store
from worker import gpus
from worker.app import app

# What a worker says to other workers is of no use here, and each costs Redis a broadcast; they have no settings, only flags.
_QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat")
log = logging.getLogger(__name__)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.add_argument("--queues", default=",".join(QUEUES), help="which steps to run, by what they want most")
    parser.add_argument("--concurrency", default="auto", help="steps at a time; auto: one for each GPU that is visible, and one without")
    parser.add_argument("--name", default=f"{socket.gethostname()}-{os.getpid()}", help="what the worker is called, unique among workers")
    args = parser.parse_args()
    queues = [name.strip() for name in args.queues.split(",")]
    if unknown := set(queues) - set(QUEUES):
        parser.error(f"no queue is called {', '.join(sorted(unknown))}; there are: {', '.join(QUEUES)}")
    children = _children(args.concurrency, queues, parser)
    settings = get_settings()
    logs.configure(settings.log_level, settings.log_json)  # Celery sets them up too, but not before its first warnings
    try:
        open_store(settings)  # rather no worker than one whose every step fails
    except StoreUnusable as error:
        raise SystemExit(f"{error.detail}: {error.hint}") from None
    _wait_for_database()
    options = ["--pool", "prefork", "--concurrency", str(children), "--queues", ",".join(queues), "--hostname", args.name]
    app.worker_main(["--quiet", "worker", *options, *_QUIET])


def _children(said: str, queues: list[str], parser: argparse.ArgumentParser) -> int:
    """How many pool children there are to be."""
    if said == "auto":
        return max(1, len(gpus.visible())) if "gpu" in queues and get_settings().device in gpus.PINNED else 1
    if not said.isascii() or not said.isdigit() or int(said) < 1:
        parser.error(f"--concurrency is auto or a number from 1, not {said!r}")
    return int(said)


def _wait_for_database() -> None:
    """Return when the database is there and of the right revision; end the process if it is of another."""
    engine = connect(get_settings())
    while True:
        try:
            check_revision(engine)
            engine.dispose()  # the pool children are forked from here, and connections do not survive that
            return
        except WrongRevision as error:
            raise SystemExit(f"{error.detail}: {error.hint}") from None
        except OperationalError as error:
            log.warning("the database cannot be reached; trying again: %s", str(error).partition("\n")[0])
            time.sleep(2)


if __name__ == "__main__":
    main()
