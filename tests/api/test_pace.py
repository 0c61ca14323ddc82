"""How often those who watch jobs are told to ask."""

import heapq

import pytest
from fastapi.testclient import TestClient

from api.pace import BUSY, LEAST, MOST, Pace
from tests.api.fakes import FakeWorker


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("askers", "rate"), [(1, 2.0), (20, 40.0), (2000, 62.5)])
def test_who_keeps_to_it_asks_no_more_often_than_can_be_answered(askers: int, rate: float) -> None:
    """All come at once, and a look takes four milliseconds. rate: questions a second that come of it."""
    clock, due = Clock(), [100.0] * askers
    pace, asked = Pace(clock), []
    while (moment := heapq.heappop(due)) < 160.0:
        clock.now = moment
        asked.append(moment)
        heapq.heappush(due, moment + pace.again(0.004))
    later = [moment for moment in asked if moment >= 110.0]
    assert len(later) / 50.0 == pytest.approx(rate, rel=0.05)
    busiest = max(sum(start <= moment < start + 1.0 for moment in later) for start in range(110, 159))
    assert busiest <= BUSY / 0.004 + 2


def test_a_dear_answer_is_not_asked_for_again_soon_nor_never() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.again(1.0) == pytest.approx(LEAST + 1.0 / BUSY, abs=1e-3)
    assert pace.again(1000.0) == MOST
    clock.now += 2 * MOST
    assert pace.again(0.0) == LEAST


def test_a_job_says_when_to_ask_again(client: TestClient, worker: FakeWorker) -> None:
    job = client.post("/distill", json={"preset": "smoke"}).json()
    assert LEAST < job["poll_after_seconds"] < MOST
    assert LEAST < client.get(f"/jobs/{job['id']}").json()["poll_after_seconds"] < MOST
    assert [one["poll_after_seconds"] for one in client.get("/jobs").json()["data"]] == [None]
    worker.finish(job["id"])
    assert client.get(f"/jobs/{job['id']}").json()["poll_after_seconds"] is None
