"""What is long without being a stage of its own asks, piece by piece, whether to stop."""

import pytest
import torch
from torch import nn

from ddcore.data import images as images_module
from ddcore.data.images import Images, mean_std
from ddcore.errors import Stopped
from ddcore.evaluation import downstream
from ddcore.evaluation.probes import RIDGE_PENALTIES, ridge
from ddcore.experts.store import write_trajectories
from ddcore.export import _pngs
from ddcore.ssl import targets
from ddcore.ssl.teacher import Manifest
from ddcore.ssl.trajectory import Recorder
from ddcore.synthetic import SyntheticSet

CPU = torch.device("cpu")
PIXELS = torch.arange(12 * 16, dtype=torch.uint8).view(12, 1, 4, 4)
INFO = {"mean": [0.5], "std": [0.5]}


def statistics(folder, pulse):
    mean_std(PIXELS, pulse)


def labelled(folder, pulse):
    Images(PIXELS, torch.arange(12), tuple("abcdefghijkl")).save(folder / "dataset.safetensors")
    downstream.load_labelled(folder, (1, 4, 4), INFO, CPU, pulse)


def penalties(folder, pulse):
    ridge(torch.randn(12, 3, dtype=torch.float64), torch.arange(12) % 2, 2, pulse=pulse)


def experts(folder, pulse):
    write_trajectories(folder, torch.randn(2, 4, 5).cumsum(1), "bf16_deltas", "{}", pulse)


def recording(folder, pulse):
    recorder = Recorder(folder, [0, 1, 2], "float32")
    for step in range(3):
        recorder.keep(step, torch.randn(4))
    recorder.gather(folder, pulse)


def pictures(folder, pulse):
    _pngs(SyntheticSet(torch.rand(12, 1, 4, 4), torch.zeros(12, 2), torch.tensor(0.1), torch.arange(12), INFO), pulse)


def running_statistics(folder, pulse):
    manifest = Manifest({}, 1, (4, 4), [0.5], [0.5], 1, "dino", None, 1.0)
    targets._remeasure(nn.BatchNorm2d(1), Images(PIXELS, None, ()), manifest, pulse)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(images_module, "_CHUNK", 4)
    monkeypatch.setattr(downstream, "BATCH", 4)
    monkeypatch.setattr(targets, "BATCH", 4)


@pytest.mark.parametrize(
    ("work", "pieces"),
    [
        (statistics, 3),
        (labelled, 3),
        (penalties, len(RIDGE_PENALTIES)),
        (experts, 2 * 3 * 2),  # once when they are made smaller, once when what that cost is measured
        (recording, 3),
        (pictures, 12),
        (running_statistics, 3),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_each_piece_is_a_moment_to_stop_at(tmp_path, work, pieces):
    asked = []
    work(tmp_path, lambda: asked.append(work))
    assert len(asked) == pieces

    def stop():
        raise Stopped

    with pytest.raises(Stopped):
        work(tmp_path, stop)
