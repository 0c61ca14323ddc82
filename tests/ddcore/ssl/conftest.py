"""Small data sets and steps that run on them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits

from ddcore.data.images import Images
from ddcore.events import Reporter
from ddcore.task import Resources, Task

MakeTask = Callable[..., Task]


def digits(count: int) -> Images:
    bunch = load_digits()
    images = torch.from_numpy(bunch.images[:count] * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    return Images(images, torch.from_numpy(bunch.target[:count]).long(), tuple("0123456789"))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished dataset step: 96 digits."""
    folder: Path = tmp_path_factory.mktemp("dataset")
    digits(96).save(folder / "dataset.safetensors")
    return folder


@pytest.fixture
def make_task(tmp_path: Path) -> MakeTask:
    """Tasks with folders of their own, told apart by `name`; the same name and a fresh `out` resumes in the same `work`."""

    def make(
        name: str, params: dict[str, Any], reporter: Reporter | None = None, resources: Resources | None = None, **inputs: Path
    ) -> Task:
        folders = [tmp_path / name / part for part in ("out", "work")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        roles = {role: [folder] for role, folder in inputs.items()}
        return Task(params, roles, *folders, reporter or Reporter(), torch.device("cpu"), resources or Resources())

    return make
