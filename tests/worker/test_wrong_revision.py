"""No process works on a database of another revision, or without its artifact store; each says what to do, in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.database import connect
from jobs.migrate import downgrade, upgrade
from jobs.settings import Settings

ROOT = Path(__file__).parent.parent.parent
API = ("uvicorn", "api.app:create_app", "--factory", "--port", "0")


@pytest.mark.parametrize("command", [("worker",), ("worker.maintenance",), API], ids=["worker", "maintenance", "api"])
def test_a_process_refuses_to_start_and_says_what_to_run(command: tuple[str, ...], tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    engine = connect(settings)
    upgrade(engine)
    downgrade(engine, "0002")
    engine.dispose()
    env = {**os.environ, "POTSTILL_HOME": str(tmp_path), "POTSTILL_DATABASE_URL": "", "POTSTILL_REDIS_URL": "unix:///nowhere"}
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if "potstill migrate" in line]
    assert len(said) == 1, done.stderr
    assert "the database is at revision 0002, this code needs" in said[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("module", ["worker", "worker.maintenance"])
def test_a_process_that_cannot_open_its_store_takes_no_step(module: str, tmp_path: Path) -> None:
    engine = connect(Settings(home=tmp_path))
    upgrade(engine)
    engine.dispose()
    env = {**os.environ, "POTSTILL_HOME": str(tmp_path), "POTSTILL_DATABASE_URL": "", "POTSTILL_REDIS_URL": "unix:///nowhere"}
    env["POTSTILL_STORE"] = "s3://bucket/a//b"
    done = subprocess.run([sys.executable, "-m", module], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "s3://bucket/a//b cannot be opened" in done.stderr
    assert "check the settings POTSTILL_STORE_*" in done.stderr
    assert "Traceback" not in done.stderr
