"""The house rules that no linter knows: lengths of files and functions, names that explain nothing, what loads torch."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("api", "benchmarks", "ddcore", "jobs", "potstill", "worker", "migrations")
LOOSE_NAMES = {"utils", "util", "helpers", "helper", "common", "core", "base", "misc", "shared"}
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_there_are_sources() -> None:
    assert len(SOURCES) > 50


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_can_be_read_in_one_sitting(path: Path) -> None:
    text = path.read_text()
    assert path.stem not in LOOSE_NAMES
    assert text.count("\n") <= 400, "rethink a module of more than 400 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and "versions" not in path.parts:
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{node.name} is {length} lines"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert "weights_only=True" in ast.unparse(node), "torch.load without weights_only=True runs what the file says"
        if isinstance(node, ast.Raise) and node.exc is not None and "NotImplementedError" in ast.unparse(node.exc):
            pytest.fail("a stub")


# What must start where no torch is installed, as in the API's image, or would be slow to start if it loaded torch.
LIGHT = ("api.app", "jobs.create", "jobs.views", "jobs.migrate", "potstill.cli", "worker.app", "worker.supervise", "worker.maintenance")


def test_nothing_but_the_engine_loads_torch() -> None:
    heavy = ("torch", "torchvision", "timm", "sklearn", "scipy", "matplotlib", "pyarrow")
    code = f"import sys\nfor name in {heavy}: sys.modules[name] = None\nimport {', '.join(LIGHT)}\nprint('loaded')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "loaded\n", done.stderr


def test_the_api_has_no_torch_and_no_celery_among_its_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = " ".join(project["dependencies"] + project["optional-dependencies"]["api"])
    assert not [name for name in ("torch", "timm", "celery", "scikit", "potstill[") if name in needed]


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(line.count("==") == 1 and "/" not in line for line in lines)
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    names = {one.partition("[")[0].partition(">")[0].lower().replace("_", "-") for one in wanted} - {"potstill"}
    assert names <= pinned


def test_the_api_states_no_sql() -> None:
    allowed = {"Engine", "Session", "sessionmaker"}  # what is handed around; and any error may be caught
    for path in (ROOT / "api").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sqlalchemy") and node.module != "sqlalchemy.exc":
                assert {alias.name for alias in node.names} <= allowed, path
            if isinstance(node, ast.Import):
                assert not [alias.name for alias in node.names if alias.name.startswith("sqlalchemy")], path
