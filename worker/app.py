"""The Celery application: doorbells in, steps supervised. `python -m worker` starts it.

SQL is the truth and a message is a doorbell, so nothing here guards a message: late, doubled and lost ones are all harmless.
"""

import contextlib
import logging
import os
import signal
import socket
import time
from importlib.metadata import version
from typing import Any

from billiard import current_process
from celery import Celery
from celery.exceptions import Reject
from celery.signals import setup_logging, worker_init, worker_process_init, worker_process_shutdown, worker_shutting_down
from kombu.entity import Queue
from kombu.exceptions import OperationalError as BrokerError
from kombu.transport import redis as redis_transport
from kombu.transport import virtual

from ddcore.plan import engine_digest
from jobs import logs
from jobs.database import connect, sessions
from jobs.models import QUEUES
from jobs.settings import get_settings
from jobs.workers import Presence
from worker import gpus
from worker.launcher import Launcher
from worker.presence import Announcer
from worker.supervise import Supervisor

TASK = "potstill.run_step"
_DRAIN = signal.SIGUSR2  # from the main process to its children; Celery and billiard use USR1 and TERM themselves
_SHORTEST_REST, _LONGEST_REST = 0.5, 8.0  # seconds
SILENT = 10.0  # seconds without an answer after which Redis counts as away; a worker that waits for doorbells is answered every second
log = logging.getLogger(__name__)


class _QoS(redis_transport.QoS):
    """Forgets a doorbell also when Redis is away just as it is acknowledged.

    kombu would count it as taken for good: with one at a time the worker would take no other, and as it then asks Redis for nothing,
    never see that its connection is gone.
    """

    def ack(self, delivery_tag: str) -> None:
        try:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]
        except Exception:
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]
            raise

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        try:
            super().reject(delivery_tag, requeue)  # type: ignore[no-untyped-call]
        except Exception:
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]
            raise


redis_transport.Channel.QoS = _QoS


def broker_url(redis_url: str) -> str:
    """Celery's spelling of a Redis URL: redis-py's `unix:///path?db=1` is kombu's `redis+socket:///path?virtual_host=1`.

    And redis-py checks the certificate of a `rediss://` server by itself, which kombu does only when told to.
    """
    if redis_url.startswith("rediss://") and "ssl_cert_reqs=" not in redis_url:
        return f"{redis_url}{'&' if '?' in redis_url else '?'}ssl_cert_reqs=required"
    if not redis_url.startswith("unix://"):
        return redis_url
    return "redis+socket://" + redis_url.removeprefix("unix://").replace("?db=", "?virtual_host=").replace("&db=", "&virtual_host=")


def make_app(redis_url: str) -> Celery:
    """The application on one broker; a setting that is not Celery's default says why."""
    app = Celery("potstill", broker=broker_url(redis_url))
    app.conf.update(
        task_queues=[Queue(name, routing_key=name) for name in QUEUES],  # type: ignore[no-untyped-call]
        task_default_queue="cpu",
        task_create_missing_queues=False,  # a queue that nobody listens to would swallow doorbells
        task_serializer="json",
        accept_content=["json"],  # nothing is ever unpickled
        task_ignore_result=True,  # results are rows; there is no result backend
        task_acks_late=True,  # a message counts as reserved while its step runs, so that a busy worker takes no other
        task_reject_on_worker_lost=True,  # a pool child that dies gives the doorbell back; the step's lease decides the rest
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,  # Redis only: no message is taken before a pool child is free, else it waits behind a long step
        task_publish_retry=False,  # the maintenance loop sends, and has its own back-off
        broker_connection_timeout=4.0,
        broker_connection_retry_on_startup=True,  # without it a worker that starts before Redis may give up
        broker_connection_max_retries=None,  # Celery's default is 100 tries, then the worker ends
        broker_transport_options={
            "visibility_timeout": 7 * 24 * 3600,  # after it kombu sends the doorbell of a step that still runs to others
            "max_retries": 0,  # of one send, which else blocks for seconds; a worker reconnects by the settings above
            "socket_connect_timeout": 4.0,
            "socket_timeout": SILENT,
            "socket_keepalive": True,
        },
        worker_cancel_long_running_tasks_on_connection_loss=False,  # a lost broker stops no step; Celery 6 will default to True
        worker_enable_remote_control=False,  # its reply queues and broadcasts cost Redis traffic for every worker
    )
    return app


