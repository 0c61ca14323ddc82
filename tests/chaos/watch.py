"""Looks at a job over HTTP while it is disturbed: whatever is shown must be whole, and nothing may be taken back."""

import hashlib
import random
import threading
from typing import Any

import httpx

from tests.chaos.stand import HTTP

_ENDS = ("succeeded", "failed", "cancelled")


class Watcher:
    """Asks again and again from a thread of its own. wrong: what was seen that must never be, each kind once."""

    def __init__(self, url: str, job_id: str) -> None:
        self.url, self.job_id = url, job_id
        self.wrong: list[str] = []
        self.looks = 0
        self._last: dict[str, str] = {}  # job or step -> an end that it was seen at
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if not self._stop.is_set() and not self.looking:
            self._say("who looked at the job gave up before its end")
        self._stop.set()
        self._thread.join()

    @property
    def looking(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.wait(0.3):
            try:
                self._look()
            except httpx.TransportError:  # the API is away, or broke off
                continue
            except Exception as error:  # what came cannot be read: half of it, or not what the API promises
                self._say(f"an answer could not be made sense of: {type(error).__name__}: {error}")

    def _look(self) -> None:
        if (job := self._get(f"/jobs/{self.job_id}")) is None:
            return
        self.looks += 1
        self.see(job)
        if not (listed := self._get(f"/jobs/{self.job_id}/artifacts")) or not listed["data"]:
            return
        one = random.choice(listed["data"])
        answer = HTTP.get(f"{self.url}/artifacts/{one['id']}/content", follow_redirects=True)
        if answer.status_code == 200 and hashlib.sha256(answer.content).hexdigest() != one["sha256"]:
            self._say(f"{one['name']} was shown with other bytes than its sha256 says")
        elif answer.status_code not in (200, 503):
            self._say(f"the content of {one['name']}, which is listed, was answered with {answer.status_code}")

    def see(self, job: dict[str, Any]) -> None:
        """Take note of a job's body."""
        states = {"job": job["state"]} | {step["name"]: step["state"] for step in job["steps"]}
        for name, state in states.items():
            if (before := self._last.get(name, state)) != state:
                self._say(f"{name} was {before}, and then {state}")
            if state in _ENDS:
                self._last[name] = state
        if job["state"] == "succeeded" and (left := [name for name, state in states.items() if state != "succeeded"]):
            self._say(f"the job has succeeded, but {', '.join(left)} not")
        if ("synthetic_set" in job["results"]) != (job["state"] == "succeeded"):
            self._say(f"a job that is {job['state']} shows {'a' if 'synthetic_set' in job['results'] else 'no'} synthetic set")

    def _get(self, path: str) -> Any:
        answer = HTTP.get(self.url + path)
        if answer.status_code == 200:
            return answer.json()
        if answer.status_code != 503:
            self._say(f"GET {path.partition('?')[0]} was answered with {answer.status_code}: {answer.text[:200]}")
        return None

    def _say(self, text: str) -> None:
        if text not in self.wrong:
            self.wrong.append(text)
