"""Lines that another program can read: one an event, with ids, without secrets."""

import contextvars
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jobs import logs


@pytest.fixture
def written() -> Iterator[Callable[..., str]]:
    """Calls a function with a logger, in a context of its own, and gives what was written."""
    root = logging.getLogger()
    before = root.handlers[:], root.level

    def write(work: Callable[[logging.Logger], object], as_json: bool = True, level: str = "info") -> str:
        stream = io.StringIO()
        logs.configure(level, as_json, stream)
        contextvars.Context().run(work, logging.getLogger("part"))  # an empty one: other tests may have bound something here
        return stream.getvalue()

    yield write
    root.handlers[:], root.level = before
    logging.captureWarnings(False)


def fail(log: logging.Logger) -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        log.exception("it broke", extra={"step_id": "step_1", "unheard_of": 1})


def test_json_is_an_object_a_line_with_the_traceback_in_it(written: Callable[..., str]) -> None:
    (line,) = written(fail).splitlines()
    said: dict[str, Any] = json.loads(line)
    assert (said["level"], said["logger"], said["message"], said["step_id"]) == ("error", "part", "it broke", "step_1")
    assert "Traceback" in said["trace"]
    assert said["trace"].endswith("ValueError: first\nsecond")
    assert said["time"].endswith("Z")
    assert set(said) == {"time", "level", "logger", "message", "process", "step_id", "trace"}


def test_text_is_a_line_an_event_too_and_values_end_at_the_next_space(written: Callable[..., str]) -> None:
    (line,) = written(fail, as_json=False).splitlines()
    assert line.split(" ", 1)[1].startswith("ERROR   part it broke step_id=step_1 trace=")
    assert "first\\nsecond" in line
    said = {"path": '/a b\n2026 forged\x1b[31m"', "job_ids": ["job_1", "job_2"], "status": 200}
    (line,) = written(lambda log: log.info("got\r\nit", extra=said), as_json=False).splitlines()
    assert line.endswith('part got\\r\\nit job_ids=job_1,job_2 path="/a b\\n2026 forged\\u001b[31m\\"" status=200')


def test_what_is_bound_is_on_every_line_until_the_block_ends(written: Callable[..., str]) -> None:
    def work(log: logging.Logger) -> None:
        logs.bind(worker="one")
        with logs.bound(step_id="step_1", attempt=2):
            log.info("in")
            log.info("nearer", extra={"attempt": 3})
        log.info("out")

    lines = [json.loads(line) for line in written(work).splitlines()]
    assert [(one.get("worker"), one.get("step_id"), one.get("attempt")) for one in lines] == [
        ("one", "step_1", 2),
        ("one", "step_1", 3),
        ("one", None, None),
    ]
    assert logs.bound_field("worker") is None, "another context"
    with pytest.raises(ValueError, match="no field stepp"):
        logs.bind(stepp="x")


@pytest.mark.parametrize("as_json", [True, False])
def test_passwords_and_signatures_of_addresses_are_left_out(written: Callable[..., str], as_json: bool) -> None:
    addresses = [
        "postgresql+psycopg://potstill:hunter2@db:5432/potstill",
        "redis://:hunter2@redis:6379/0",
        "https://s3.example/b/k?X-Amz-Credential=hunter2%2Fx&X-Amz-Expires=60&X-Amz-Signature=hunter2",
    ]

    def work(log: logging.Logger) -> None:
        try:
            raise OSError(addresses[0])
        except OSError:
            log.warning("cannot reach %s or %s", *addresses[1:], exc_info=True)

    said = written(work, as_json)
    assert "hunter2" not in said
    assert "redis://:***@redis:6379/0" in said
    assert "X-Amz-Expires=60" in said


def test_levels_are_obeyed(written: Callable[..., str]) -> None:
    assert written(lambda log: log.info("x"), level="warning") == ""
    assert written(lambda log: log.debug("x"), level="DEBUG") != ""