app = make_app(get_settings().redis_url)
_supervisor: Supervisor | None = None  # of this pool child; made after the fork
_announcer: Announcer | None = None  # of this pool child
_main: Any = None  # the WorkController, in the main process
_rest = _SHORTEST_REST  # of this pool child
_gpus: list[str] = []  # from the main process, to each of its children


@app.task(name=TASK, bind=True)
def run_step(self: Any, step_id: str) -> None:
    """Claim and supervise one step of the queue that the doorbell came by; returns when its attempt is over, or at once if there is none.

    step_id: the step that rang. Which step runs is decided only now, so it may be another, more urgent one.
    """
    if _supervisor is None:
        raise RuntimeError("a step was given to a process that is not a pool child")
    if _supervisor.draining:
        raise Reject("the worker is shutting down", requeue=True)
    # While a step runs TERM means drain as well: a cold shutdown, or a service manager that signals every process.
    before = signal.signal(signal.SIGTERM, _drain)
    queue = self.request.delivery_info["routing_key"]
    try:
        ended = _supervisor.run(queue)
        _pass_on(_supervisor, queue, found=ended != "ignored")
    finally:
        signal.signal(signal.SIGTERM, before)


def _pass_on(supervisor: Supervisor, queue: str, *, found: bool) -> None:
    """If the doorbell was for workers of another engine, who are there, ring for them, and let them hear it: rest for a while.

    The longer, the more often that happens in a row: while they are busy, the doorbell would go round and round.
    """
    global _rest
    other = None if found else supervisor.waits_for_another(queue)
    if other is None:
        _rest = _SHORTEST_REST
        return
    try:
        app.send_task(TASK, args=[other], queue=queue)
    except (BrokerError, OSError) as error:
        log.info("could not pass a doorbell on; it will be rung again: %s", error)
    until, _rest = time.monotonic() + _rest, min(2 * _rest, _LONGEST_REST)
    while time.monotonic() < until and not supervisor.draining:
        time.sleep(0.05)


@setup_logging.connect
def _set_up_logging(**_: object) -> None:
    settings = get_settings()
    logs.configure(settings.log_level, settings.log_json)


@worker_init.connect
def _begin_main(sender: Any, **_: object) -> None:
    """In the main process, whose children a shutdown must reach, and which deals the GPUs out among them."""
    global _main, _gpus
    _main = sender
    _gpus = gpus.visible() if get_settings().device in gpus.PINNED else []


@worker_process_init.connect
def _begin_child(sender: str = "", **_: object) -> None:
    """In each pool child: connections of its own, and a template that loads torch while the child waits for work."""
    global _supervisor, _announcer
    queues = tuple(name for name in QUEUES if name in app.amqp.queues.consume_from)
    gpu = gpus.pin(_gpus, current_process().index, wanted="gpu" in queues)
    settings, name = get_settings(), f"{sender.removeprefix('celery@')}/{os.getpid()}"
    factory = sessions(connect(settings))
    _supervisor = Supervisor(settings, factory, Launcher(name), name)
    signal.signal(_DRAIN, _drain)
    _supervisor.launcher.warm()
    log.info("pool child begins", extra={"worker": name, "gpu": gpu})
    own = Presence(name, socket.gethostname(), os.getpid(), queues, engine_digest(), version("potstill"))
    _announcer = Announcer(settings, factory, own)
    _announcer.start()


@worker_shutting_down.connect
def _tell_children(how: str = "", **_: object) -> None:
    """In the main process, on TERM or Ctrl-C: Celery would wait for running steps to finish; ours are to checkpoint and go back.

    So a warm shutdown takes no longer than `stop_grace_seconds` and a little, and Celery's soft shutdown has nothing to add. A cold
    one (QUIT) has sent its children TERM already, which means the same to them.
    """
    if how != "Warm" or _main is None or _main.pool is None:
        return
    try:
        children = _main.pool.info["processes"]
    except AttributeError:  # told to stop before the pool was up: nothing runs
        return
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, _DRAIN)


@worker_process_shutdown.connect
def _end_child(**_: object) -> None:
    if _supervisor is not None:
        _supervisor.launcher.close()
    if _announcer is not None:
        _announcer.leave()


def _drain(*_: object) -> None:
    if _supervisor is not None:
        _supervisor.draining = True
