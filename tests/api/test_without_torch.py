"""The API runs on the packages of its own extra, and torch is not among them."""

import re
import subprocess
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]

SCRIPT = """
import importlib.util
import sys

assert importlib.util.find_spec("torch") is None, "torch can be found: this checks nothing"
from fastapi.testclient import TestClient  # imported with the API's own HTTP client

from api.app import create_app
from jobs import catalogue, database, migrate
from jobs.settings import Settings

settings = Settings(home=sys.argv[1])
engine = database.connect(settings)
migrate.upgrade(engine)
engine.dispose()
with TestClient(create_app(settings)) as client:
    assert client.get("/healthz").text == "ok"
    assert client.get("/openapi.json").json()["paths"]["/distill"]
    assert client.post("/distill", json={"preset": "smoke"}).status_code == 202
print("works without torch", sorted(name for name in sys.modules if name in ("numpy", "PIL", "sklearn", "celery")))
"""


def _needed(extra: str) -> dict[str, Distribution]:
    """Every distribution that `pip install potstill[extra]` brings, potstill apart."""
    found: dict[str, Distribution] = {}
    waiting = [("potstill", frozenset({extra}))]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        here = distribution(name)
        if name != "potstill":
            found[name] = here
        for text in here.requires or []:
            requirement = Requirement(text)
            if requirement.marker and not any(requirement.marker.evaluate({"extra": one}) for one in extras | {""}):
                continue
            item = (canonicalize_name(requirement.name), frozenset(requirement.extras))
            if item not in seen:
                seen.add(item)
                waiting.append(item)
    return found


def _site(folder: Path, distributions: dict[str, Distribution]) -> None:
    """A folder like site-packages that holds links to these distributions and nothing else."""
    for one in distributions.values():
        for top in {str(file).split("/")[0] for file in one.files or [] if not str(file).startswith("..")}:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(one.locate_file(top))).absolute())


def test_api_serves_without_torch(tmp_path: Path) -> None:
    needed = _needed("api")
    assert {"fastapi", "sqlalchemy", "pydantic"} <= set(needed)
    assert not {"torch", "celery", "scikit-learn", "matplotlib"} & set(needed)
    site, home = tmp_path / "site", tmp_path / "home"
    site.mkdir()
    _site(site, needed)
    program = f"import sys; sys.path += [{str(site)!r}, {str(ROOT)!r}]\n{SCRIPT}"
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", program, str(home)], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert re.match("works without torch", ran.stdout)
