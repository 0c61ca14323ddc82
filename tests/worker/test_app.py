import subprocess
import sys
from types import SimpleNamespace

import pytest
import redis
from celery.concurrency.prefork import TaskPool

from tests.worker.service import RedisServer
from worker import app as module
from worker.app import TASK, broker_url, make_app

SUPERVISOR = """
import sys
import worker.__main__, worker.app, worker.maintenance, worker.supervise
print(*sorted({"torch", "torchvision", "scipy", "sklearn", "matplotlib"} & set(sys.modules)))
"""


def test_the_supervisor_and_the_maintenance_loop_import_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", SUPERVISOR], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_socket_is_understood_in_both_spellings(redis_url: str) -> None:
    kombu_url = redis_url.replace("unix://", "redis+socket://")
    for url, database in ((redis_url, 0), (f"{redis_url}?db=3", 3), (f"{kombu_url}?virtual_host=4", 4)):
        client = redis.from_url(f"{redis_url}?db={database}")
        client.flushdb()
        make_app(url).send_task(TASK, args=["step_1"], queue="cpu")
        assert client.llen("cpu") == 1
    assert broker_url("redis://host:1/2") == "redis://host:1/2"


def test_the_certificate_of_a_server_is_checked_unless_the_url_says_otherwise() -> None:
    assert broker_url("rediss://host:1/2") == "rediss://host:1/2?ssl_cert_reqs=required"
    assert broker_url("rediss://host:1/2?ssl_ca_certs=ca.pem") == "rediss://host:1/2?ssl_ca_certs=ca.pem&ssl_cert_reqs=required"
    assert broker_url("rediss://host:1/2?ssl_cert_reqs=none") == "rediss://host:1/2?ssl_cert_reqs=none"


@pytest.mark.parametrize("answer", ["ack", "reject"])
def test_a_doorbell_that_cannot_be_answered_does_not_count_as_taken(redis_server: RedisServer, answer: str) -> None:
    app = make_app(redis_server.url)
    app.send_task(TASK, args=["step_1"], queue="cpu")
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        channel.basic_qos(0, 1, False)
        message = channel.basic_get("cpu")
        assert not channel.qos.can_consume()
        redis_server.stop()
        try:
            with pytest.raises(connection.connection_errors):
                getattr(message, answer)()
            assert channel.qos.can_consume()
        finally:
            redis_server.start()


def test_no_message_is_unpickled_and_none_is_taken_early() -> None:
    conf = make_app("redis://localhost:1/0").conf
    assert conf.accept_content == ["json"]
    assert conf.task_acks_late
    assert conf.worker_disable_prefetch


def test_a_stop_before_the_pool_is_up_has_nobody_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    for pool in (None, TaskPool(1)):
        monkeypatch.setattr(module, "_main", SimpleNamespace(pool=pool))
        module._tell_children(how="Warm")
